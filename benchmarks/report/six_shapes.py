# SPDX-License-Identifier: Apache-2.0
"""The README's picture: six shapes of one op, softkern and the best other provider against torch."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.report import best_peer, duration, grouped, has_ratio, headline
from benchmarks.results import Results, Row

CELLS = tuple(
    f"cross_entropy/forward+backward/float32/{shape}"
    for shape in ("101x7", "65536x10", "4x21x256x256/dim 1", "4096x1000", "2048x32000", "512x128256")
)
TICKS = (0.5, 1, 2, 5, 10, 20, 50)
RED, BLUE = "#d7191c", "#4a90c8"  # both readable on white and on black
# GitHub shows the picture for the reader's theme. The background is transparent.
INK = {"six-shapes.svg": "#1f2328", "six-shapes-dark.svg": "#e6edf3"}
STYLE = {
    "svg.hashsalt": "softkern",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "savefig.transparent": True,
}


def write(results: Results, folder: Path) -> list[Path]:
    """One picture per theme, if all six shapes were measured."""
    cells = grouped(headline(results), "cell")
    found = [cells.get((cell,), []) for cell in CELLS]
    if not all(_providers(rows) >= {"torch", "softkern"} for rows in found):
        return []
    written = []
    for name, ink in INK.items():
        with matplotlib.rc_context(STYLE):
            figure = _figure(found, results, ink)
            figure.savefig(folder / name, format="svg", metadata={"Date": None})
        written.append(folder / name)
    return written


def _providers(rows: list[Row]) -> set[str]:
    return {row["provider"] for row in rows if has_ratio(row)}


def speedup(row: Row) -> str:
    return f"{row['ratio']:.1f} x"


def times(torch: Row, ours: Row) -> str:
    return f"{duration(torch['median'])} → {duration(ours['median'])}"


def _figure(cells: list[list[Row]], results: Results, ink: str) -> Figure:
    figure = Figure(figsize=(9, 4.3), layout="constrained")
    ax = figure.subplots()
    for place, rows in enumerate(cells):
        by_provider = {row["provider"]: row for row in rows}
        torch, ours, other = by_provider["torch"], by_provider["softkern"], best_peer(rows)
        _bar(ax, place - 0.19, ours, RED, f"softkern {speedup(ours)}", ink, weight="bold")
        if other is not None:
            _bar(ax, place + 0.19, other, BLUE, f"{other['provider']} {speedup(other)}", ink)
        ax.text(1.0, place, times(torch, ours), transform=ax.get_yaxis_transform(), ha="right", color=ink)
    _axes(ax, cells, ink)
    where = results["environment"]
    figure.suptitle(
        "cross_entropy, forward + backward, float32: times as fast as torch", color=ink, fontsize=11
    )
    figure.supxlabel(
        f"{where['cpu']}, {cells[0][0]['threads']} threads, torch {where['torch']}; "
        "blue: the fastest other provider; at the right: time of torch → softkern",
        color=ink,
        fontsize=9,
    )
    return figure


def _bar(ax: Axes, place: float, row: Row, colour: str, label: str, ink: str, weight: str = "normal") -> None:
    """A bar from torch's speed to the row's, with a label at the right."""
    ax.barh(place, row["ratio"] - 1, left=1, height=0.34, color=colour)
    ax.text(max(row["ratio"], 1) * 1.04, place, label, va="center", color=ink, fontsize=9, weight=weight)


def _axes(ax: Axes, cells: list[list[Row]], ink: str) -> None:
    ax.set_xscale("log")
    ax.set_xlim(0.5, 400)  # bars end below 50; labels and times need the rest
    ax.xaxis.set_major_locator(FixedLocator(TICKS))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_yticks(range(len(cells)), [_label(rows[0]) for rows in cells])
    ax.set_ylim(len(cells) - 0.45, -0.55)
    ax.tick_params(colors=ink, length=0)
    ax.axvline(1, color=ink, linewidth=1)
    ax.text(1, -0.6, "torch", ha="center", va="bottom", color=ink, fontsize=9)
    for name in ("top", "right", "left", "bottom"):
        ax.spines[name].set_visible(False)


def _label(row: Row) -> str:
    """N x C, followed by the positions, if there are any."""
    return " x ".join(f"{size:,}" for size in row["shape"])
