# SPDX-License-Identifier: Apache-2.0
"""The run: workers of a regime and number of threads alive together, asked in turn, cell after cell."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks import results
from benchmarks.cells import Cell
from benchmarks.engine.budget import Budget
from benchmarks.engine.group import Group
from benchmarks.engine.plan import Plan, groups_of, left_out, parts_of
from benchmarks.engine.turn import Turn
from benchmarks.providers.base import LARGE

TEMPORARIES = 6  # results and temporaries of the provider whose turn it is, in units of the logits

Report = Callable[[str, float], None]  # what is being done, seconds left


def run(
    plan: Plan, into: results.Results, save: Callable[[], None], report: Report, warn: Callable[[str], None]
) -> None:
    """Fill `into`; `save` is called after every cell, so that a run that is ended keeps what it measured."""
    groups = list(groups_of(plan))
    patience = plan.patience if plan.rounds.most > plan.rounds.least else 0.0
    budget = Budget(60 * plan.minutes, parts_of(plan, groups), patience)
    short = False

    def begin(what: str) -> None:
        nonlocal short
        report(what, budget.left())
        needed = budget.needed()
        if needed > budget.seconds and not short:
            short = True
            warn(
                f"{plan.minutes:g} minutes are too few, about {needed / 60:.1f} are needed (--minutes): "
                "cells have the fewest rounds that make a median"
            )

    with tempfile.TemporaryDirectory(prefix="softkern-bench-") as folder:
        for regime, threads, cells in groups:
            group = Group(plan, regime, threads, into, Path(folder), budget)
            with ExitStack() as stack:
                stack.callback(group.stop)
                begin(f"{regime}, {_threads_text(threads)}: starting workers")
                group.start()
                budget.end()
                for cell in cells:
                    begin(f"{regime}, {_threads_text(threads)}: {cell.name}")
                    whole = measure(group, cell)
                    save()
                    budget.end(whole)
    report("done", 0.0)


def _threads_text(threads: int | None) -> str:
    return "all threads" if threads is None else f"{threads} thread" + "s" * (threads > 1)


def measure(group: Group, cell: Cell) -> bool:
    """Whether all whom it was asked of were there to the end."""
    asked = []
    for worker in group.workers:
        assert worker.provider is not None
        reason = left_out(worker.provider, cell, group.asked_threads)
        if reason:
            group.leave_out(worker.label, reason)
        else:
            asked.append(worker)
    turn = Turn(group, cell, asked)
    # Each holds logits, upstream gradients and, for a backward alone, results, on a device the first two
    # twice; one at a time computes, or all where the memory allows it: what is compiled for a device
    # takes longer than the cell.
    each = 3 * turn.buffers + (0 if cell.device == "cpu" else 2)
    held, temporaries = each * cell.operand_bytes, TEMPORARIES * cell.input_bytes
    needed = held * len(asked) + temporaries
    there = group.memory()
    at_once = cell.device != "cpu" and (held + temporaries) * len(asked) <= there
    if cell.input_bytes > LARGE and needed > there > 0:
        for worker in asked:
            group.leave_out(worker.label, f"the providers together need about {needed >> 30} GiB")
        return False
    try:
        turn.prepare(at_once)
        turn.rounds()
        turn.peaks()
    finally:
        # Before the workers are asked to finish: Ctrl-C must not lose the rounds that were had.
        group.into["rows"] += results.beside_plain(turn.rows(), cell, group.into["rows"])
    turn.finish()
    return not turn.lost
