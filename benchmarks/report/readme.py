# SPDX-License-Identifier: Apache-2.0
"""A results file in Markdown: a page of its own, and the blocks between the markers of other pages."""

from __future__ import annotations

import os
import re
from pathlib import Path

from benchmarks import results as results_file
from benchmarks.report import (
    JOBS,
    MOST_TIMES_PLAIN,
    baseline,
    best_peer,
    cell_of,
    compared,
    described,
    grouped,
    has_ratio,
    head,
    headline,
    huge_page_mode,
    in_order,
    is_ok,
    memory_text,
    own,
    shape_label,
    summary,
    time_text,
)
from benchmarks.results import Results, Row

MARKED = re.compile(r"<!-- (benchmarks|summary): begin ?(.*?) ?-->\n(.*?)<!-- \1: end -->", re.DOTALL)
PASSES = ("no-grad", "forward+backward", *JOBS)
# The passes of a short table; log_softmax behaves like softmax.
SHORT = {"cross_entropy": "forward+backward", "softmax": "no-grad"}
DTYPES = ("float32", "bfloat16")
COLUMNS = (
    *("op, pass, dtype, shape", "torch", "softkern", "torch / softkern", "% of copy speed"),
    *("memory, torch", "memory, softkern", "best other"),
)
EDGES = "Other cells (times plain: time divided by the same provider's time with plain logits):"
EDGE_COLUMNS = (
    *("op, pass, dtype, shape, option, logits", "torch", "softkern", "torch / softkern"),
    *("times plain, torch", "times plain, softkern", "memory, torch", "memory, softkern"),
)


def block(results: Results, source: str, short: bool = False) -> str:
    """Caption, main cells, edges, what F lacks, the head of a language model, and every cell in which
    softkern is slower than torch. A short block has one pass of two ops, the whole jobs, what F lacks and the
    head, but no edges."""
    lines = [_caption(results, source), ""]
    cells = grouped(headline(results), "cell").values()
    cells = sorted(cells, key=lambda rows: in_order(rows[0]["op"]))
    main = [line for rows in cells if _shown(rows[0], short) for line in _line(rows)]
    edges = [line for rows in cells if rows[0].get("edge") and not short for line in _edge(rows)]
    lacking = own.table(cells) + head.table(cells)
    if main or not (edges or lacking):
        lines += [f"| {' | '.join(COLUMNS)} |", "|---|---:|---:|---:|---:|---:|---:|---|", *main, ""]
    if edges:
        lines += [EDGES, "", f"| {' | '.join(EDGE_COLUMNS)} |"]
        lines += ["|---|---:|---:|---:|---:|---:|---:|---:|", *edges, ""]
    lines += lacking
    return "\n".join([*lines, *_slower(results), *_slowed(results), *_without_times(results), ""])


def _all_replayed(results: Results) -> bool:
    """Whether the run replayed long calls as well, as runs do since rows say so."""
    return any(row.get("how") == results_file.REPLAYED for row in results["rows"])


def _caption(results: Results, source: str) -> str:
    environment = results["environment"]
    rows = headline(results)
    threads = rows[0]["threads"] if rows else environment["threads"]
    dirty = environment.get("dirty", "no").lower() not in ("", "no", "false", "0")
    commit = environment.get("commit", "unknown")[:12] + (" with changes" if dirty else "")
    on_device = "device" in environment
    backend = environment["active on cuda" if on_device else "active on cpu"]
    where = (
        *([environment["device"]] if on_device else [environment["cpu"], _threads(int(threads))]),
        f"torch {environment['torch']}",
        f"softkern {environment['softkern']} ({backend})",
        *(
            [f"{'' if _all_replayed(results) else 'short '}calls replayed from CUDA graphs"]
            if on_device
            else ["default allocator", f"transparent huge pages on {huge_page_mode(environment)}"]
        ),
        results["started"][:10],
        f"commit {commit}",
    )
    return (
        f"Median times of one call; {', '.join(where)}.\n\n"
        "Ratio: median over the rounds, in which the providers take turns. "
        "Memory: peak above the inputs, in units of the N x C logits.\n\n"
        f"All figures: [{Path(source).name}]({source}), made by `{results['command']}`."
    )


def _shown(row: Row, short: bool) -> bool:
    if not row.get("main") or row["pass_name"] not in PASSES or row["dtype"] not in DTYPES:
        return False
    return not short or row["pass_name"] in (SHORT.get(row["op"]), *JOBS)


def _line(rows: list[Row]) -> list[str]:
    """The line of a cell, if softkern has a time for it."""
    by_provider = {row["provider"]: row for row in rows}
    ours, torch = by_provider.pop("softkern", None), by_provider.pop("torch", None)
    if ours is None or not is_ok(ours):
        return []
    percent = ours.get("copy_percent")
    best = best_peer(by_provider.values())
    values = (
        described(ours),
        time_text(torch),
        time_text(ours),
        f"**{ours['ratio']:.2f}**" if has_ratio(ours) else "",
        "" if percent is None else f"{percent:.0f}",
        memory_text(torch),
        memory_text(ours),
        "" if best is None else _best(best),
    )
    return [f"| {' | '.join(values)} |"]


