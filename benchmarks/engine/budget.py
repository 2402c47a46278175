# SPDX-License-Identifier: Apache-2.0
"""The time a run may take, dealt out to its cells.

How long a run takes depends on the machine, on who is installed and on how soon ratios are known. So no cell
has a time of its own: each gets, when it is ready to be measured, its share of what the cells still to come
can spare.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

# Seconds of work as expected that every correction begins with: the first parts of a run, in which frameworks
# warm up, must not speak for all of it.
PRIOR = 10.0


@dataclass(frozen=True)
class Part:
    """What is expected of the start of some workers or of a cell, in seconds on no machine in particular."""

    fixed: float  # whatever is not a round: starting, making inputs, preparing, checking, peaks
    fewest: float = 0.0  # as few rounds as a cell must have; 0 for what has none


class Correction:
    """How many times as long as expected work of a kind takes, from what it took so far."""

    def __init__(self) -> None:
        self.expected = self.actual = PRIOR

    def learn(self, expected: float, actual: float) -> None:
        self.expected += expected
        self.actual += actual

    @property
    def factor(self) -> float:
        return self.actual / self.expected


class Budget:
    """The parts follow each other without a gap: `end` ends one and begins the next. Before that, for a cell
    that can be measured, come `share` before its rounds, `had_fewest` after as many as it must have and
    `measured` after the last."""

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
        """Seconds for the rounds of this cell, which begin now."""
        self.rounds_from = self.clock()
        # A cell whose ratios are known early leaves time to the others: as much as it was so far is dealt out
        # beforehand, or the last cells had all of it.
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
        """Nothing is learned of a part that is not `typical`: a provider that hung says nothing of others."""
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
        """Seconds of rounds that a cell to come is expected to take, its fewest rounds taking less."""
        spare = self.start + self.seconds - self.clock() - self._fixed_to_come()
        return min(self.patience * self.used.factor, level(spare, self._fewest_to_come()))

    def _fixed_to_come(self) -> float:
        current, *coming = [self.fixed.factor * part.fixed for part in self.parts[self.at :]] or [0.0]
        return max(0.0, current - (self.clock() - self.begun)) + sum(coming)

    def _fewest_to_come(self) -> list[float]:
        return [self.fewest.factor * part.fewest for part in self.parts[self.at :] if part.fewest]


def level(total: float, fewest: Iterable[float]) -> float:
    """The equal share of the total, those whose fewest rounds take more than that having these; 0 where not
    even these can be had."""
    rest = sorted(fewest)
    while rest and rest[-1] * len(rest) > total:
        total -= rest.pop()
    return total / len(rest) if rest else 0.0
