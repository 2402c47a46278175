# SPDX-License-Identifier: Apache-2.0
"""The first lines of the README: one claim, and five cells with time, memory and error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.report import JOBS, compared, duration, grouped, has_ratio, headline, multiple_of_input
from benchmarks.results import BadResults, Results, Row

Errors = list[dict[str, Any]]

ERRORS = "docs/accuracy.json"  # beside the README
# Cells, each with the logits in docs/accuracy.json that have as many classes.
SHOWN = {
    "cross_entropy/forward+backward/float32/65536x10": "N(0, 10), C = 10",
    "cross_entropy/forward+backward/float32/4096x1000": "N(0, 10), C = 1000",
    "cross_entropy/forward+backward/float32/2048x32000": "N(0, 5), C = 32000",
    "softmax/no-grad/float32/4096x1000": "N(0, 10), C = 1000",
    "softmax/no-grad/float32/2048x32000": "N(0, 5), C = 32000",
}
CLAIMED = "cross_entropy/forward+backward/float32/2048x32000"
NAMES = {"cross_entropy": "`cross_entropy` and its gradient", "softmax": "`softmax`"}
HEADER = """\
| float32, CPU | torch | softkern | times as fast | memory: torch | softkern | worst error: torch | softkern |
|---|---:|---:|---:|---:|---:|---:|---:|"""


def read_errors(readme: Path) -> Errors:
    rows: Errors = json.loads((readme.parent / ERRORS).read_text(encoding="utf-8"))["rows"]
    return rows


def block(results: Results, source: str, errors: Errors) -> str:
    """The claim, the table and its caption."""
    cells = {name: _pair(results, source, name) for name in SHOWN}
    lines = [_line(torch, ours, _worst(errors, name)) for name, (torch, ours) in cells.items()]
    claim = _claim(*cells[CLAIMED], _worst(errors, CLAIMED))
    return "\n".join([claim, "", HEADER, *lines, "", _caption(results), "", _limits(results), ""])


def _pair(results: Results, source: str, cell: str) -> tuple[Row, Row]:
    """The rows of torch and of softkern."""
    rows = grouped(headline(results), "cell").get((cell,), [])
    by_provider = {row["provider"]: row for row in rows if has_ratio(row)}
    if not {"torch", "softkern"} <= set(by_provider):
        raise BadResults(f"{source}: the README shows {cell}, which has no times of torch and softkern there")
    return by_provider["torch"], by_provider["softkern"]


def _worst(errors: Errors, cell: str) -> dict[str, float]:
    """The larger error of the result and, after a backward, of its gradient."""
    op, pass_name, dtype, _ = cell.split("/")
    ops = (op, f"{op} gradient") if pass_name == "forward+backward" else (op,)
    key = (dtype, SHOWN[cell])
    found = [row for row in errors if row["op"] in ops and (row["dtype"], row["input"]) == key]
    return {name: max(row[name] for row in found) for name in ("torch", "softkern")}


def _claim(torch: Row, ours: Row, worst: dict[str, float]) -> str:
    shape = " x ".join(f"{size:,}" for size in ours["shape"])
    return (
        f"**Loss and gradient of {shape} logits on a CPU: {duration(ours['median'])} instead of "
        f"{duration(torch['median'])}, {ours['ratio']:.0f} times as fast as torch; {_memory(ours)} instead "
        f"of {_memory(torch)} times the memory of the logits; a worst error of {worst['softkern']:.1f} "
        f"instead of {worst['torch']:,.0f} ulp.**"
    )


def _line(torch: Row, ours: Row, worst: dict[str, float]) -> str:
    shape = " x ".join(f"{size:,}" for size in ours["shape"])
    values = (
        f"{NAMES[ours['op']]}, {shape}",
        duration(torch["median"]),
        duration(ours["median"]),
        f"**{ours['ratio']:.1f}**",
        _memory(torch),
        _memory(ours),
        f"{worst['torch']:,.0f} ulp",
        f"**{worst['softkern']:.1f} ulp**",
    )
    return f"| {' | '.join(values)} |"


def _memory(row: Row) -> str:
    multiple = multiple_of_input(row)
    assert multiple is not None
    return f"{multiple:.1f}"


def _caption(results: Results) -> str:
    where = results["environment"]
    return (
        f"{where['cpu']}, {headline(results)[0]['threads']} threads, {where['active on cpu']}, "
        f"torch {where['torch']}. Memory: peak above the inputs, in units of the logits. Error: largest "
        "distance from the float64 answer, in units in the last place of float32 (ulp), for logits N(0, 10) "
        "and, with 32,000 classes, N(0, 5)."
    )


def _limits(results: Results) -> str:
    """How often softkern is slower, and how little whole training jobs gain."""
    ours, slower = compared(results)
    jobs = [row["ratio"] for row in ours if row["pass_name"] in JOBS]
    gain = f"; whole training jobs are {min(jobs):.2f} to {max(jobs):.2f} times as fast" if jobs else ""
    return f"softkern is slower than torch in {len(slower)} of these {len(ours)} measurements{gain}."
