# SPDX-License-Identifier: Apache-2.0
"""A report as text: drawn by rich if it is installed, otherwise aligned here."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from softkern.verify.case import NAMES, OPS, ROW_OPS
from softkern.verify.linear import QUANTITIES
from softkern.verify.report import Report, Row
from softkern.verify.rows import EXACT, STATISTICS

SHOWN = 20  # most failures that are printed; --json has all
LEGEND = (
    '"a of b": ulp of the answer, and the bound that softkern states; torch: in ulp too, on the same inputs\n'
    '"%": where none is stated, share of the bound that the terms and the error of torch itself give'
)


@dataclass(frozen=True)
class Table:
    """Cells of text; from the third column on they are numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def text(report: Report, *, rich: bool | None = None) -> str:
    """The output after a run; `rich`: whether to use it, by default if it is installed."""
    rich = find_spec("rich") is not None if rich is None else rich
    draw = _with_rich if rich else _plain
    env = report.environment
    head = f"softkern {env['softkern']}, torch {env['torch']}, {env['cpu']}; device {report.device}"
    parts = [head, draw(errors(report)), LEGEND, draw(groups(report))]
    parts += [f"not checked: {what}: {why}" for what, why in report.not_checked.items()]
    parts += _failures(report)
    return "\n\n".join((*parts, summary(report)))


def summary(report: Report) -> str:
    """One line."""
    failed = len(report.failures)
    verdict = f"{failed} FAILED" if failed else "all hold" if report.ok else "nothing was checked"
    return f"{report.checks} checks on {', '.join(report.backends)}: {verdict} ({report.seconds:.0f} s)"


def errors(report: Report) -> Table:
    """Worst error by backend, quantity and dtype."""
    quantities = [name for op in (*OPS, *ROW_OPS) for name in (op, f"{op} gradient")]
    quantities += QUANTITIES
    quantities += [name for name in STATISTICS if name not in EXACT]
    table = []
    for backend in report.backends:
        for quantity in quantities:
            rows = [r for r in report.rows if (r.backend, r.quantity) == (backend, quantity)]
            rows = [r for r in rows if r.share is not None]
            cells = [_cell([r for r in rows if r.dtype == dtype]) for dtype in NAMES]
            table.append([backend, quantity, *cells, _torch_cell(rows), *_count(rows)])
    return Table(["backend", "worst error", *NAMES, "torch, float32", "checks", ""], table)


def _cell(rows: list[Row]) -> str:
    shares = [r.share for r in rows if r.share is not None]
    measured = [r for r in rows if r.error is not None]
    if not shares:
        return "-"
    if math.isinf(max(shares)):
        return "wrong"
    if measured:
        return f"{max(r.error or 0.0 for r in measured):.2f} of {measured[0].stated:g}"
    return f"{100 * max(shares):.0f} %"


def _torch_cell(rows: list[Row]) -> str:
    """torch's worst error in ulp."""
    found = [r.torch_error for r in rows if r.dtype == "float32" and r.torch_error is not None]
    return f"{max(found):,.2f}" if found and max(found) < 1000 else f"{max(found):.1e}" if found else ""


def groups(report: Report) -> Table:
    """Checks by group; a column for each backend."""
    names = list(dict.fromkeys(r.group for r in report.rows))
    columns = [*report.backends, *(["torch"] if any(r.backend == "torch" for r in report.rows) else [])]
    table = []
    for group in names:
        cells = []
        for backend in columns:
            rows = [r for r in report.rows if (r.group, r.backend) == (group, backend)]
            cells.append(" ".join(_count(rows)) if rows else "-")
        table.append([group, "", *cells])
    return Table(["checks", "", *columns], table)


def _count(rows: list[Row]) -> tuple[str, str]:
    failed = sum(r.failed for r in rows)
    return str(sum(r.checks for r in rows)), f"{failed} FAILED" if failed else "ok"


def _failures(report: Report) -> list[str]:
    lines = [
        f"FAILED {f.group}, {f.quantity}, backend {f.backend}\n  {f.subject}\n  {f.why}"
        for f in report.failures[:SHOWN]
    ]
    if more := len(report.failures) - SHOWN:
        lines += [f"and {more} more FAILED; --json FILE lists them all"] if more > 0 else []
    if lines:
        lines.append("The tensors of a Case(...): softkern.verify.build(softkern.verify.Case(...))")
    return lines


def _plain(table: Table) -> str:
    widths = [max(map(len, column)) for column in zip(table.header, *table.rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            if width
        ).rstrip()
        for row in (table.header, *table.rows)
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _with_rich(table: Table) -> str:
    from rich import box
    from rich import table as rich_table
    from rich.console import Console
    from rich.text import Text

    drawn = rich_table.Table(box=box.SIMPLE_HEAD, pad_edge=False)
    used = [i for i in range(len(table.header)) if any(row[i] for row in (table.header, *table.rows))]
    for i in used:
        drawn.add_column(table.header[i], justify="left" if i < 2 else "right", no_wrap=True)
    for row in table.rows:
        drawn.add_row(
            *(Text(row[i], "bold red" if "FAILED" in row[i] or row[i] == "wrong" else "") for i in used)
        )
    colours = sys.stdout.isatty()
    console = Console(
        width=200, force_terminal=colours
    )  # wide enough for every table, because rich shortens cells that do not fit
    with console.capture() as capture:
        console.print(drawn)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n")