def _edge(rows: list[Row]) -> list[str]:
    """The line of an edge, if softkern has a time for it."""
    by_provider = {row["provider"]: row for row in rows}
    ours, torch = by_provider.get("softkern"), by_provider.get("torch")
    if ours is None or not is_ok(ours):
        return []
    values = (
        described(ours),
        time_text(torch),
        time_text(ours),
        f"**{ours['ratio']:.2f}**" if has_ratio(ours) else "",
        _times_plain(torch),
        _times_plain(ours),
        memory_text(torch),
        memory_text(ours),
    )
    return [f"| {' | '.join(values)} |"]


def _times_plain(row: Row | None) -> str:
    times = None if row is None else row.get("times_plain")
    return "" if times is None else f"{times:.2f}"


def _best(row: Row) -> str:
    launched = " with its launches" if row.get("how", "").startswith(results_file.NOT_CAPTURED) else ""
    return f"{row['provider']} {row['ratio']:.2f}{launched}"


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def _slower(results: Results) -> list[str]:
    """One line per op and shape: the passes in which softkern is slower, and the ratios, in all regimes and
    numbers of threads."""
    ours, losing = compared(results)
    if not losing:
        return [f"Cells where softkern is slower than torch: none of {len(ours)} measurements."]
    count = f"{len(losing)} of {len(ours)} measurements, all regimes and numbers of threads"
    title = f"Cells where softkern is slower than torch ({count}; torch / softkern):"
    return [title, "", *_passes(losing, "ratio")]


def _slowed(results: Results) -> list[str]:
    """The same for cells in which softkern takes longer than with plain logits."""
    masked = [row for row in results["rows"] if row.get("inputs") and row.get("times_plain")]
    ours = [row for row in masked if row["provider"] == "softkern"]
    slowed = [row for row in ours if row["times_plain"] > MOST_TIMES_PLAIN]
    what = f"Cells where softkern takes more than {MOST_TIMES_PLAIN} times as long as with plain logits"
    if not slowed:
        return ["", f"{what}: none of {len(ours)} measurements."] if ours else []
    count = f"{len(slowed)} of {len(ours)} measurements"
    return ["", f"{what} ({count}; times plain):", "", *_passes(slowed, "times_plain")]


def _passes(found: list[Row], figure: str) -> list[str]:
    lines = []
    for rows in grouped(found, "op", "dtype", "shape", "option", "inputs").values():
        passes = ", ".join(
            f"{pass_name} {_range([row[figure] for row in part])}"
            for (pass_name,), part in grouped(rows, "pass_name").items()
        )
        cell = cell_of(rows[0])
        parts = (f"`{cell.op}`", cell.dtype, shape_label(cell), cell.option, cell.inputs)
        name = " ".join(part for part in parts if part)
        lines.append(f"- {name}: {passes}")
    return lines


def _range(ratios: list[float]) -> str:
    low, high = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
    return low if low == high else f"{low} to {high}"


def _without_times(results: Results) -> list[str]:
    rows = [row for row in results["rows"] if row["provider"] == "softkern" and not is_ok(row)]
    lines = [
        f"- {described(row)} ({row['regime']}, {_threads(row['threads'])}): {row['reason']}" for row in rows
    ]
    return ["", "Cells where softkern has no time:", "", *lines] if lines else []


def _marked(page: Path) -> tuple[str, list[re.Match[str]]]:
    text = page.read_text(encoding="utf-8")
    found = list(MARKED.finditer(text))
    if not found:
        raise results_file.BadResults(
            f"{page}: no <!-- benchmarks: begin FILE --> and <!-- benchmarks: end --> in it"
        )
    return text, found


def _made(kind: str, source: str, page: Path) -> str:
    """The block of that kind, made from the results file `source`, a path relative to the page."""
    results = results_file.read(page.parent / source)
    if kind == "summary":
        return summary.block(results, source, summary.read_errors(page))
    return block(results, source, short=True)


def update(page: Path, results_path: Path) -> None:
    """Put the block of that results file between the page's markers: those that name this file; otherwise
    those of a file of the same name, or of none yet; otherwise the first."""
    text, blocks = _marked(page)
    source = Path(os.path.relpath(results_path, page.parent)).as_posix()
    measured_against = baseline(results_file.read(results_path))
    if measured_against not in ("torch", None):
        raise results_file.BadResults(
            f"{results_path}: measured against {measured_against}, the README is about torch"
        )
    its_own = [found for found in blocks if found[2] == source]
    namesakes = [found for found in blocks if Path(found[2]).name in (results_path.name, "")]
    found = [*its_own, *namesakes, *blocks][0]
    kind = found[1]
    new = f"<!-- {kind}: begin {source} -->\n{_made(kind, source, page)}<!-- {kind}: end -->"
    page.write_text(text[: found.start()] + new + text[found.end() :], encoding="utf-8")


def current(page: Path) -> bool:
    """Whether the page says what the results files named in its markers give."""
    _, blocks = _marked(page)
    return all(_made(kind, source, page) == text for kind, source, text in (b.groups() for b in blocks))
