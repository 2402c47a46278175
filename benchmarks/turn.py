# SPDX-License-Identifier: Apache-2.0
"""One cell: its providers made ready and checked, then asked for samples in turn, and the rows of that."""

from __future__ import annotations

import time
from math import isfinite
from typing import TYPE_CHECKING, Any

from benchmarks import machine, ops, regimes, results
from benchmarks.cells import Cell
from benchmarks.process import Worker, WorkerLost
from benchmarks.providers.base import LARGE

if TYPE_CHECKING:
    from benchmarks.conductor import Group

# How the pages of operands lie in the caches, which are indexed by physical addresses, is luck: worth a tenth
# of the time in some cells that fit them. Where outputs are preallocated, they lie on the same pages from the
# first call to the last, and in a virtual machine some pages are further away than others: worth a quarter of
# the time in large cells. So that luck evens out, operands are placed anew after as many rounds.
PLACED_FOR, LARGE_PLACED_FOR = 7, 5  # rounds
SMALLEST_COPY = 1 << 20  # bytes: below, a copy through Python is no measure of the memory


class Turn:
    def __init__(self, group: Group, cell: Cell, asked: list[Worker]) -> None:
        self.group, self.plan, self.cell = group, group.plan, cell
        self.asked = asked
        self.bytes = ops.bytes_moved(cell)
        self.cache = machine.last_level_cache()
        # Inputs and results of a call that don't fit the cache together are meant to come from memory: if the
        # cache could hold a good part of them from call to call, copies are taken in turn.
        self.memory = cell.elements > 0 and 2 * cell.input_bytes > self.cache
        self.buffers = self._copies(cell.input_bytes)
        self.state: dict[str, dict[str, Any]] = {}
        self.lost: dict[str, tuple[str, str]] = {}
        self.errors: dict[str, dict[str, float]] = {}
        self.samples: dict[str, list[float]] = {}
        self.faults: dict[str, list[float]] = {}
        self.peak: dict[str, int | None] = {}

    def prepare(self) -> None:
        folder = self.group.inputs_of(self.cell)
        self.message = {
            "do": "prepare",
            "cell": self.cell.as_dict(),
            "folder": str(folder) if folder else None,
            "buffers": self.buffers,
            "sample": self.plan.sample,
        }
        for worker in self.asked:
            self._ask(worker, self.message)
        self.asked = [worker for worker in self.asked if worker.label in self.state]
        if self.asked and self.bytes >= SMALLEST_COPY:
            buffers = self._copies(self.bytes)
            copy = {"do": "prepare_copy", "total": self.bytes, "buffers": buffers, "sample": self.plan.sample}
            self._ask(self.group.copy, copy)

    def _copies(self, size: int) -> int:
        """How many times that many bytes are twice the cache, in a cell that is to come from memory."""
        return -(-2 * self.cache // size) if self.memory else 1

    def _ask(self, worker: Worker, message: dict[str, Any]) -> dict[str, Any] | None:
        """The answer; None if the provider has lost this cell."""
        try:
            answer = worker.ask(message)
        except WorkerLost as lost:
            self.lost[worker.label] = ("failed", str(lost))
            return None
        for status in ("refused", "failed", "absent"):
            if status in answer:
                self.errors[worker.label] = answer.get("error", {})
                self.state.pop(worker.label, None)
                if status == "absent":
                    self.group.left_out(worker.label, answer[status])
                else:
                    self.lost[worker.label] = (status, answer[status])
                return None
        if message["do"].startswith("prepare"):
            self.state[worker.label] = answer
            self.errors[worker.label] = answer.get("error", {})
            self.samples[worker.label], self.faults[worker.label] = [], []
        return answer

    def rounds(self) -> None:
        least, enough, most = self.plan.rounds
        ready = [w for w in (*self.asked, self.group.copy) if w.label in self.state]
        sample = {"do": "sample", "warm": not self.memory}
        start = time.monotonic()
        placed_for = self._placed_for()
        least = max(least, (3 if placed_for == PLACED_FOR else 2) * placed_for)
        for k in range(most if self.asked else 0):
            spent = time.monotonic() - start
            patience = self.plan.patience if k < enough else self.plan.patience / 3
            if k >= least and k % placed_for == 0 and (spent > patience or self._settled()):
                return
            if k and placed_for > 1 and k % placed_for == 0:
                self._place_anew(k // placed_for)
            # Who comes first changes, so that nobody always runs in the wake of the same other.
            for worker in ready[k % len(ready) :] + ready[: k % len(ready)]:
                if worker.label in self.lost:
                    continue
                copying = worker is self.group.copy
                answer = self._ask(worker, {"do": "sample_copy"} if copying else sample)
                if answer:
                    self.samples[worker.label].append(answer["seconds"])
                    self.faults[worker.label].append(answer["faults"])

    def _placed_for(self) -> int:
        """Rounds until operands move to other pages; 1: they stay."""
        if 0 < self.cell.input_bytes <= LARGE:
            return PLACED_FOR
        return LARGE_PLACED_FOR if self.cell.elements and self.group.regime == "preallocated" else 1

    def _place_anew(self, turn: int) -> None:
        """All give their pages back before anybody takes new ones, and somebody else takes first: one that
        gives and takes alone gets the same pages again."""
        for worker in self._there():
            self._ask(worker, {"do": "release"})
        there = self._there()
        for worker in there[turn % len(there) :] + there[: turn % len(there)] if there else []:
            self._ask(worker, {**self.message, "do": "place_anew"})

    def _there(self) -> list[Worker]:
        return [worker for worker in self.asked if worker.label not in self.lost]

    def _settled(self) -> bool:
        """Whether the ratios to the first provider are known to about 2 %: McGill's notch, 1.57 interquartile
        ranges / sqrt(n), of the median."""
        there = [worker.label for worker in self._there()]
        first = self.samples[there[0]] if there else []
        for label in there[1:] or there:
            pairs = zip(first, self.samples[label], strict=True)
            ratios = sorted(b if label == there[0] else a / b for a, b in pairs)
            n = len(ratios)
            spread = ratios[(3 * n) // 4] - ratios[n // 4]
            if 1.57 * spread / n**0.5 > 0.02 * ratios[n // 2]:
                return False
        return True

    def peaks(self) -> None:
        """Once a cell, in the regime where what is freed goes back to the system."""
        if self.group.regime != "default" or self.cell.input_bytes < regimes.SMALLEST:
            return
        for worker in self._there():
            answer = self._ask(worker, {"do": "peak"})
            self.peak[worker.label] = answer["bytes"] if answer else None

    def finish(self) -> None:
        for worker in (*self.asked, self.group.copy):
            if worker.label in self.state and worker.label not in self.lost:
                self._ask(worker, {"do": "finish"})

    def rows(self) -> list[results.Row]:
        labels = [w.label for w in self.group.workers if w.label in self.state or w.label in self.lost]
        timed = [label for label in labels if self.samples.get(label) and label not in self.lost]
        # Ctrl-C may have come in the middle of a round: all have the rounds that the last one has.
        whole = min((len(self.samples[label]) for label in timed), default=0)
        rows = []
        for label in labels:
            row = self._row(label)
            if label in timed and whole:
                row.update(self._figures(label, timed[0], whole))
            elif label not in self.lost:
                continue
            rows.append(row)
        return rows

    def _row(self, label: str) -> results.Row:
        worker = next(w for w in self.group.workers if w.label == label)
        status, reason = self.lost.get(label, ("ok", ""))
        cell = self.cell
        return {
            "cell": cell.name,
            "op": cell.op,
            "pass_name": cell.pass_name,
            "dtype": cell.dtype,
            "shape": list(cell.shape),
            "dim": cell.dim,
            "option": cell.option,
            "device": cell.device,
            "main": cell.main,
            "provider": label,
            "version": worker.version,
            "regime": self.group.regime,
            "threads": self.group.threads,
            "status": status,
            "reason": reason,
            "error": {
                name: round(e, 3) if isfinite(e) else None for name, e in self.errors.get(label, {}).items()
            },
        }

    def _figures(self, label: str, baseline: str, whole: int) -> dict[str, Any]:
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
