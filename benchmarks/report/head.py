# SPDX-License-Identifier: Apache-2.0
"""The table of the head of a language model: every provider's time, memory and error."""

from __future__ import annotations

from benchmarks.cells import HEAD_OP
from benchmarks.report import (
    MIB,
    cell_of,
    duration,
    extra_memory,
    gflops,
    has_ratio,
    is_ok,
    number,
    shape_label,
)
from benchmarks.results import Row

TITLE = (
    "The head of a language model, N x H x V (times as fast: as torch's two calls; GFLOP/s: of the products "
    "that the work needs; memory: peak beside inputs and gradients, in MiB and in units of the N x V logits; "
    "errors: in eps of the dtype, relative to the loss and to the largest entry of a gradient's row):"
)
COLUMNS = (
    *("pass, dtype, shape", "provider", "time", "times as fast", "GFLOP/s", "memory, MiB", "N x V"),
    *("error, loss", "gradients"),
)


def table(cells: list[list[Row]]) -> list[str]:
    """Title and table, if softkern has a time for one of these cells."""
    heads = sorted((rows for rows in cells if rows[0]["op"] == HEAD_OP), key=_place)
    lines = [line for rows in heads for line in _lines(rows)]
    if not lines:
        return []
    head = [TITLE, "", f"| {' | '.join(COLUMNS)} |", "|---|---|---:|---:|---:|---:|---:|---:|---:|"]
    return [*head, *lines, ""]


def _place(rows: list[Row]) -> tuple[int, str, str]:
    cell = cell_of(rows[0])
    return cell.elements, cell.dtype, cell.pass_name


def _lines(rows: list[Row]) -> list[str]:
    """A cell's lines; its name stands in the first. Empty if softkern has no time for it, with any plan."""
    if not any(row["provider"].partition(":")[0] == "softkern" and is_ok(row) for row in rows):
        return []
    cell = cell_of(rows[0])
    named = [f"{cell.pass_name} {cell.dtype} {shape_label(cell)}", *[""] * (len(rows) - 1)]
    return [f"| {' | '.join((name, *_values(row)))} |" for name, row in zip(named, rows, strict=True)]


def _values(row: Row) -> list[str]:
    if not is_ok(row):
        return [row["provider"], row["status"], *[""] * 6]
    memory, errors = extra_memory(row), row["error"]
    ours = "**" if row["provider"] == "softkern" else ""
    return [
        row["provider"],
        duration(row["median"]),
        f"{ours}{row['ratio']:.2f}{ours}" if has_ratio(row) else "",
        number(gflops(row) or 0.0),
        "" if memory is None else number(memory / MIB),
        "" if memory is None else f"{memory / cell_of(row).input_bytes:.2f}",
        _error([errors.get("output")]),
        _error([error for name, error in errors.items() if name != "output"]),
    ]


def _error(found: list[float | None]) -> str:
    known = [error for error in found if error is not None]
    return number(max(known)) if known else ""
