# SPDX-License-Identifier: Apache-2.0
"""Changes between two results files that exceed the spread of the measurements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.report import MIB, duration, is_ok, number
from benchmarks.results import Results, Row, key

SAME_ENVIRONMENT = ("device", "cpu", "torch", "threads", "softkern", "huge pages")
# Worst first.
KINDS = ("broken", "error", "slower", "memory", "faster", "mended")
STYLES = {"faster": "green", "mended": "green"}
TIME_FACTOR = 1.05  # medians closer than this count as equal, even if their spread is narrow
ERROR_FACTOR, ERROR_UNITS = 2.0, 1.0
PEAK_FACTOR = 1.1
PEAK_BYTES = MIB  # smaller changes of the resident set have other causes


@dataclass(frozen=True)
class Change:
    """A row of both files that has changed; `factor` is the worse figure divided by the better one."""

    kind: str
    row: Row
    old: str
    new: str
    factor: float | None = None


def compare(old: Results, new: Results) -> list[Change]:
    """The changes of the rows that are in both files, worst first."""
    before = _by_key(old)
    changes = [
        change
        for name, row in _by_key(new).items()
        if name in before
        for change in _changes(before[name], row)
    ]
    return sorted(changes, key=lambda c: (KINDS.index(c.kind), -(c.factor or 0.0)))


def _by_key(results: Results) -> dict[tuple[Any, ...], Row]:
    return {key(row): row for row in results["rows"]}


def _changes(old: Row, new: Row) -> list[Change]:
    if not is_ok(old) or not is_ok(new):
        if is_ok(old) == is_ok(new):
            return []
        kind = "broken" if is_ok(old) else "mended"
        return [Change(kind, new, _status(old), _status(new))]
    return [*_time(old, new), *_error(old, new), *_memory(old, new)]


def _status(row: Row) -> str:
    return "ok" if is_ok(row) else f"{row['status']}: {row['reason']}"


def _time(old: Row, new: Row) -> list[Change]:
    kind, fast, slow = ("slower", old, new) if new["median"] > old["median"] else ("faster", new, old)
    factor = slow["median"] / fast["median"]
    if factor <= TIME_FACTOR or fast["q80"] >= slow["q20"]:
        return []
    return [Change(kind, new, duration(old["median"]), duration(new["median"]), factor)]


def _error(old: Row, new: Row) -> list[Change]:
    found = []
    for name, after in (new.get("error") or {}).items():
        before = (old.get("error") or {}).get(name)
        if before is None or after is None:
            continue
        if after > ERROR_FACTOR * before and after - before > ERROR_UNITS:
            factor = after / before if before else None
            found.append(
                Change("error", new, f"{name} {number(before)} eps", f"{name} {number(after)} eps", factor)
            )
    return found


def _memory(old: Row, new: Row) -> list[Change]:
    before, after = old.get("peak_bytes"), new.get("peak_bytes")
    if before is None or after is None or after <= PEAK_FACTOR * before or after - before <= PEAK_BYTES:
        return []
    factor = after / before if before > 0 else None
    return [Change("memory", new, f"{number(before / MIB)} MiB", f"{number(after / MIB)} MiB", factor)]


def differences(old: Results, new: Results) -> list[str]:
    """Differences of the environments, which make the two files hard to compare."""
    a, b = old["environment"], new["environment"]
    return [f"{n}: {a.get(n)} -> {b.get(n)}" for n in SAME_ENVIRONMENT if a.get(n) != b.get(n)]


def render(changes: list[Change], old: Results, new: Results, console: Console) -> None:
    """Print the changes, the rows that were not compared, and the differences of the environments."""
    for line in differences(old, new):
        console.print(Text(f"warning: the environments differ in {line}", "yellow"))
    a, b = set(_by_key(old)), set(_by_key(new))
    console.print(
        Text(f"{len(a & b)} rows in both, {len(a - b)} only in the old, {len(b - a)} only in the new")
    )
    if not changes:
        console.print(Text("no change beyond the spread"))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", "cell", "provider", "regime", "thr", "old", "new"):
        table.add_column(name, overflow="fold")
    table.add_column("factor", justify="right")
    for change in changes:
        row = change.row
        where = (row["cell"], row["provider"], row["regime"], str(row["threads"]))
        factor = "" if change.factor is None else number(change.factor)
        kind = Text(change.kind, STYLES.get(change.kind, "red"))
        table.add_row(kind, *map(Text, (*where, change.old, change.new, factor)))
    console.print(table)
