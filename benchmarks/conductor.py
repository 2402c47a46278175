# SPDX-License-Identifier: Apache-2.0
"""The run: workers of a regime and number of threads alive together, asked in turn, cell after cell."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import ops, problems, regimes, results
from benchmarks.budget import Budget, Part
from benchmarks.cells import Cell
from benchmarks.process import Options, Worker, WorkerLost
from benchmarks.providers.base import LARGE, Provider
from benchmarks.turn import Rounds, Turn, fewest_rounds

TEMPORARIES = 6  # results and temporaries of the provider whose turn it is, in units of the input
# Seconds of a call where the number of elements says nothing.
CALL_TAKES = {"zoo": 2e-3, "fashion-mnist small": 0.2, "fashion-mnist deep": 1.5, "language-model head": 3.0}


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


Report = Callable[[str, float], None]  # what is being done, seconds left


def run(
    plan: Plan, into: results.Results, save: Callable[[], None], report: Report, warn: Callable[[str], None]
) -> None:
    """Fill `into`; `save` is called after every cell, so that a run that is ended keeps what it measured."""
    groups = list(_groups(plan))
    patience = plan.patience if plan.rounds.most > plan.rounds.least else 0.0
    budget = Budget(60 * plan.minutes, _parts(plan, groups), patience)
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
                    whole = group.measure(cell)
                    save()
                    budget.end(whole)
    report("done", 0.0)


def _threads_text(threads: int | None) -> str:
    return "all threads" if threads is None else f"{threads} thread" + "s" * (threads > 1)


def _groups(plan: Plan) -> Iterator[tuple[str, int | None, list[Cell]]]:
    for regime in plan.regimes:
        for threads in plan.threads:
            cells = [c for c in plan.cells if plan.chosen or _belongs(c, regime, threads)]
            # Cells of the same inputs one after the other: they are made once. Workers start anew before the
            # first whose outputs are mapped, or some would find a hole for them in the heap, by luck.
            cells.sort(key=lambda c: (c.input_bytes, _inputs_key(c)))
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


def _parts(plan: Plan, groups: list[tuple[str, int | None, list[Cell]]]) -> list[Part]:
    """What to expect of each group's start and of each of its cells, on two cores of a server."""
    parts, inputs = [], None
    for regime, threads, cells in groups:
        there = [provider for _, provider in plan.asked(threads) if regime in provider.regimes]
        parts.append(Part(2.0 + 0.8 * len(there)))
        for cell in cells:
            asked = [provider for provider in there if left_out(provider, cell, threads) is None]
            made = cell.op in ops.OPS and _inputs_key(cell) != inputs
            inputs = _inputs_key(cell) if cell.op in ops.OPS else inputs
            parts.append(_part(plan, cell, regime, asked, made))
    return parts


def _part(plan: Plan, cell: Cell, regime: str, asked: list[Provider], made: bool) -> Part:
    """`made`: the cell before has other inputs."""
    call = CALL_TAKES.get(cell.op, 2.5e-9 * cell.elements)
    prepare = 0.08 + 1e-8 * cell.elements + 4 * call  # the check, the warm-up, the peak
    compiled = sum(provider.name == "torch-compile" for provider in asked)
    fixed = len(asked) * prepare + 4.0 * compiled + (4e-8 * cell.elements if made and asked else 0.0)
    sample = 1e-3 + max(plan.sample, call) + call  # and the untimed one
    return Part(fixed, fewest_rounds(plan.rounds, cell, regime) * len(asked) * sample)


def _inputs_key(cell: Cell) -> tuple[Any, ...]:
    """Cells with equal keys have equal inputs and answers."""
    return (*cell.problem_key, cell.op)


