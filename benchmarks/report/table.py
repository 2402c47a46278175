# SPDX-License-Identifier: Apache-2.0
"""The results as tables for terminals of 120 columns or more."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.report import (
    MIB,
    MOST_TIMES_PLAIN,
    cell_of,
    duration,
    extra_memory,
    gflops,
    grouped,
    huge_page_mode,
    is_ok,
    multiple_of_input,
    number,
    shape_label,
    unit_of,
    worst_error,
)
from benchmarks.results import Results, Row

HEADER = (
    "device",
    "cpu",
    "threads",
    "cpus",
    "caches",
    "memory",
    "governor",
    "load",
    "steal percent",
    "hypervisor",
)
VERSIONS = ("torch", "softkern", "active on cpu", "commit")
GREEN, RED = 1.05, 0.95


def render(results: Results, console: Console) -> None:
    """Print the whole results file, except the samples."""
    _header(results, console)
    for (op,), of_op in grouped(results["rows"], "op").items():
        console.print()
        console.rule(Text(op, "bold"), align="left")
        for names, rows in grouped(of_op, "op", "pass_name", "dtype", "option", "inputs").items():
            console.print(Text("\n" + ", ".join(name for name in names if name), "bold"))
            console.print(_table(rows))
            for row in rows:
                if not is_ok(row):
                    console.print(_note(row))
    for title, lines in (("Left out", _left_out(results)), ("Absent", _absent(results))):
        if lines:
            console.print(Text(f"\n{title}", "bold"))
            for line in lines:
                console.print(Text(f"  {line}"))


def _header(results: Results, console: Console) -> None:
    environment = results["environment"]
    grid = Table.grid(padding=(0, 2))
    for name in (*HEADER, *VERSIONS):
        if name in environment:
            grid.add_row(Text(name, "dim"), Text(environment[name]))
    grid.add_row(Text("huge pages", "dim"), Text(huge_page_mode(environment)))
    grid.add_row(Text("measured", "dim"), Text(f"{results['started']} to {results['finished']}"))
    console.print(grid)
    for warning in results["warnings"]:
        console.print(Text(f"warning: {warning}", "yellow"))
    if results["interrupted"]:
        console.print(Text("interrupted: the cells below are those finished before", "yellow"))
    if results["bandwidth"]:
        console.print(_bandwidth(results["bandwidth"]))


def _bandwidth(rows: Sequence[Row]) -> Table:
    kinds = list(dict.fromkeys(row["what"] for row in rows))
    table = Table("threads", box=box.SIMPLE_HEAD, pad_edge=False)
    for kind in kinds:
        table.add_column(f"{kind}, GB/s", justify="right")
    for (threads,), of_threads in grouped(rows, "threads").items():
        found = {row["what"]: number(row["gbps"]) for row in of_threads}
        table.add_row(str(threads), *(found.get(kind, "") for kind in kinds))
    return table


def _table(rows: Sequence[Row]) -> Table:
    plain = any("times_plain" in row for row in rows)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    for name in ("shape", "regime", "thr", "provider"):
        table.add_column(name, overflow="fold")
    products = any(row.get("flops") for row in rows)
    speeds = ("GFLOP/s",) if products else ("GB/s", "copy")
    figures = (*speeds, "error", "peak\nMiB", "peak\nN x C", "faults")
    for name in ("time", "20-80 %", "ratio", *(["times\nplain"] if plain else []), *figures):
        table.add_column(name, justify="right", no_wrap=True)
    for of_cell in grouped(rows, "cell").values():
        table.add_section()
        shape = shape_label(cell_of(of_cell[0]))
        for of_round in grouped(of_cell, "regime", "threads").values():
            where = (of_round[0]["regime"], str(of_round[0]["threads"]))
            for row in of_round:
                table.add_row(*map(Text, (shape, *where, row["provider"])), *_values(row, plain))
                shape, where = "", ("", "")
    return table


def _values(row: Row, plain: bool) -> list[Text]:
    """`plain`: whether the table has the column "times plain"."""
    if not is_ok(row):
        return [Text(row["status"], "red")]
    scale, _ = unit_of(row["median"])
    spread = f"{number(row['q20'] * scale)}-{number(row['q80'] * scale)}"
    percent, peak, multiple = row.get("copy_percent"), extra_memory(row), multiple_of_input(row)
    of_products = gflops(row)
    speeds = (
        (number(row["gbps"]) if row.get("bytes") else "", "" if percent is None else f"{percent:.0f} %")
        if of_products is None
        else (number(of_products),)
    )
    faults, error = row.get("faults"), worst_error(row)
    return [
        Text(duration(row["median"])),
        Text(spread, "dim"),
        _ratio(row),
        *([_times_plain(row)] if plain else []),
        *map(Text, speeds),
        Text("" if error is None else number(error) if error < 1000 else f"{error:.1e}"),
        Text("" if peak is None else number(peak / MIB)),
        Text("" if multiple is None else number(multiple)),
        Text("" if faults is None else f"{faults:,.0f}"),
    ]


def _ratio(row: Row) -> Text:
    ratio = row.get("ratio")
    if row["provider"] == row.get("baseline"):
        return Text("1.00")
    if ratio is None:
        return Text("")
    return Text(number(ratio), "green" if ratio > GREEN else "red" if ratio < RED else "")


def _times_plain(row: Row) -> Text:
    times = row.get("times_plain")
    return Text("" if times is None else number(times), "red" if times and times > MOST_TIMES_PLAIN else "")


def _note(row: Row) -> Text:
    cell = cell_of(row)
    where = " ".join(part for part in (shape_label(cell), cell.option, cell.inputs) if part)
    place = f"{where}, {row['regime']}, {row['threads']} thr, {row['provider']}"
    return Text(f"{place}: {row['status']}: {row['reason']}", "red")


def _left_out(results: Results) -> list[str]:
    return [f"{x['provider']}: {x['reason']} ({x['cells']} cells)" for x in results["left_out"]]


def _absent(results: Results) -> list[str]:
    return [f"{x['provider']}: {x['reason']}" for x in results["absent"]]
