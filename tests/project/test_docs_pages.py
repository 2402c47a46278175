# SPDX-License-Identifier: Apache-2.0
"""The pages of the ops agree with the code, and links between pages have targets."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from places import ROOT

import softkern

DOCS = ROOT / "docs"
MEASURED = ("softmax", "log_softmax", "cross_entropy", "selective_log_softmax", "entropy_from_logits")
FUNCTIONS = (*MEASURED, "linear_cross_entropy")
OPS = (*FUNCTIONS, "parallel")
MODULES = ("softkern.functional", "softkern.row_losses", "softkern.linear_losses")
BLOCKS = ("docstring", "dtypes", "guards", "errors", "cost")
FOLDERS = ("docs", "csrc", "examples", "benchmarks")
PAGES = [*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))]
RESULTS = ROOT / "benchmarks" / "results"  # not in an sdist


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        yield importlib.import_module("write_docs")


def page(op: str) -> str:
    return (DOCS / f"{op}.md").read_text(encoding="utf-8")


def test_every_function_has_a_page(tool: ModuleType) -> None:
    public = [getattr(softkern, name) for name in softkern.__all__]
    ops = [f.__name__ for f in public if inspect.isfunction(f) and f.__module__ in MODULES]
    assert set(ops) == set(FUNCTIONS) and set(OPS) == set(tool.OPS)
    assert tuple(tool.BLOCKS) == BLOCKS


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("op", OPS)
def test_page_is_current(tool: ModuleType, op: str, block: str) -> None:
    """If not: python tools/write_docs.py."""
    if block not in tool.blocks_of(op):
        assert block == "cost" or op not in MEASURED
        assert f"<!-- {block}: " not in page(op)
        return
    stated = re.search(r"as of torch (\S+)\.$", page(op), re.MULTILINE)
    assert stated
    if block in ("dtypes", "guards") and stated[1] != tool.torch_minor():
        pytest.skip(f"exceptions and their texts on the page are those of torch {stated[1]}")
    assert tool.written(page(op), op, [block]) == page(op)


@pytest.mark.parametrize("op", OPS)
def test_a_changed_docstring_is_noticed(tool: ModuleType, op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function = tool.OPS[op]
    monkeypatch.setattr(function, "__doc__", function.__doc__.replace("Error: ", "Error: less than before, "))
    assert tool.written(page(op), op, ["docstring"]) != page(op)


@pytest.mark.parametrize("op", MEASURED)
def test_a_new_measurement_is_noticed(tool: ModuleType, op: str, monkeypatch, tmp_path: Path) -> None:
    measured = json.loads((DOCS / "accuracy.json").read_text(encoding="utf-8"))
    for row in (*measured["rows"], *measured["options"]["rows"]):
        row["softkern"] += row["op"] == op
    (tmp_path / "accuracy.json").write_text(json.dumps(measured))
    monkeypatch.setattr(tool, "DOCS", tmp_path)
    assert tool.written(page(op), op, ["errors"]) != page(op)


def test_the_signature_of_cross_entropy_names_all_options(tool: ModuleType) -> None:
    shown = tool.signature(softkern.cross_entropy)
    for name in inspect.signature(softkern.cross_entropy).parameters:
        assert f"\n    {name}: " in shown
    assert "options" not in shown


def test_markup_of_docstrings(tool: ModuleType) -> None:
    assert tool.markdown("``F.x`` of :math:`a_c` (``docs/a.md``)") == "`F.x` of $`a_c`$ ([a.md](a.md))"
    assert tool.section(".. math:: a,\n          b") == "```math\na, b\n```"
    assert tool.section("Args:\n    a, b: one\n        two.\n    c: three.").splitlines()[2:] == [
        "| `a`, `b` | one two. |",
        "| `c` | three. |",
    ]
    assert tool.section("Memory: none,\nor one.") == "**Memory:** none, or one."
    with pytest.raises(ValueError, match="no `name: text`"):
        tool.section("Raises:\n    nothing at all")


def test_markers_have_to_be_there_once(tool: ModuleType) -> None:
    with pytest.raises(ValueError, match="markers of 'errors' once"):
        tool.written(page("softmax") * 2, "softmax", ["errors"])


def test_a_guard_that_no_longer_raises_is_noticed(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tool.GUARDS, "softmax", ("softkern.softmax(torch.zeros(2, 3), dim=1)",))
    with pytest.raises(AssertionError, match="raised nothing"):
        tool.guard_block("softmax")


def dead_links(path: Path, text: str) -> list[str]:
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    targets = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)}
    files = [path.parent / target for target in targets if target and "://" not in target]
    return [str(f) for f in files if not f.exists() and (RESULTS.is_dir() or RESULTS not in f.parents)]


@pytest.mark.parametrize("path", sorted(PAGES), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    assert dead_links(path, path.read_text(encoding="utf-8")) == []


def test_a_dead_link_is_noticed() -> None:
    here = DOCS / "softmax.md"
    text = "[a](softmax.md#errors) [b](#errors) [c](https://example.org/x) [d](nowhere.md)"
    assert dead_links(here, text) == [str(DOCS / "nowhere.md")]
