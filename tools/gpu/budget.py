# SPDX-License-Identifier: Apache-2.0
"""The seconds of a run, and how its steps share them."""

from __future__ import annotations

import time
from collections.abc import Callable


class Budget:
    """Each step has seconds of its own, and those that the steps before it did not use. None goes beyond the
    end of the run."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self.clock = seconds, clock
        self.start = self.begun = clock()
        self.own = self.saved = 0.0

    def begin(self, own: float) -> float:
        """The seconds of the step that begins now."""
        self.begun, self.own = self.clock(), own
        return self.of_step()

    def of_step(self) -> float:
        """What is left of the seconds of the present step."""
        granted = self.own + self.saved - (self.clock() - self.begun)
        return max(0.0, min(granted, self.left()))

    def end(self) -> None:
        self.saved = max(0.0, self.saved + self.own - (self.clock() - self.begun))
        self.own = 0.0

    def left(self) -> float:
        """Of the run."""
        return max(0.0, self.start + self.seconds - self.clock())

    def spent(self) -> float:
        return self.clock() - self.start
