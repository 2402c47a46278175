# SPDX-License-Identifier: Apache-2.0
"""Plots of a results file as SVG; the same file gives the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.report import (
    JOBS,
    baseline,
    cell_of,
    grouped,
    headline,
    in_order,
    is_ok,
    shape_label,
    six_shapes,
)
from benchmarks.results import PLAIN, Results, Row

PASSES = ("no-grad", "forward+backward")
KINDS = ("output", "gradient")
# Colours by Okabe and Ito: colour-blind readers can distinguish them.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#a6761d", "#6a3d9a", "#666666")
SHAPES = ("s", "^", "v", "P", "X", "p", "*", "h", "<", ">")
GREY = "#555555"
DTYPE_COLOURS = {"float32": "#0072b2", "bfloat16": "#e69f00", "float16": "#009e73", "float64": "#666666"}
NO_ERROR = 1e-2  # the place of exact results on a logarithmic axis
SLOWEST = 0.2  # left end of the speed-up axis; slower providers are drawn there
# In tables alone: one is 20 times slower than the others and would squeeze them, the other does other work.
NOT_DRAWN = ("softkern:portable", PLAIN)
WIDTH = 11  # inches
STYLE = {
    "svg.hashsalt": "softkern",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "ytick.labelsize": 8,
}

Mark = tuple[str, str]  # colour, shape


def write(results: Results, folder: Path) -> list[Path]:
    """Write the plots for which the results have data."""
    folder.mkdir(parents=True, exist_ok=True)
    plots = {"speedup.svg": _speedup, "bandwidth.svg": _bandwidth, "error.svg": _error}
    written = []
    with matplotlib.rc_context(STYLE):
        for name, plot in plots.items():
            figure = plot(results)
            if figure is not None:
                figure.savefig(folder / name, format="svg", metadata={"Date": None})
                written.append(folder / name)
    return [*written, *six_shapes.write(results, folder)]


def _marks(results: Results) -> dict[str, Mark]:
    """Colour and shape of every provider, the same in all plots of the file; softkern stands out."""
    marks = {"torch": ("#000000", "D"), "softkern": ("#d7191c", "o")}
    names = dict.fromkeys(row["provider"] for row in results["rows"])
    others = [name for name in names if name not in marks]
    for i, name in enumerate(others):
        marks[name] = (COLOURS[i % len(COLOURS)], SHAPES[i % len(SHAPES)])
    return {name: marks[name] for name in names}


def _caption(what: str, results: Results) -> str:
    environment = results["environment"]
    threads = headline(results)[0]["threads"]
    versions = f"torch {environment['torch']}, softkern {environment['softkern']}"
    where = environment.get("device", f"{environment['cpu']}, threads: {threads}")
    return f"{what}   ({where}, {versions})"


def _legend(
    figure: Figure, marks: dict[str, Mark], rows: Sequence[Row], *more: Line2D, line: str = "none"
) -> None:
    """The providers of the rows, and `more`, above the panels."""
    names = {row["provider"] for row in rows}
    handles = [
        Line2D([], [], color=colour, marker=shape, linestyle=line, markersize=5, label=name)
        for name, (colour, shape) in marks.items()
        if name in names
    ]
    figure.legend(handles=[*handles, *more], loc="outside upper left", ncols=6, frameon=False, fontsize=8)


def _number_ticks(axis: Axis) -> None:
    """1, 2 and 5 of each decade, as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


# Speed-up: one panel per op and pass, one line per cell; the last panel has the whole jobs


