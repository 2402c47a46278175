# SPDX-License-Identifier: Apache-2.0
"""The report's table of what F lacks: an option beside the plain call, torch and the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmark_rows import MS, results_of, row, torch_row

from benchmarks import results as results_file
from benchmarks.cells import Cell
from benchmarks.report import own, plots, readme

LOSS = {"op": "cross_entropy", "pass_name": "forward+backward", "dim": 1, "main": False}
SELECTED = {"op": "selective_log_softmax", "option": "entropy", "shape": [8, 256, 32000], "main": False}


def option_rows(option: str, **fields: Any) -> list[dict[str, Any]]:
    """torch takes 2 ms, softkern 1 ms, without the option 0.8 ms, torch.compile 1.5 ms."""
    made = {**LOSS, "option": option, **fields}
    return [
        torch_row(**{"peak_bytes": 3 * 4096 * 4000, **made}),
        row(times_plain=1.25, **made),
        row("softkern:plain", 0.8 * MS, **made),
        row("torch-compile", 1.5 * MS, **made),
    ]


def selected_rows() -> list[dict[str, Any]]:
    return [torch_row(**SELECTED), row(**SELECTED), row("trl", 4 * MS, **SELECTED)]


def lines_of(*rows: dict[str, Any], short: bool = False) -> list[str]:
    text = readme.block(results_of(*rows), "r.json", short)
    assert text.count("\n|---|") == 1
    return [line for line in text.splitlines() if line.startswith("| `")]


@pytest.mark.parametrize("short", [False, True])
def test_an_option_stands_beside_the_plain_call_torch_and_the_others(short: bool) -> None:
    """In the order of the lists, whatever the order of the rows."""
    large = {"shape": [2048, 32000], "peak_bytes": None}
    rows = [*selected_rows(), *option_rows("z_loss", **large), *option_rows("stats"), *option_rows("softcap")]
    figures = "2.00 ms | 1.00 ms | **2.00** | torch-compile 1.50 | 800 us | **1.25**"
    loss, shape = "`cross_entropy` forward+backward float32", "8x256x32000"
    assert lines_of(*rows, short=short) == [
        f"| {loss} 4096x1000 softcap | {figures} | 3.00 | 1.00 |",
        f"| {loss} 4096x1000 stats | {figures} | 3.00 | 1.00 |",
        f"| {loss} 2048x32000 z_loss | {figures} |  |  |",
        f"| `selective_log_softmax` no-grad float32 {shape} entropy "
        "| 2.00 ms | 1.00 ms | **2.00** | trl 4.00 |  |  | 1.00 | 1.00 |",
    ]


def test_what_others_take_is_of_the_rounds_that_both_had() -> None:
    """A provider whose ratio is known takes no part in later rounds."""
    fast, slow = row(**SELECTED), row("trl", **SELECTED)
    fast["samples"], slow["samples"] = [1.0, 1.0, 2.0, 2.0, 2.0], [3.0, 4.0, 10.0]
    (line,) = lines_of(torch_row(**SELECTED), fast, slow)
    assert "| trl 4.00 |" in line


def test_who_failed_has_no_figures() -> None:
    torch, ours, plain, other = option_rows("softcap")
    failed = {"status": "failed", "reason": "killed"}
    ours.pop("times_plain")
    (line,) = lines_of(torch, ours, {**plain, **failed}, {**other, **failed})
    assert "| 2.00 ms | 1.00 ms | **2.00** |  | failed |  | 3.00 | 1.00 |" in line
    text = readme.block(results_of(torch, {**ours, **failed}), "r.json")
    assert own.TITLE not in text and "softcap (default, 2 threads): killed" in text


def test_the_other_tables_have_none_of_these_cells() -> None:
    """And what an option costs is not what masks cost."""
    ordinary = [torch_row(), row()]
    without = readme.block(results_of(*ordinary), "r.json")
    text = readme.block(results_of(*ordinary, *option_rows("softcap")), "r.json")
    assert own.TITLE not in without and text.count("\n|---|") == 2
    assert text.split(own.TITLE)[0] == without.split("Cells where")[0]
    assert "plain logits" not in text


def test_the_plain_call_is_no_speed_of_the_option(tmp_path: Path) -> None:
    speedup, *_ = plots.write(results_of(*option_rows("softcap")), tmp_path)
    text = speedup.read_text()
    assert "4096x1000 softcap" in text and ">torch-compile<" in text and "softkern:plain" not in text


def test_times_plain_is_of_the_rounds_that_both_had() -> None:
    cell = Cell("cross_entropy", "forward+backward", "float32", (4096, 1000), 1, "softcap")
    torch, ours, plain, other = option_rows("softcap")
    ours.pop("times_plain")
    ours["samples"], plain["samples"] = [3.0, 2.0, 9.0], [1.0, 1.0]
    rows = results_file.beside_plain([torch, ours, plain, other], cell, [])
    assert [r.get("times_plain") for r in rows] == [None, 2.5, None, None]
    del ours["times_plain"]
    lost = {"provider": "softkern:plain", "status": "failed"}
    for rows in ([torch, ours], [torch, ours, lost], [{**ours, "status": "refused"}, plain]):
        assert not any("times_plain" in r for r in results_file.beside_plain(rows, cell, []))
