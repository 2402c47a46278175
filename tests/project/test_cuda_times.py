# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/cuda.md are those of the committed figures and predictions."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import pytest
from places import ROOT
from places import tool as load

pytestmark = pytest.mark.skipif(not (ROOT / "tools").is_dir(), reason="no tools beside these tests")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load("cuda_times")


def committed(tool: ModuleType) -> tuple[str, Any, Any]:
    """The page, the figures and the predictions."""
    files = (tool.FIGURES, tool.PREDICTIONS)
    return (
        tool.PAGE.read_text(encoding="utf-8"),
        *(json.loads(f.read_text(encoding="utf-8")) for f in files),
    )


def cell(op: str, shape: list[int], microseconds: float, **fields: Any) -> dict[str, Any]:
    return {"op": op, "dtype": "float32", "shape": shape, "microseconds": microseconds, **fields}


def times(*lines: dict[str, Any], device: str = "A GPU") -> dict[str, Any]:
    """The results of the step `times` of tools/gpu_run.py."""
    head = {"device": device, "cuda": 13000, "dtype": "float32"}
    about = {"commit": "1234567", "started": "2027-01-02T03:04:05Z"}
    return {"about": about, "lines": [head, *lines, {"dtype": "float32", "cells": len(lines), "left": 0}]}


SMOOTHED = "cross_entropy with gradient, label smoothing"
RUN = times(
    cell("softmax", [2048, 32000], 200, way="block", bytes=800, copy_microseconds=180, percent=90.0),
    cell(SMOOTHED, [2048, 32000], 300, way="block", bytes=8, copy_microseconds=240, percent=80.0),
    cell("softmax", [64, 1000, 196], 50, way="columns", bytes=8, copy_microseconds=20, percent=40.0),
    {"op": "softmax", "dtype": "float32", "shape": [1, 2], "error": "no launch"},
)


def test_the_tables_are_current(tool: ModuleType) -> None:
    """If not: python tools/cuda_times.py."""
    page, figures, predictions = committed(tool)
    assert tool.written(page, figures, predictions) == page
    assert tool.written(page, [{**figures[0], "device": "another"}, *figures[1:]], predictions) != page
    assert tool.written(page, figures, [{**predictions[0], "predicted": 1}, *predictions[1:]]) != page
    assert tool.as_json(figures) == tool.FIGURES.read_text(encoding="utf-8")


def test_the_first_figures_stay(tool: ModuleType) -> None:
    _, figures, _ = committed(tool)
    first = figures[-1]
    assert (first["commit"], first["device"], first["measured"]) == ("6f8b78d", "NVIDIA H200", "2026-11-26")
    text = tool.table(first)
    assert "NVIDIA H200, CUDA 13.0, 2026-11-26, commit 6f8b78d" in text
    # Their copy moved the logits twice: a loss has half of that to do, a backward one and a half.
    assert "| bfloat16 | 4096x128256 | 758 (72) | 709 (77) | 803 (102) | 909 (30) | 1,244 (44) |" in text


def test_a_run_becomes_a_measurement(tool: ModuleType) -> None:
    found = tool.of_run(RUN)
    assert (found["commit"], found["measured"], found["device"]) == ("1234567", "2027-01-02", "A GPU")
    assert len(found["rows"]) == 3  # a call that failed has no time
    text = tool.table(found)
    assert "A GPU, CUDA 13.0, 2027-01-02, commit 1234567" in text
    assert "| float32 | 2048x32000 | 200 (90) |" in text
    assert f"| {SMOOTHED} | float32 | 2048x32000 | 300.0 | 80 |" in text
    assert "| softmax | float32 | 64x1000x196 | 50.0 | 40 |" in text


def test_the_newest_measurement_comes_first_and_replaces_its_own_commit(tool: ModuleType) -> None:
    _, figures, _ = committed(tool)
    once = tool.with_run(figures, tool.of_run(RUN))
    assert [each["commit"] for each in once] == ["1234567", *(each["commit"] for each in figures)]
    assert tool.with_run(once, tool.of_run(RUN)) == once
    assert json.loads(tool.as_json(once)) == once


def test_what_the_emulator_took_is_no_figure(tool: ModuleType) -> None:
    with pytest.raises(SystemExit, match="no figures of a GPU"):
        tool.of_run(times(cell("softmax", [2, 3], 1), device="emulated"))
    with pytest.raises(SystemExit, match="no figures of a GPU"):
        tool.of_run({"about": RUN["about"], "lines": []})


def test_predictions_stand_beside_measurements(tool: ModuleType) -> None:
    _, figures, _ = committed(tool)
    runs = tool.with_run(figures, tool.of_run(RUN))
    beside = {"before": "57-62", "predicted": 91, "target": None, "because": "of this"}
    here = {"op": SMOOTHED, "dtype": "float32", "shape": [2048, 32000], **beside}
    earlier = {"op": "softmax", "dtype": "float32", "shape": [4096, 32000], **beside}
    nowhere = {**here, "dtype": "bfloat16"}
    text = tool.predictions_table([here, earlier, nowhere], runs)
    assert f"| {SMOOTHED}, float32, 2048x32000 | 57-62 | 91 | 80 |  | of this |" in text
    assert "| softmax, float32, 4096x32000 | 57-62 | 91 | 88 at 6f8b78d |  | of this |" in text
    assert f"| {SMOOTHED}, bfloat16, 2048x32000 | 57-62 | 91 | no GPU yet |  | of this |" in text


def test_predictions_are_of_cells_that_a_run_has(tool: ModuleType) -> None:
    """As tools/cuda/cells.cpp names them."""
    source = (ROOT / "tools/cuda/cells.cpp").read_text(encoding="utf-8")
    _, _, predictions = committed(tool)
    rows = [int(number) for number in ("2048", "1000000", "64", "4")]
    for each in predictions:
        assert f'"{each["op"].removesuffix(" backward")}"' in source, each["op"]
        assert each["shape"][0] in rows and each["dtype"] in ("bfloat16", "float32")
        *_, last = each["shape"] if len(each["shape"]) == 2 else each["shape"][:2]
        assert str(last) in source, each["shape"]
