# SPDX-License-Identifier: Apache-2.0
"""Runs the examples of README and docs, and checks that each option of cross_entropy has one."""

from __future__ import annotations

import doctest
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from places import DOCS, ROOT

import softkern
import softkern.parallel

PAGES = [
    page for page in (ROOT / "README.md", *sorted(DOCS.glob("*.md"))) if ">>> " in page.read_text("utf-8")
]
PORTING = DOCS / "porting.md"
PARALLEL = DOCS / "parallel.md"
HAS_GLOO = torch.distributed.is_available() and torch.distributed.is_gloo_available()


@pytest.fixture(autouse=True)
def default_printing() -> Iterator[None]:
    """A page may set print options; puts torch's own back."""
    yield
    torch.set_printoptions(profile="default")


def failures(text: str, name: str) -> str:
    """What the examples of a page print instead of what the page says."""
    output: list[str] = []
    example = doctest.DocTestParser().get_doctest(text, {}, name, name, 0)
    assert example.examples
    doctest.DocTestRunner(verbose=False).run(example, out=output.append)
    return "".join(output)


def code(page: Path, heading: str = "") -> str:
    """The examples of a page, or of one of its sections, without what they print."""
    text = page.read_text(encoding="utf-8")
    if heading:
        (text,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return "".join(example.source for example in doctest.DocTestParser().get_examples(text))


@pytest.fixture(autouse=True)
def no_group_stays() -> Iterator[None]:
    """A page that fails leaves its process group behind, which would fail other tests."""
    yield
    if HAS_GLOO and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_print_what_the_page_says(page: Path) -> None:
    if page == PARALLEL and not HAS_GLOO:
        pytest.skip("this torch was built without torch.distributed's gloo")
    assert failures(page.read_text(encoding="utf-8"), page.name) == ""


@pytest.mark.parametrize(
    ("page", "right", "wrong"),
    [
        ("cross_entropy.md", "2.0006", "2.0007"),
        ("porting.md", "\nTrue", "\nFalse"),
        pytest.param(
            *("parallel.md", "10.8249", "10.8248"),
            marks=pytest.mark.skipif(not HAS_GLOO, reason="this torch was built without gloo"),
        ),
    ],
)
def test_a_wrong_output_is_noticed(page: str, right: str, wrong: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert right in text
    assert "Expected:" in failures(text.replace(right, wrong, 1), page)


def test_every_option_of_cross_entropy_has_an_example() -> None:
    parameters = inspect.signature(softkern.cross_entropy).parameters.values()
    options = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY and p.name != "inplace_backward"]
    assert len(options) >= 9
    examples = code(DOCS / "cross_entropy.md")
    assert [name for name in options if not re.search(rf"\b{name}=", examples)] == []


def test_every_option_of_the_parallel_loss_is_on_its_page() -> None:
    parameters = inspect.signature(softkern.parallel.cross_entropy).parameters
    written_by_hand = re.sub(
        r"<!-- docstring: begin.*?end -->", "", PARALLEL.read_text("utf-8"), flags=re.DOTALL
    )
    own = [name for name in parameters if name not in inspect.signature(softkern.cross_entropy).parameters]
    assert len(own) >= 6
    assert [name for name in own if not re.search(rf"\b{name}\b", written_by_hand)] == []


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch was built without distributed")
def test_two_ranks_raise_what_the_page_says() -> None:
    from threaded_ranks import on_ranks

    x, target = torch.randn(3, 64), torch.tensor([0, 40, 63])

    def text_of(rank: int, **options: Any) -> str:
        shard, y = x[:, 32 * rank : 32 * rank + 32], options.pop("target", target)
        with pytest.raises((ValueError, IndexError, softkern.parallel.RemoteError)) as raised:
            softkern.parallel.cross_entropy(shard, y, **options)
        return str(raised.value)

    def texts(rank: int) -> list[str]:
        return [
            text_of(rank, z_loss=[0.0, 0.0001][rank]),
            text_of(rank, classes=60),
            text_of(rank, target=target + 1),
            text_of(rank, target=target + rank),
        ]

    page = PARALLEL.read_text("utf-8")
    for found in zip(*on_ranks(2, texts), strict=True):
        assert all(f": {text} |" in page for text in found), found


def test_every_library_has_an_example_in_plain_torch() -> None:
    headings = re.findall(r"^## (.+)$", PORTING.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(headings) >= 7
    for heading in headings[1:]:  # the first holds what they have in common, and the tensors
        examples = code(PORTING, heading)
        assert "softkern." in examples and "same(" in examples, heading


@pytest.mark.parametrize("name", ["selective_log_softmax", "entropy_from_logits"])
def test_every_function_of_statistics_has_an_example(name: str) -> None:
    assert f"softkern.{name}(" in code(DOCS / f"{name}.md")
