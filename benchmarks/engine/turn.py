# SPDX-License-Identifier: Apache-2.0
"""One cell: prepare and check its providers, take samples of them in turn, and make its rows."""

from __future__ import annotations

from math import isfinite
from typing import Any

from benchmarks import machine, ops, results
from benchmarks.cells import Cell
from benchmarks.engine import regimes
from benchmarks.engine.group import Group
from benchmarks.engine.plan import PLACED_FOR, fewest_rounds, placed_for
from benchmarks.engine.process import Worker, WorkerLost

PARTS_ASIDE = 8  # of the logits; a power of two: steps of 3 go through all of them
SMALLEST_COPY = 1 << 20  # bytes: below, a copy through Python is no measure of the memory


class Turn:
    def __init__(self, group: Group, cell: Cell, asked: list[Worker]) -> None:
        self.group, self.plan, self.cell = group, group.plan, cell
        self.asked = asked
        self.bytes = ops.bytes_moved(cell)
        # A device's cache is overwritten before each call, so everything comes from memory.
        self.cache = machine.last_level_cache() if cell.device == "cpu" else 0
        # If inputs and results of a call do not fit the cache together, they should come from memory. If the
        # cache could still hold a large part of them between calls, copies are used in turn.
        self.memory = cell.elements > 0 and 2 * cell.input_bytes > self.cache
        self.buffers = self._copies(cell.input_bytes)
        self.state: dict[str, dict[str, Any]] = {}
        self.lost: dict[str, tuple[str, str]] = {}
        self.errors: dict[str, dict[str, float]] = {}
        self.samples: dict[str, list[float]] = {}
        self.faults: dict[str, list[float]] = {}
        self.settled: set[str] = set()
        self.peak: dict[str, int | None] = {}

    def prepare(self, at_once: bool = False) -> None:
        """`at_once`: all workers prepare at the same time, and keep what their graphs allocate."""
        folder = self.group.inputs_of(self.cell)
        self.message = {
            "do": "prepare",
            "cell": self.cell.as_dict(),
            "folder": str(folder) if folder else None,
            "buffers": self.buffers,
            "room": at_once,
        }
        if at_once:
            told = [worker for worker in self.asked if self._tell(worker, self.message)]
            for worker in told:
                self._answer(worker, self.message)
        for worker in self.asked:
            if at_once or self._ask(worker, self.message):
                self._calibrate(worker)
        self.asked = [worker for worker in self._there() if worker.label in self.state]
        if self.asked and self.bytes >= SMALLEST_COPY:
            buffers = self._copies(self.bytes)
            self._ask(self.group.copy, {"do": "prepare_copy", "total": self.bytes, "buffers": buffers})
            self._calibrate(self.group.copy)

    def _copies(self, size: int) -> int:
        """How many times that many bytes fill twice the cache, if operands should come from memory."""
        return max(1, -(-2 * self.cache // size)) if self.memory else 1

    def _calibrate(self, worker: Worker) -> None:
        """Calibrate a prepared worker in its turn."""
        if worker.label in self.state:
            answer = self._ask(worker, {"do": "calibrate", "sample": self.plan.sample})
            self.state.get(worker.label, {}).update(answer or {})

    def _ask(self, worker: Worker, message: dict[str, Any]) -> dict[str, Any] | None:
        """The answer; None if the provider is out of this cell."""
        return self._answer(worker, message) if self._tell(worker, message) else None

    def _tell(self, worker: Worker, message: dict[str, Any]) -> bool:
        """Whether the worker has started the work."""
        try:
            worker.tell(message)
        except WorkerLost as lost:
            self.lost[worker.label] = ("failed", str(lost))
            return False
        return True

    def _answer(self, worker: Worker, message: dict[str, Any]) -> dict[str, Any] | None:
        try:
            answer = worker.answer()
        except WorkerLost as lost:
            self.lost[worker.label] = ("failed", str(lost))
            return None
        for status in ("refused", "failed", "absent"):
            if status in answer:
                self.errors[worker.label] = answer.get("error", {})
                self.state.pop(worker.label, None)
                if status == "absent":
                    self.group.leave_out(worker.label, answer[status])
                else:
                    self.lost[worker.label] = (status, answer[status])
                return None
        if message["do"].startswith("prepare"):
            self.state[worker.label] = answer
            self.errors[worker.label] = answer.get("error", {})
            self.samples[worker.label], self.faults[worker.label] = [], []
        return answer

    def rounds(self) -> None:
        rounds, budget = self.plan.rounds, self.group.budget
        anew = placed_for(self.cell, self.group.regime)
        fewest = fewest_rounds(rounds, self.cell, self.group.regime)
        least = max(rounds.least, (3 if anew == PLACED_FOR else 2) * anew)
        share = budget.share()
        needed = fewest if share < self.plan.patience else least
        spent = 0.0
        for k in range(rounds.most if self.asked else 0):
            if k and k % anew == 0:
                before, spent = spent, budget.spent()
                patience = share if k < rounds.enough else min(share, self.plan.patience / 3)
                # With one more placement, the end would be further from that time.
                tired = spent + (spent - before) / 2 > patience
                if (k >= needed and tired) or (k >= least and self._settle()):
                    break
                if anew > 1:
                    self._place_anew(k // anew)
            self._round(k)
            if k + 1 == fewest:
                budget.had_fewest()
        budget.measured()

    def _round(self, k: int) -> None:
        """Each round starts with another worker, so that none always runs after the same other one."""
        sample = {"do": "sample"}
        ready = self._going()
        if self.group.copy.label in self.state:
            ready.append(self.group.copy)
        for worker in ready[k % len(ready) :] + ready[: k % len(ready)] if ready else []:
            if worker.label in self.lost:
                continue
            copying = worker is self.group.copy
            answer = self._ask(worker, {"do": "sample_copy"} if copying else sample)
            if answer:
                self.samples[worker.label].append(answer["seconds"])
                self.faults[worker.label].append(answer["faults"])
                provider = worker.provider
                if provider and len(self.samples[worker.label]) == provider.rounds(self.cell):
                    self._leave(worker)

    def _place_anew(self, turn: int) -> None:
        """All workers give their pages back before any takes new ones, and each time another one is first: a
        worker that gives and takes alone gets the same pages again. Before that, each sets some pages aside,
        never as many as the last time."""
        for worker in self._going():
            self._ask(worker, {"do": "release"})
        # Multiples of huge pages keep the places of operands relative to huge pages.
        unit = max(1, self.cell.input_bytes // PARTS_ASIDE // regimes.HUGE_PAGE) * regimes.HUGE_PAGE
        going = self._going()
        for worker in going[turn % len(going) :] + going[: turn % len(going)] if going else []:
            aside = (1 + (3 * turn + 5 * self.asked.index(worker)) % PARTS_ASIDE) * unit
            self._ask(worker, {**self.message, "do": "place_anew", "aside": aside})
            self._calibrate(worker)

    def _there(self) -> list[Worker]:
        return [worker for worker in self.asked if worker.label not in self.lost]

    def _going(self) -> list[Worker]:
        """The workers that still take samples."""
        return [worker for worker in self._there() if worker.label not in self.settled]

    def _settle(self) -> bool:
        """Stop sampling the workers whose ratios to the first one are known. Returns whether none is left.

        These workers give their pages back, so the others move among as many free pages as before.
        """
        there = self._there()
        if not there or there[0].label in self.settled:  # it is first because the former first one was lost
            return True
        first, *others = there
        unknown = [w for w in others or there if w.label not in self.settled and not self._known(w, first)]
        for worker in self._going() if unknown else []:
            if worker is not first and worker not in unknown:
                self._leave(worker)
        return not unknown

    def _leave(self, worker: Worker) -> None:
        """It takes no more samples."""
        self._peak(worker)
        self._ask(worker, {"do": "release"})
        self.settled.add(worker.label)

    def _known(self, worker: Worker, first: Worker) -> bool:
        """Whether the ratio to the first provider is known to about 2 %; for the first provider, its time.
        The measure is McGill's notch of the median, 1.57 interquartile ranges / sqrt(n)."""
        pairs = zip(self.samples[first.label], self.samples[worker.label], strict=True)
        ratios = sorted(b if worker is first else a / b for a, b in pairs)
        n = len(ratios)
        spread = ratios[(3 * n) // 4] - ratios[n // 4]
        return bool(1.57 * spread / n**0.5 <= 0.02 * ratios[n // 2])

    def peaks(self) -> None:
        for worker in self._going():
            self._peak(worker)

    def _peak(self, worker: Worker) -> None:
        """Measured once per cell, in the regime where freed memory goes back to the system."""
        if self.group.regime == "default" and self.cell.input_bytes >= regimes.SMALLEST:
            answer = self._ask(worker, {"do": "peak"})
            self.peak[worker.label] = answer["bytes"] if answer else None

    def finish(self) -> None:
        """All workers free the memory of this cell before the next one."""
        for worker in (*self._going(), self.group.copy):
            if worker.label in self.state and worker.label not in self.lost:
                self._ask(worker, {"do": "release"})

    def rows(self) -> list[results.Row]:
        labels = [w.label for w in self.group.workers if w.label in self.state or w.label in self.lost]
        timed = [label for label in labels if self.samples.get(label) and label not in self.lost]
        rows = []
        for label in labels:
            row = self._row(label)
            if label in timed:
                row.update(self._figures(label, timed[0]))
            elif label not in self.lost:
                continue
            rows.append(row)
        return rows

    def _row(self, label: str) -> results.Row:
        worker = next(w for w in self.group.workers if w.label == label)
        status, reason = self.lost.get(label, ("ok", ""))
        cell = self.cell
        products = {"flops": ops.flops(cell), "result_bytes": ops.result_bytes(cell)}
        return {
            "cell": cell.name,
            "op": cell.op,
            "pass_name": cell.pass_name,
            "dtype": cell.dtype,
            "shape": list(cell.shape),
            "dim": cell.dim,
            "option": cell.option,
            "inputs": cell.inputs,
            "device": cell.device,
            "main": cell.main,
            "edge": cell.edge,
            "provider": label,
            "version": worker.version,
            "regime": self.group.regime,
            "threads": self.group.threads,
            "status": status,
            "reason": reason,
            "error": {
                name: round(e, 3) if isfinite(e) else None for name, e in self.errors.get(label, {}).items()
            },
            **(products if products["flops"] else {}),
        }

    def _figures(self, label: str, baseline: str) -> dict[str, Any]:
        # The baseline takes part in every round, but Ctrl-C may have come before its turn in the last one.
        whole = min(len(self.samples[label]), len(self.samples[baseline]))
        samples = self.samples[label][:whole]
        summary = results.summary(samples)
        copy = self.samples.get("copy", [])[:whole]
        gbps = self.bytes / summary["median"] / 1e9
        copy_gbps = self.bytes / results.summary(copy)["median"] / 1e9 if copy else None
        return {
            "samples": [float(f"{s:.5g}") for s in samples],
            "repeats": self.state[label]["repeats"],
            **{name: float(f"{value:.5g}") for name, value in summary.items()},
            "ratio": round(results.paired_ratio(self.samples[baseline][:whole], samples), 4),
            "baseline": baseline,
            "how": self.state[label].get("how", ""),
            "bytes": self.bytes,
            "gbps": float(f"{gbps:.4g}"),
            "copy_gbps": copy_gbps and float(f"{copy_gbps:.4g}"),
            "copy_percent": copy_gbps and round(100 * gbps / copy_gbps, 1),
            "residency": "memory" if self.memory else "cache",
            "buffers": self.buffers,
            "peak_bytes": self.peak.get(label),
            "faults": round(results.summary(self.faults[label][:whole])["median"], 1),
        }
