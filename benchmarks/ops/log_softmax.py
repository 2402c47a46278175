# SPDX-License-Identifier: Apache-2.0
"""log_softmax: shapes, calls and bytes."""

from __future__ import annotations

from typing import Any

from benchmarks.cells import Cell
from benchmarks.ops import softmax

CPU = softmax.CPU
CUDA = softmax.CUDA
EDGES = softmax.EDGES
OWN, OWN_CUDA = softmax.OWN, softmax.OWN_CUDA
summed_up = softmax.summed_up
bytes_moved = softmax.bytes_moved  # its backward also reads y and dy


def call(api: Any, cell: Cell, x: Any, target: Any = None, weight: Any = None) -> Any:
    return api.log_softmax(x, cell.dim)
