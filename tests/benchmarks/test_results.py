# SPDX-License-Identifier: Apache-2.0
"""The benchmark's results file, and the comparison of two of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from benchmark_rows import MS, refused_row, results_of, row, torch_row
from rich.console import Console

from benchmarks import compare as comparison
from benchmarks import results as results_file

# The file


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    results = results_of(torch_row(), refused_row())
    results_file.write(results, tmp_path / "new folder" / "r.json")
    assert results_file.read(tmp_path / "new folder" / "r.json") == results


def test_a_write_that_is_cut_off_leaves_the_previous_file(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "r.json"
    results_file.write(results_of(torch_row()), path)
    before = path.read_text()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        results_file.write(results_of(), path)
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "No such file"), ("{", "not JSON"), ("[]", "schema None"), ('{"schema": 99}', "schema 99")],
)
def test_what_is_no_results_file_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "r.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(results_file.BadResults, match=message) as caught:
        results_file.read(path)
    assert str(path) in str(caught.value)


def test_summary_and_paired_ratio() -> None:
    assert results_file.summary([1, 2, 3, 4, 5, 6]) == {"median": 3.5, "q20": 2, "q80": 5}
    assert results_file.summary([4.0]) == {"median": 4, "q20": 4, "q80": 4}
    assert results_file.paired_ratio([2, 8, 9], [1, 2, 9]) == 2  # not the ratio of the medians, 4
    with pytest.raises(ValueError):
        results_file.paired_ratio([1, 2], [1])


def test_written_json_has_a_row_a_line(tmp_path: Path) -> None:
    """So that a diff of two results files shows which rows changed."""
    results_file.write(results_of(torch_row(), row()), tmp_path / "r.json")
    lines = (tmp_path / "r.json").read_text().splitlines()
    assert [json.loads(x.strip().rstrip(","))["provider"] for x in lines if x.startswith('  {"op"')] == [
        "torch",
        "softkern",
    ]


# Comparison


def kinds(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [change.kind for change in comparison.compare(results_of(old), results_of(new))]


def test_times_count_beyond_the_spread_only() -> None:
    assert kinds(row(), row(time=1.2 * MS)) == ["slower"]
    assert kinds(row(), row(time=0.8 * MS)) == ["faster"]
    assert kinds(row(), row(time=1.2 * MS, q20=1.0 * MS)) == []  # the intervals overlap
    assert kinds(row(), row(time=0.8 * MS, q80=1.0 * MS)) == []
    assert kinds(row(), row(time=1.04 * MS, q20=1.03 * MS)) == []  # apart, by less than 5 %


def test_failures_errors_and_memory_count() -> None:
    failed = row(status="failed", reason="killed")
    assert kinds(row(), failed) == ["broken"]
    assert kinds(failed, row()) == ["mended"]
    assert kinds(failed, failed) == []
    assert kinds(row(), row(error={"output": 1.5, "gradient": 5.5})) == ["error"]
    assert kinds(row(error={"output": 2.5}), row(error={"output": 4.5})) == []  # less than twice
    assert kinds(row(error={"output": 0.1}), row(error={"output": 0.9})) == []  # within one unit
    assert kinds(row(peak_bytes=20 << 20), row(peak_bytes=23 << 20)) == ["memory"]
    assert kinds(row(peak_bytes=20 << 20), row(peak_bytes=(21 << 20) + 512)) == []  # 5 %
    assert kinds(row(peak_bytes=0), row(peak_bytes=4096)) == []  # a page
    assert kinds(row(peak_bytes=None), row()) == []


def test_comparison_is_worst_first_and_names_what_it_left_out() -> None:
    cells = [{"shape": [n, 10]} for n in (1, 2, 3, 4)]
    old = results_of(*(row(**cell) for cell in cells), row("numpy"))
    new = results_of(
        row(time=0.5 * MS, **cells[0]),
        row(time=1.2 * MS, **cells[1]),
        row(time=3 * MS, **cells[2]),
        row(status="failed", reason="killed", **cells[3]),
    )
    new["environment"] = {**new["environment"], "torch": "2.14.0", "commit": "def5678"}
    changes = comparison.compare(old, new)
    assert [change.kind for change in changes] == ["broken", "slower", "slower", "faster"]
    assert [change.factor for change in changes] == [
        None,
        pytest.approx(3),
        pytest.approx(1.2),
        pytest.approx(2),
    ]
    console = Console(width=160, color_system=None)
    with console.capture() as capture:
        comparison.render(changes, old, new, console)
    text = capture.get()
    assert "4 rows in both, 1 only in the old, 0 only in the new" in text
    assert "the environments differ in torch: 2.13.0 -> 2.14.0" in text and "def5678" not in text
    assert "failed: killed" in text and "1.00 ms" in text and "3.00 ms" in text


def test_comparison_without_changes_says_so() -> None:
    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        comparison.render([], results_of(row()), results_of(row()), console)
    assert capture.get().split("\n")[:2] == [
        "1 rows in both, 0 only in the old, 0 only in the new",
        "no change beyond the spread",
    ]
