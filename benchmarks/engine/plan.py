# SPDX-License-Identifier: Apache-2.0
"""What a run goes through: groups of cells, whom each asks, and how long that should take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from benchmarks import ops
from benchmarks.cells import Cell
from benchmarks.engine import regimes
from benchmarks.engine.budget import Part
from benchmarks.engine.process import Options
from benchmarks.providers.base import LARGE, Provider

# How the pages of operands lie in the caches, which are indexed by physical addresses, is luck: worth a tenth
# of the time in some cells that fit them. Where outputs are preallocated, they lie on the same pages from the
# first call to the last, and in a virtual machine some pages are further away than others: worth a quarter of
# the time in large cells. So that luck evens out, operands are placed anew after as many rounds.
PLACED_FOR, LARGE_PLACED_FOR = 7, 3  # rounds
# Seconds of a call where the number of elements says nothing.
CALL_TAKES = {"zoo": 2e-3, "fashion-mnist small": 0.2, "fashion-mnist deep": 1.5, "language-model head": 3.0}
FLOPS = 2e11  # a second, of products


class Rounds(NamedTuple):
    """How many rounds a cell has."""

    fewest: int  # where time is short
    least: int  # where it isn't
    enough: int  # for a third of the patience
    most: int


def placed_for(cell: Cell, regime: str) -> int:
    """Rounds until operands move to other pages; 1: they stay."""
    if cell.device != "cpu":
        return 1
    if 0 < cell.input_bytes <= LARGE:
        return PLACED_FOR
    return LARGE_PLACED_FOR if cell.elements and regime == "preallocated" else 1


def fewest_rounds(rounds: Rounds, cell: Cell, regime: str) -> int:
    """Where time is short: whole placements, one at least."""
    anew = placed_for(cell, regime)
    return min(rounds.most, -(-rounds.fewest // anew) * anew)


@dataclass
class Plan:
    """What to run. `threads` holds None for all of them."""

    cells: list[Cell]
    line_up: list[tuple[str, Provider]]
    regimes: list[str]
    threads: list[int | None]
    all_threads: int
    rounds: Rounds
    sample: float  # seconds: as many calls are one sample, so that clock and loop don't matter
    minutes: float  # for the run
    patience: float = 6.0  # seconds for the rounds of a cell, if the run has them
    options: Options = field(default_factory=Options)
    quick: bool = False
    chosen: bool = False  # the user named regimes or threads: ask everybody, in every cell

    def asked(self, threads: int | None) -> list[tuple[str, Provider]]:
        """Who takes part: a quick run starts the peers once, which takes some of them seconds."""
        return self.line_up[:2] if self.quick and not self.chosen and threads is not None else self.line_up


def groups_of(plan: Plan) -> Iterator[tuple[str, int | None, list[Cell]]]:
    for regime in plan.regimes:
        for threads in plan.threads:
            cells = [c for c in plan.cells if plan.chosen or _belongs(c, regime, threads)]
            # Cells of the same inputs one after the other: they are made once. Workers start anew before the
            # first whose outputs are mapped, or some would find a hole for them in the heap, by luck.
            cells.sort(key=lambda c: (c.input_bytes, inputs_key(c)))
            for mapped in (False, True):
                part = [c for c in cells if (c.device == "cpu" and c.input_bytes >= regimes.MAPPED) == mapped]
                if part:
                    yield regime, threads, part


def _belongs(cell: Cell, regime: str, threads: int | None) -> bool:
    """Whether a run that was not told otherwise asks this cell: everything with the default allocator and all
    threads; of the rest what can differ. One thread takes seconds a round in large cells: only main ones."""
    if regime != "default":
        large = cell.op in ops.OPS and cell.input_bytes >= regimes.SMALLEST
        return threads is None and cell.main and large and _whole(cell)
    return threads is None or (_whole(cell) and (cell.main or cell.input_bytes <= LARGE))


def _whole(cell: Cell) -> bool:
    """Not a forward or a backward alone."""
    return cell.pass_name not in ("forward", "backward")


def left_out(provider: Provider, cell: Cell, threads: int | None) -> str | None:
    """Why a provider is not asked this cell, or None."""
    reason = provider.left_out(cell, threads)
    if provider.peer and threads is not None and cell.input_bytes > LARGE:
        reason = reason or f"peers take part with one thread in cells of up to {LARGE >> 20} MiB"
    return reason


def parts_of(plan: Plan, groups: list[tuple[str, int | None, list[Cell]]]) -> list[Part]:
    """What to expect of each group's start and of each of its cells, on two cores of a server."""
    parts, inputs = [], None
    for regime, threads, cells in groups:
        there = [provider for _, provider in plan.asked(threads) if regime in provider.regimes]
        parts.append(Part(2.0 + 0.8 * len(there)))
        for cell in cells:
            asked = [provider for provider in there if left_out(provider, cell, threads) is None]
            made = cell.op in ops.OPS and inputs_key(cell) != inputs
            inputs = inputs_key(cell) if cell.op in ops.OPS else inputs
            parts.append(_part(plan, cell, regime, asked, made))
    return parts


def _part(plan: Plan, cell: Cell, regime: str, asked: list[Provider], made: bool) -> Part:
    """`made`: the cell before has other inputs."""
    call = CALL_TAKES.get(cell.op, 2.5e-9 * cell.elements + ops.flops(cell) / FLOPS)
    prepare = 0.08 + 1e-8 * cell.elements + 4 * call  # the check, the warm-up, the peak
    compiled = sum(provider.name == "torch-compile" for provider in asked)
    fixed = len(asked) * prepare + 4.0 * compiled + (4e-8 * cell.elements if made and asked else 0.0)
    sample = 1e-3 + max(plan.sample, call) + call  # and the untimed one
    return Part(fixed, fewest_rounds(plan.rounds, cell, regime) * len(asked) * sample)


def inputs_key(cell: Cell) -> tuple[Any, ...]:
    """Cells with equal keys have equal inputs and answers."""
    return (*cell.problem_key, cell.op)