class Group:
    """The workers of one regime and number of threads."""

    def __init__(
        self,
        plan: Plan,
        regime: str,
        threads: int | None,
        into: results.Results,
        folder: Path,
        budget: Budget,
    ) -> None:
        self.plan, self.regime, self.into, self.folder = plan, regime, into, folder
        self.budget = budget
        self.asked_threads = threads
        self.threads = plan.all_threads if threads is None else threads
        self.workers: list[Worker] = []
        self.copy = Worker("copy", "copy", None, regime, self.threads, plan.options)
        self.inputs: tuple[Any, ...] | None = None

    def start(self) -> None:
        for label, provider in self.plan.asked(self.asked_threads):
            if self.regime not in provider.regimes:
                continue
            if self.plan.options.device not in provider.devices:
                self._absent(label, f"does not run on {self.plan.options.device}")
                continue
            worker = Worker(label, provider.name, provider, self.regime, self.threads, self.plan.options)
            worker.start()
            self.workers.append(worker)
        self.copy.start()
        self.copy.wait_started()
        for worker in list(self.workers):
            try:
                answer = worker.wait_started()
                reason = answer.get("absent") or answer.get("failed")
            except WorkerLost as lost:
                reason = str(lost)
            if reason:
                worker.stop()
                self.workers.remove(worker)
                self._absent(worker.label, reason)
        if not any(row["threads"] == self.threads for row in self.into["bandwidth"]):
            answer = self.copy.ask({"do": "bandwidth", "quick": self.plan.quick})
            self.into["bandwidth"] += answer["rows"]

    def stop(self) -> None:
        for worker in [*self.workers, self.copy]:
            worker.stop()

    def _absent(self, label: str, reason: str) -> None:
        if not any(entry["provider"] == label for entry in self.into["absent"]):
            self.into["absent"].append({"provider": label, "reason": reason})

    def leave_out(self, label: str, reason: str) -> None:
        for entry in self.into["left_out"]:
            if (entry["provider"], entry["reason"]) == (label, reason):
                entry["cells"] += 1
                return
        self.into["left_out"].append({"provider": label, "reason": reason, "cells": 1})

    def measure(self, cell: Cell) -> bool:
        """Whether all whom it was asked of were there to the end."""
        asked = []
        for worker in self.workers:
            assert worker.provider is not None
            reason = left_out(worker.provider, cell, self.asked_threads)
            if reason:
                self.leave_out(worker.label, reason)
            else:
                asked.append(worker)
        turn = Turn(self, cell, asked)
        # Each holds logits, upstream gradients and, for a backward alone, results, on a device the first two
        # twice; one at a time computes, or all where the memory allows it: what is compiled for a device
        # takes longer than the cell.
        each = 3 * turn.buffers + (0 if cell.device == "cpu" else 2)
        needed = cell.input_bytes * (each * len(asked) + TEMPORARIES)
        there = self.memory()
        at_once = cell.device != "cpu" and cell.input_bytes * (each + TEMPORARIES) * len(asked) <= there
        if cell.input_bytes > LARGE and needed > there > 0:
            for worker in asked:
                self.leave_out(worker.label, f"the providers together need about {needed >> 30} GiB")
            return False
        try:
            turn.prepare(at_once)
            turn.rounds()
            turn.peaks()
        finally:
            # Before the workers are asked to finish: Ctrl-C must not lose the rounds that were had.
            self.into["rows"] += results.beside_plain(turn.rows(), cell, self.into["rows"])
        turn.finish()
        return not turn.lost

    def memory(self) -> int:
        """Bytes that all workers may have together; 0 if that is not known."""
        try:
            return int(self.copy.ask({"do": "memory"})["bytes"])
        except WorkerLost:
            return 0

    def inputs_of(self, cell: Cell) -> Path | None:
        """The folder with the cell's inputs and answers; None for jobs that make their own."""
        if cell.op not in ops.OPS:
            return None
        inputs = self.folder / "inputs"
        if self.inputs != _inputs_key(cell):
            shutil.rmtree(inputs, ignore_errors=True)
            problem = problems.make(cell)
            problems.save(problem, inputs)
            problems.save_answers(problems.answers(cell, problem), inputs)
            self.inputs = _inputs_key(cell)
        return inputs
