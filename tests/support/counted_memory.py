# SPDX-License-Identifier: Apache-2.0
"""Memory that counts: toy kernels on it say how many bytes an op has to move."""

from __future__ import annotations

import numpy as np


class Memory:
    """An array whose rows are loaded and stored one by one; `moved` counts the bytes of both."""

    moved = 0

    def __init__(self, values: np.ndarray, item_size: int) -> None:
        self.values, self.item_size = values, item_size

    def load(self, i: int) -> np.ndarray:
        Memory.moved += self.values[i].size * self.item_size
        return self.values[i]

    def store(self, i: int, row: np.ndarray) -> None:
        Memory.moved += self.values[i].size * self.item_size
        self.values[i] = row
