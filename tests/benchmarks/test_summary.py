# SPDX-License-Identifier: Apache-2.0
"""The README's first table and its picture, made from a results file; and the order of plots."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from benchmark_rows import MS, results_of, row, torch_row

from benchmarks import results as results_file
from benchmarks.report import plots, readme, six_shapes, summary


def fields_of(cell: str) -> dict[str, Any]:
    op, pass_name, dtype, shape, *dim = cell.split("/")
    made = {"op": op, "pass_name": pass_name, "dtype": dtype, "shape": [int(n) for n in shape.split("x")]}
    return made | {"cell": cell, "dim": 1 if dim else -1}


def results_with(cells: tuple[str, ...]) -> dict[str, Any]:
    """softkern takes 0.5 ms, jax 1 ms and numpy 4 ms where torch takes 2 ms."""
    rows = []
    for cell in cells:
        made = fields_of(cell)
        rows += [torch_row(**made), row(time=0.5 * MS, **made), row("jax", 1 * MS, **made)]
        rows += [row("numpy", 4 * MS, **made), row("softkern:avx2", 0.4 * MS, **made)]
    return results_of(*rows)


def errors() -> list[dict[str, Any]]:
    made = []
    for logits in dict.fromkeys(summary.SHOWN.values()):
        for op, torch, ours in (
            ("softmax", 60, 1),
            ("cross_entropy", 4000, 2),
            ("cross_entropy gradient", 500, 3),
        ):
            made.append({"op": op, "dtype": "float32", "input": logits, "torch": torch, "softkern": ours})
    return made


def test_summary_has_time_memory_and_error() -> None:
    text = summary.block(results_with(tuple(summary.SHOWN)), "r.json", errors())
    claim, *lines = text.splitlines()
    assert claim.startswith(
        "**Loss and gradient of 2,048 x 32,000 logits on a CPU: 500 us instead of 2.00 ms, 4 times"
    )
    assert claim.endswith("a worst error of 3.0 instead of 4,000 ulp.**")
    rows = [line for line in lines if line.startswith("| `")]
    times = "2.00 ms | 500 us | **4.0** | 1.0 | 1.0"
    assert rows[0] == f"| `cross_entropy` and its gradient, 65,536 x 10 | {times} | 4,000 ulp | **3.0 ulp** |"
    assert rows[-1] == f"| `softmax`, 2,048 x 32,000 | {times} | 60 ulp | **1.0 ulp** |"
    assert len(rows) == 5 and "Some CPU, 2 threads, avx512, torch 2.13.0" in text
    assert lines[-1] == "softkern is slower than torch in 0 of these 5 measurements."


def test_summary_says_where_softkern_gains_little() -> None:
    results = results_with(tuple(summary.SHOWN))
    job = {"op": "zoo", "pass_name": "epoch", "shape": []}
    results["rows"] += [row(ratio=ratio, **job) for ratio in (1.03, 1.15)]
    results["rows"] += [row(shape=[7, 7], ratio=0.98), row(shape=[7, 7], ratio=0.996)]
    last = summary.block(results, "r.json", errors()).splitlines()[-1]
    assert last == (
        "softkern is slower than torch in 1 of these 9 measurements; "
        "whole training jobs are 1.03 to 1.15 times as fast."
    )


def test_summary_needs_all_its_cells() -> None:
    _, *others = summary.SHOWN
    with pytest.raises(ValueError, match="65536x10, which has no times"):
        summary.block(results_with(tuple(others)), "r.json", errors())


def test_update_keeps_the_summary_of_a_page(tmp_path: Path) -> None:
    page, source = tmp_path / "README.md", tmp_path / "r.json"
    page.write_text("head\n<!-- summary: begin r.json -->\nold\n<!-- summary: end -->\ntail\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / summary.ERRORS).write_text(json.dumps({"rows": errors()}))
    results_file.write(results_with(tuple(summary.SHOWN)), source)
    assert not readme.current(page)
    readme.update(page, source)
    assert readme.current(page) and "**3.0 ulp** |" in page.read_text()
    page.write_text(page.read_text().replace("**3.0 ulp** |", "**2.0 ulp** |"))
    assert not readme.current(page)


def test_update_finds_the_block_of_the_same_file_among_namesakes(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    names = ("a/cpu.json", "b/cpu.json")
    page.write_text("".join(f"<!-- benchmarks: begin {n} -->\n<!-- benchmarks: end -->\n" for n in names))
    for name, time in zip(names, (1 * MS, 0.5 * MS), strict=True):
        results_file.write(results_of(torch_row(), row(time=time)), tmp_path / name)
    for name in reversed(names):
        readme.update(page, tmp_path / name)
    assert readme.current(page)
    assert page.read_text().index("**2.00**") < page.read_text().index("**4.00**")


def test_six_shapes_are_drawn_for_both_themes(tmp_path: Path) -> None:
    results = results_with(six_shapes.CELLS)
    for name in "ab":
        (tmp_path / name).mkdir()
    light, dark = six_shapes.write(results, tmp_path / "a")
    assert [path.read_bytes() for path in six_shapes.write(results, tmp_path / "b")] == [
        light.read_bytes(),
        dark.read_bytes(),
    ]
    texts = re.findall(r">([^<>]+)</text>", light.read_text(encoding="utf-8"))
    assert texts == re.findall(r">([^<>]+)</text>", dark.read_text(encoding="utf-8"))
    assert [texts.count(text) for text in ("softkern 4.0 x", "jax 2.0 x", "2.00 ms → 500 us")] == [6, 6, 6]
    assert not any("numpy" in text or "avx2" in text for text in texts)
    for path, ink in zip((light, dark), six_shapes.INK.values(), strict=True):
        colours = set(re.findall(r"#[0-9a-f]{6}", path.read_text()))
        assert ink in colours and not {"#ffffff", "#000000"} & colours


def test_five_shapes_are_no_picture(tmp_path: Path) -> None:
    assert six_shapes.write(results_with(six_shapes.CELLS[1:]), tmp_path) == []


def test_speedups_end_with_whole_jobs_and_leave_portable_out(tmp_path: Path) -> None:
    job = {"op": "zoo", "pass_name": "epoch", "shape": []}
    rows = [
        row(time=time, **job) | {"provider": p} for p, time in (("torch", 2 * MS), ("softkern", 1.9 * MS))
    ]
    rows += [torch_row(), row(), row("softkern:portable", 60 * MS), row("numpy", 100 * MS)]
    speedup = plots.write(results_of(*rows), tmp_path)[0].read_text()
    assert speedup.index(">softmax, no-grad<") < speedup.index(">whole jobs<")
    assert "portable" not in speedup and ">numpy<" in speedup
    assert ">0.2<" in speedup and ">0.1<" not in speedup
