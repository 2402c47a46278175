# SPDX-License-Identifier: Apache-2.0
"""The workers of one regime and number of threads, alive together."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from benchmarks import ops, problems, results
from benchmarks.answers import answers
from benchmarks.cells import Cell
from benchmarks.engine.budget import Budget
from benchmarks.engine.plan import Plan, inputs_key
from benchmarks.engine.process import Worker, WorkerLost


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
        if self.inputs != inputs_key(cell):
            shutil.rmtree(inputs, ignore_errors=True)
            problem = problems.make(cell)
            problems.save(problem, inputs)
            problems.save_answers(answers(cell, problem), inputs)
            self.inputs = inputs_key(cell)
        return inputs
