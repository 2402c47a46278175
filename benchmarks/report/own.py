# SPDX-License-Identifier: Apache-2.0
"""The table of what F lacks: softkern's own options beside the plain call, and its own ops."""

from __future__ import annotations

from benchmarks import options, results
from benchmarks.report import cell_of, described, has_ratio, in_order, is_ok, is_peer, memory_text, time_text
from benchmarks.results import Row

TITLE = (
    "What F lacks; in torch it is written out (times plain: time of softkern divided by its time without the "
    "option; others / softkern: their time divided by softkern's):"
)
COLUMNS = (
    *("op, pass, dtype, shape, option", "torch", "softkern", "torch / softkern", "others / softkern"),
    *("softkern without the option", "times plain", "memory, torch", "memory, softkern"),
)


def table(cells: list[list[Row]]) -> list[str]:
    """Title and table, if softkern has a time for one of these cells."""
    own = sorted((rows for rows in cells if options.is_own(cell_of(rows[0]))), key=_place)
    lines = [line for rows in own for line in _line(rows)]
    if not lines:
        return []
    head = [TITLE, "", f"| {' | '.join(COLUMNS)} |", "|---|---:|---:|---:|---|---:|---:|---:|---:|"]
    return [*head, *lines, ""]


def _place(rows: list[Row]) -> tuple[int, int, int]:
    """By op, size and option, in the order of the lists."""
    cell = cell_of(rows[0])
    return in_order(cell.op), cell.elements, (*options.OWN, cell.option).index(cell.option)


def _line(rows: list[Row]) -> list[str]:
    by_provider = {row["provider"]: row for row in rows}
    ours, torch, plain = (by_provider.get(name) for name in ("softkern", "torch", results.PLAIN))
    if ours is None or not is_ok(ours):
        return []
    times = ours.get("times_plain")
    others = [
        f"{row['provider']} {results.common_ratio(row['samples'], ours['samples']):.2f}"
        for row in rows
        if is_peer(row) and is_ok(row)
    ]
    values = (
        described(ours),
        time_text(torch),
        time_text(ours),
        f"**{ours['ratio']:.2f}**" if has_ratio(ours) else "",
        ", ".join(others),
        time_text(plain),
        "" if times is None else f"**{times:.2f}**",
        memory_text(torch),
        memory_text(ours),
    )
    return [f"| {' | '.join(values)} |"]