def _speedup(results: Results) -> Figure | None:
    rows = [r for r in headline(results) if is_ok(r)]
    reference = baseline(results)
    rows = [r for r in rows if r["baseline"] == reference != r["provider"]]
    rows = [r for r in rows if r["pass_name"] in (*PASSES, *JOBS) and r["provider"] not in NOT_DRAWN]
    if not rows:
        return None
    rows.sort(key=lambda r: in_order(r["op"]))
    panels: dict[str, list[Row]] = {}
    for row in rows:
        panels.setdefault("whole jobs" if row["pass_name"] in JOBS else row["op"], []).append(row)
    labels = {title: list(dict.fromkeys(map(_label, part))) for title, part in panels.items()}
    heights = [len(names) + 2 for names in labels.values()]
    figure = Figure(figsize=(WIDTH, 1.2 + 0.19 * sum(heights)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15)  # the reader's font may be wider than this one
    grid = figure.subplots(len(panels), 2, sharex=True, sharey="row", squeeze=False, height_ratios=heights)
    marks = _marks(results)
    for axes, (title, part) in zip(grid, panels.items(), strict=True):
        if part[0]["pass_name"] in JOBS:
            _speedup_panel(axes[0], part, labels[title], marks)
            axes[0].set_title(title)
            axes[1].remove()
            continue
        for ax, pass_name in zip(axes, PASSES, strict=True):
            _speedup_panel(ax, [r for r in part if r["pass_name"] == pass_name], labels[title], marks)
            ax.set_title(f"{title}, {pass_name}")
    ratios = [row["ratio"] for row in rows]
    grid[0, 0].set_xlim(SLOWEST / 1.1, max(1.25, *ratios) * 1.2)
    what = f"times as fast as {reference} ({SLOWEST:g}: that or less), float32 unless named; right: softkern"
    figure.supxlabel(_caption(what, results), fontsize=9)
    _legend(figure, marks, rows)
    return figure


def _label(row: Row) -> str:
    cell = cell_of(row)
    if row["pass_name"] in JOBS:
        return f"{cell.op}, {row['pass_name']}"
    parts = (shape_label(cell), cell.option, cell.inputs, "" if cell.dtype == "float32" else cell.dtype)
    return " ".join(part for part in parts if part)


def _speedup_panel(ax: Axes, rows: Sequence[Row], labels: Sequence[str], marks: dict[str, Mark]) -> None:
    ax.set_xscale("log")
    _number_ticks(ax.xaxis)
    ax.tick_params(labelbottom=True)
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.axvline(1, color="black", linewidth=1, zorder=2)
    ax.axvspan(1e-9, 1, color="#f6f0f0", zorder=0)
    for (provider,), part in grouped(rows, "provider").items():
        colour, shape = marks[provider]
        ours = provider == "softkern"
        ratios, places = [row["ratio"] for row in part], [labels.index(_label(row)) for row in part]
        drawn = [max(SLOWEST, ratio) for ratio in ratios]
        style = {"color": colour, "marker": shape, "markeredgecolor": "white", "markeredgewidth": 0.5}
        ax.plot(drawn, places, linestyle="none", markersize=6.5 if ours else 4.5, zorder=3 + ours, **style)
        for ratio, place in zip(ratios, places, strict=True) if ours else ():
            weight = "bold" if ratio < 1 else "normal"
            where = ax.get_yaxis_transform()  # x in units of the panel's width, y in cells
            text = ax.text(1.01, place, f"{ratio:.2f}", transform=where, va="center", fontsize=8)
            text.set(color=colour, weight=weight)


# Bandwidth: GB/s against C, for rows in memory and for rows in the cache


def _bandwidth(results: Results) -> Figure | None:
    rows = [r for r in headline(results) if is_ok(r) and r.get("gbps") and r["dtype"] == "float32"]
    rows = [r for r in rows if r["pass_name"] in PASSES and cell_of(r).last_dim]
    rows = [r for r in rows if not r["option"] and not cell_of(r).inputs]
    if not rows:
        return None
    ops = list(grouped(rows, "op"))
    figure = Figure(figsize=(WIDTH, 1.2 + 2.9 * len(ops)), layout="constrained")
    grid = figure.subplots(len(ops), 2, sharex=True, sharey=True, squeeze=False)
    marks = _marks(results)
    threads = rows[0]["threads"]
    copies = [b["gbps"] for b in results["bandwidth"] if b["what"] == "copy" and b["threads"] == threads]
    for axes, (op,) in zip(grid, ops, strict=True):
        for ax, pass_name in zip(axes, PASSES, strict=True):
            part = [row for row in rows if row["op"] == op and row["pass_name"] == pass_name]
            _bandwidth_panel(ax, part, marks, copies)
            ax.set_title(f"{op}, {pass_name}")
    classes = sorted({cell_of(row).classes for row in rows})
    for ax in grid.flat:
        ax.set_xticks(classes, [str(c) for c in classes], rotation=40, fontsize=8)
        ax.tick_params(labelbottom=True, labelleft=True)
    what = "classes C of the largest float32 shape that has them, softmax over the last dimension"
    figure.supxlabel(_caption(what, results), fontsize=9)
    figure.supylabel("GB/s, by the least traffic of the op", fontsize=9)
    keys = (
        Line2D([], [], color=GREY, marker="o", markersize=5, label="in memory"),
        Line2D([], [], color=GREY, marker="o", mfc="white", linestyle=":", markersize=5, label="in cache"),
        Line2D([], [], color=GREY, linestyle="--", label="copy of as many bytes"),
        Line2D([], [], color=GREY, linewidth=4, alpha=0.25, label="copy of a large array"),
    )
    _legend(figure, marks, rows, *keys, line="-")
    return figure


def _bandwidth_panel(ax: Axes, rows: Sequence[Row], marks: dict[str, Mark], copies: Sequence[float]) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.xaxis.set_minor_locator(NullLocator())
    _number_ticks(ax.yaxis)
    for (provider, residency), part in grouped(rows, "provider", "residency").items():
        colour, shape = marks[provider]
        cached, ours = residency == "cache", provider == "softkern"
        cache_line = ":" if provider in ("softkern", "torch") else "none"  # not all: too many lines
        ax.plot(
            *_by_classes(part, "gbps"),
            color=colour,
            marker=shape,
            markersize=5,
            markerfacecolor="white" if cached else colour,
            linestyle=cache_line if cached else "-",
            linewidth=2 if ours else 1,
            zorder=4 if ours else 3,
        )
    copied = [row for row in rows if row.get("copy_gbps")]
    ax.plot(*_by_classes(copied, "copy_gbps"), color=GREY, linestyle="--", linewidth=1, zorder=2)
    for copy in copies:
        ax.axhline(copy, color=GREY, linewidth=4, alpha=0.25, zorder=1)


def _by_classes(rows: Sequence[Row], field: str) -> tuple[list[int], list[float]]:
    """One point per C, from the largest shape with that C."""
    largest = {cell_of(row).classes: row[field] for row in sorted(rows, key=lambda r: cell_of(r).elements)}
    return sorted(largest), [largest[c] for c in sorted(largest)]


# Error: one line per provider, one stroke per cell


def _error(results: Results) -> Figure | None:
    rows = [r for r in results["rows"] if is_ok(r) and set(r.get("error") or ()) & set(KINDS)]
    if not rows:
        return None
    ops = list(grouped(rows, "op"))
    providers = [name for (name,) in grouped(rows, "provider")]
    dtypes = [dtype for dtype in DTYPE_COLOURS if any(row["dtype"] == dtype for row in rows)]
    height = 1.2 + len(ops) * (0.7 + 0.27 * len(providers))
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    grid = figure.subplots(len(ops), 2, sharex=True, sharey=True, squeeze=False)
    for axes, (op,) in zip(grid, ops, strict=True):
        for ax, kind in zip(axes, KINDS, strict=True):
            _error_panel(ax, [row for row in rows if row["op"] == op], kind, providers, dtypes)
            ax.set_title(f"{op}, {kind}")
    what = f"largest error of each cell, in eps of the scale of its row ({NO_ERROR:g}: that or less)"
    figure.supxlabel(what, fontsize=9)
    keys = [
        Line2D([], [], color=DTYPE_COLOURS[d], marker="s", linestyle="none", markersize=5, label=d)
        for d in dtypes
    ]
    _legend(figure, {}, (), *keys)
    return figure


def _error_panel(
    ax: Axes, rows: Sequence[Row], kind: str, providers: Sequence[str], dtypes: Sequence[str]
) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.tick_params(labelbottom=True)
    ax.set_yticks(range(len(providers)), providers)
    ax.set_ylim(len(providers) - 0.5, -0.5)
    ax.axvline(1, color="black", linewidth=0.8, zorder=1)
    for (provider, dtype), part in grouped(rows, "provider", "dtype").items():
        found = [
            [(r.get("error") or {}).get(kind) for r in of_cell] for of_cell in grouped(part, "cell").values()
        ]
        worst = [
            max(e for e in errors if e is not None) for errors in found if any(e is not None for e in errors)
        ]
        lane = (dtypes.index(dtype) + 0.5) / len(dtypes) - 0.5  # within a provider's line, by dtype
        ax.plot(
            [max(NO_ERROR, error) for error in worst],
            [providers.index(provider) + 0.6 * lane] * len(worst),
            color=DTYPE_COLOURS[dtype],
            marker="|",
            linestyle="none",
            markersize=6,
            markeredgewidth=1.2,
        )
