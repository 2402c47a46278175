# SPDX-License-Identifier: Apache-2.0
"""docs/compatibility.md contains exactly the cells that the tests found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from compatibility import NONE, OPS, PAGE, committed, features, parse, render
from compatibility_plugin import marked
from places import TESTS
from watch import BOTH, FUSED, TORCH, Watch

import softkern

MARKED_FILES = {p for p in TESTS.rglob("test_*.py") if "mark.feature(" in p.read_text(encoding="utf-8")}


@pytest.fixture(autouse=True)
def _a_page_that_is_not_being_written(request):
    if request.config.getoption("--write-compatibility"):
        pytest.skip("the page is being written")


def test_the_page_is_the_one_that_is_written():
    """Nothing in it was typed by hand."""
    assert PAGE.read_text(encoding="utf-8") == render(committed())


def test_every_feature_has_a_row_with_a_cell():
    assert len(features()) == len(set(features()))
    assert {feature for feature, _ in committed()} == set(features())


def test_every_cell_has_a_test_and_every_test_a_cell(request):
    collected = {item.path for item in request.session.items}
    options = request.config.option
    if not (MARKED_FILES - {Path(__file__)}) <= collected or options.keyword or options.markexpr:
        pytest.skip("only a part of the suite was collected")
    with_watch = [i for i in request.session.items if "watch" in getattr(i, "fixturenames", ())]
    assert {pair for item in with_watch for pair in marked(item)} == set(committed())


def test_a_page_is_read_as_it_was_written():
    cells = {(feature, op): FUSED for feature in features() for op in OPS[1:]}
    assert parse(render(cells)) == cells
    assert NONE in render(cells)


X, Y = torch.randn(6, 10, requires_grad=True), torch.arange(6)


def test_the_watch_tells_kernels_from_torch():
    with (ours := Watch()):
        softkern.cross_entropy(X, Y).backward()
    assert ours.way == FUSED
    assert {"softkern::cross_entropy_forward", "softkern::cross_entropy_backward_"} <= ours.ops
    with (theirs := Watch()):
        F.softmax(X, 1)
    assert theirs.way == TORCH and not theirs.ops
    with ours:
        F.log_softmax(X, 1)
    assert ours.way == BOTH


def test_the_watch_does_not_take_nothing_for_something():
    with (watch := Watch()):
        X + 1
    with pytest.raises(AssertionError, match="nothing was computed"):
        _ = watch.way
    with watch:
        y = softkern.softmax(X.to("meta"), 1)
    watch.only_shapes(y)
    assert watch.way == "shapes"
    with watch:
        softkern.softmax(X, 1)
    with pytest.raises(AssertionError):
        watch.only_shapes(y)
