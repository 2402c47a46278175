# SPDX-License-Identifier: Apache-2.0
"""Distributes the time of a run over its cells.

The duration of a run depends on the machine, on the installed providers and on how soon ratios are known. So
no cell has a fixed time: when a cell is ready, it gets its share of the time that the remaining cells can
spare.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

# Every correction starts with this many seconds of work as expected. So the first parts of a run, in which
# frameworks warm up, do not decide about all of it.
PRIOR = 10.0


@dataclass(frozen=True)
class Part:
    """Expected seconds for starting some workers, or for a cell, on a typical machine."""

    fixed: float  # all work except rounds: starting, making inputs, preparing, checking, peaks
    fewest: float = 0.0  # the fewest rounds that a cell must have; 0 for parts without rounds


class Correction:
    """The ratio of actual to expected time for one kind of work, learned during the run."""

    def __init__(self) -> None:
        self.expected = self.actual = PRIOR

    def learn(self, expected: float, actual: float) -> None:
        self.expected += expected
        self.actual += actual

    @property
    def factor(self) -> float:
        return self.actual / self.expected


class Budget:
    """The parts follow each other without a gap: `end` ends one part and begins the next. For a measured
    cell, call `share` before its rounds, `had_fewest` after its fewest rounds and `measured` after the last
    one."""

    def __init__(
        self,
        seconds: float,
        parts: Sequence[Part],
        patience: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds, self.parts, self.patience, self.clock = seconds, parts, patience, clock
        self.start = clock()
        self.at = 0
        self.fixed, self.fewest, self.used = Correction(), Correction(), Correction()
        self._begin()

    def _begin(self) -> None:
        self.begun = self.rounds_from = self.clock()
        self.granted = self.rounds_took = self.fewest_took = 0.0

    def share(self) -> float:
        """Seconds for the rounds of this cell; they begin now."""
        self.rounds_from = self.clock()
        # A cell whose ratios are known early leaves time for the others. The saving so far predicts the
        # coming one, which is given out in advance: otherwise the last cells would get all of it.
        self.granted = min(self.patience, self._use() / self.used.factor)
        return self.granted

    def spent(self) -> float:
        """Seconds since the rounds of this cell began."""
        return self.clock() - self.rounds_from

    def had_fewest(self) -> None:
        self.fewest_took = self.spent()

    def measured(self) -> None:
        self.rounds_took = self.spent()

    def end(self, typical: bool = True) -> None:
        """A part that is not `typical` does not change the corrections, for example one with a hung
        provider."""
        part = self.parts[self.at]
        if typical and (self.rounds_took or not part.fewest):
            self.fixed.learn(part.fixed, self.clock() - self.begun - self.rounds_took)
        if typical and self.fewest_took:
            self.fewest.learn(part.fewest, self.fewest_took)
            self.used.learn(self.granted, min(self.granted, self.rounds_took))
        self.at += 1
        self._begin()

    def left(self) -> float:
        """Seconds that the rest of the run is expected to take."""
        use = self._use()
        return self._fixed_to_come() + sum(max(fewest, use) for fewest in self._fewest_to_come())

    def needed(self) -> float:
        """Seconds that the whole run is expected to take if every cell to come has its fewest rounds."""
        return self.clock() - self.start + self._fixed_to_come() + sum(self._fewest_to_come())

    def _use(self) -> float:
        """Expected seconds of rounds for a coming cell whose fewest rounds take less."""
        spare = self.start + self.seconds - self.clock() - self._fixed_to_come()
        return min(self.patience * self.used.factor, level(spare, self._fewest_to_come()))

    def _fixed_to_come(self) -> float:
        current, *coming = [self.fixed.factor * part.fixed for part in self.parts[self.at :]] or [0.0]
        return max(0.0, current - (self.clock() - self.begun)) + sum(coming)

    def _fewest_to_come(self) -> list[float]:
        return [self.fewest.factor * part.fewest for part in self.parts[self.at :] if part.fewest]


def level(total: float, fewest: Iterable[float]) -> float:
    """An equal share of the total. Cells whose fewest rounds take more than the share get these; 0 if there
    is not enough time for that."""
    rest = sorted(fewest)
    while rest and rest[-1] * len(rest) > total:
        total -= rest.pop()
    return total / len(rest) if rest else 0.0
