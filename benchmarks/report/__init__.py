# SPDX-License-Identifier: Apache-2.0
"""Views of a results file: terminal tables, CSV, plots, Markdown. This file holds what they share."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from benchmarks.cells import Cell
from benchmarks.results import CAPTURED, Results, Row

MIB = 1 << 20
JOBS = ("epoch", "step")  # the passes of whole training jobs
MOST_TIMES_PLAIN = 1.1  # above it, masked logits cost more than the spread of the measurements
ORDER = ("cross_entropy", "softmax", "log_softmax")  # of the ops in summaries; whole jobs come last


def cell_of(row: Row) -> Cell:
    names = ("op", "pass_name", "dtype", "shape", "dim", "option", "inputs", "device")
    return Cell.from_dict({name: _field(row, name) for name in names})


def _field(row: Row, name: str) -> Any:
    if name == "inputs":
        return row.get(name, "")  # older files have only plain logits
    return tuple(row[name]) if name == "shape" else row[name]  # JSON has lists


def shape_label(cell: Cell) -> str:
    """The shape, and the dimension if it is not the last one."""
    return cell.shape_text if cell.last_dim else f"{cell.shape_text} dim {cell.dim}"


def is_ok(row: Row) -> bool:
    return bool(row["status"] == "ok")


def grouped(rows: Iterable[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """Groups of rows that agree in these fields, in the order of their first rows."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(_field(row, name) for name in names), []).append(row)
    return groups


def in_order(op: str) -> int:
    return (*ORDER, op).index(op)


def headline(results: Results) -> list[Row]:
    """The rows in the default regime with the largest number of threads, as users run the ops."""
    rows = [row for row in results["rows"] if row["regime"] == "default"]
    most = max((row["threads"] for row in rows), default=0)
    return [row for row in rows if row["threads"] == most]


def baseline(results: Results) -> str | None:
    """The provider that most rows are compared with; where it failed, a row has another one."""
    names = Counter(row["baseline"] for row in results["rows"] if is_ok(row))
    return names.most_common(1)[0][0] if names else None


def extra_memory(row: Row) -> int | None:
    """Bytes of the peak above the inputs, and above the gradients of a head. None if there is no peak, or if
    a CUDA graph had allocated the memory before."""
    peak = None if row.get("how") == CAPTURED else row.get("peak_bytes")
    return None if peak is None else max(0, peak - row.get("result_bytes", 0))


def multiple_of_input(row: Row) -> float | None:
    """`extra_memory` in units of the N x C logits; None if there are no logits."""
    size, extra = cell_of(row).input_bytes, extra_memory(row)
    return extra / size if size and extra is not None else None


def gflops(row: Row) -> float | None:
    """Of the products of a head, for a second."""
    return row["flops"] / row["median"] / 1e9 if row.get("flops") else None


def has_ratio(row: Row) -> bool:
    """False where torch failed and the ratio is against another provider."""
    return is_ok(row) and bool(row["baseline"] == "torch")


def compared(results: Results) -> tuple[list[Row], list[Row]]:
    """softkern's rows with a ratio, and those of them that are slower than torch. A ratio that is printed as
    1.00 is not slower."""
    ours = [row for row in results["rows"] if row["provider"] == "softkern" and has_ratio(row)]
    return ours, [row for row in ours if row["ratio"] < 0.995]


def is_peer(row: Row) -> bool:
    """Neither torch nor softkern, in none of their variants."""
    return re.split("[:#]", row["provider"])[0] not in ("torch", "softkern")


def best_peer(rows: Iterable[Row]) -> Row | None:
    """The fastest provider of a cell besides torch and softkern."""
    return max((r for r in rows if has_ratio(r) and is_peer(r)), key=lambda r: r["ratio"], default=None)


def worst_error(row: Row) -> float | None:
    errors = [error for error in (row.get("error") or {}).values() if error is not None]
    return max(errors, default=None)


def number(value: float) -> str:
    """Three digits, no exponent: 1.23, 12.3, 123."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"


def unit_of(seconds: float) -> tuple[float, str]:
    """The factor from seconds to a unit that fits, and the name of the unit."""
    return (1e6, "us") if seconds < 999.5e-6 else (1e3, "ms") if seconds < 999.5e-3 else (1.0, "s")


def duration(seconds: float) -> str:
    scale, unit = unit_of(seconds)
    return f"{number(seconds * scale)} {unit}"


def described(row: Row) -> str:
    """The cell in a line."""
    cell = cell_of(row)
    parts = (f"`{cell.op}`", cell.pass_name, cell.dtype, shape_label(cell), cell.option, cell.inputs)
    return " ".join(part for part in parts if part)


def time_text(row: Row | None) -> str:
    return "" if row is None else duration(row["median"]) if is_ok(row) else row["status"]


def memory_text(row: Row | None) -> str:
    multiple = None if row is None else multiple_of_input(row)
    return "" if multiple is None else f"{multiple:.2f}"


def huge_page_mode(environment: dict[str, str]) -> str:
    """The mode in use, which Linux marks with brackets: always [madvise] never."""
    text = environment.get("huge pages", "unknown")
    return text.partition("[")[2].partition("]")[0] or text
