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

from benchmarks import machine, ops, problems, regimes, results
from benchmarks.cells import Cell
from benchmarks.process import Options, Worker, WorkerLost
from benchmarks.providers.base import LARGE, Provider
from benchmarks.turn import Turn

TEMPORARIES = 6  # results and temporaries of the provider whose turn it is, in units of the input


@dataclass
class Plan:
    """What to run. `threads` holds None for all of them."""

    cells: list[Cell]
    line_up: list[tuple[str, Provider]]
    regimes: list[str]
    threads: list[int | None]
    all_threads: int
    rounds: tuple[int, int, int]  # at least; enough for a third of the patience; at most
    sample: float  # seconds: as many calls are one sample, so that clock and loop don't matter
    patience: float = 6.0  # seconds for the rounds of a cell
    options: Options = field(default_factory=Options)
    quick: bool = False
    chosen: bool = False  # the user named regimes or threads: ask everybody, in every cell

    def asked(self, threads: int | None) -> list[tuple[str, Provider]]:
        """Who takes part: a quick run starts the peers once, which takes some of them seconds."""
        return self.line_up[:2] if self.quick and not self.chosen and threads is not None else self.line_up


Report = Callable[[str, float], None]  # what is being done, share of the run done


def run(plan: Plan, into: results.Results, save: Callable[[], None], report: Report) -> None:
    """Fill `into`; `save` is called after every cell, so that a run that is ended keeps what it measured."""
    groups = list(_groups(plan))
    weights = [[_weight(plan, cell, regime, threads) for cell in cells] for regime, threads, cells in groups]
    total, done = sum(map(sum, weights)) or 1.0, 0.0
    with tempfile.TemporaryDirectory(prefix="softkern-bench-") as folder:
        for (regime, threads, cells), of_group in zip(groups, weights, strict=True):
            group = Group(plan, regime, threads, into, Path(folder))
            with ExitStack() as stack:
                stack.callback(group.stop)
                report(f"{regime}, {_threads_text(threads)}: starting workers", done / total)
                group.start()
                for cell, weight in zip(cells, of_group, strict=True):
                    report(f"{regime}, {_threads_text(threads)}: {cell.name}", done / total)
                    group.measure(cell)
                    save()
                    done += weight
    report("done", 1.0)


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
                part = [c for c in cells if (c.input_bytes >= regimes.MAPPED) == mapped]
                if part:
                    yield regime, threads, part


def _belongs(cell: Cell, regime: str, threads: int | None) -> bool:
    """Whether a run that was not told otherwise asks this cell: everything with the default allocator and all
    threads; of the rest what can differ."""
    if regime != "default":
        large = cell.op in ops.OPS and cell.input_bytes >= regimes.SMALLEST
        return threads is None and cell.main and large and _whole(cell)
    return threads is None or _whole(cell)


def _whole(cell: Cell) -> bool:
    """Not a forward or a backward alone."""
    return cell.pass_name not in ("forward", "backward")


def _weight(plan: Plan, cell: Cell, regime: str, threads: int | None) -> float:
    """Seconds, roughly: only for the share of the run that is done."""
    asked = sum(regime in p.regimes and p.left_out(cell, threads) is None for _, p in plan.asked(threads))
    epoch = 5.0 if cell.op.startswith("fashion-mnist deep") else 0.2
    return asked * (0.25 + (epoch if not cell.elements else 1e-7 * cell.elements))


def _inputs_key(cell: Cell) -> tuple[Any, ...]:
    """Cells with equal keys have equal inputs."""
    return (cell.op == "cross_entropy", cell.shape, cell.dim, cell.dtype, cell.option, cell.op)


class Group:
    """The workers of one regime and number of threads."""

    def __init__(
        self, plan: Plan, regime: str, threads: int | None, into: results.Results, folder: Path
    ) -> None:
        self.plan, self.regime, self.into, self.folder = plan, regime, into, folder
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

    def left_out(self, label: str, reason: str) -> None:
        for entry in self.into["left_out"]:
            if (entry["provider"], entry["reason"]) == (label, reason):
                entry["cells"] += 1
                return
        self.into["left_out"].append({"provider": label, "reason": reason, "cells": 1})

    def measure(self, cell: Cell) -> None:
        asked = []
        for worker in self.workers:
            assert worker.provider is not None
            reason = worker.provider.left_out(cell, self.asked_threads)
            if worker.provider.peer and self.asked_threads is not None and cell.input_bytes > LARGE:
                reason = reason or f"peers take part with one thread in cells of up to {LARGE >> 20} MiB"
            if reason:
                self.left_out(worker.label, reason)
            else:
                asked.append(worker)
        turn = Turn(self, cell, asked)
        # Each holds logits, upstream gradients and, for a backward alone, results; one at a time computes.
        needed = cell.input_bytes * (3 * len(asked) * turn.buffers + TEMPORARIES)
        if self.plan.options.device == "cpu" and needed > machine.available_memory() > 0:
            for worker in asked:
                self.left_out(worker.label, f"the providers together need about {needed >> 30} GiB")
            return
        try:
            turn.prepare()
            turn.rounds()
            turn.peaks()
        finally:
            # Before the workers are asked to finish: Ctrl-C must not lose the rounds that were had.
            self.into["rows"] += turn.rows()
        turn.finish()

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
