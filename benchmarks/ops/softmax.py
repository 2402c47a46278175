# SPDX-License-Identifier: Apache-2.0
"""softmax: shapes, calls and bytes."""

from __future__ import annotations

from typing import Any

from benchmarks.cells import Case, Cell
from benchmarks.ops import shapes

CPU = (
    *shapes.CPU,
    Case((64, 1000, 196), dim=1, main=True),
    Case((4096, 1000), dtypes=("bfloat16", "float64")),
    Case((2048, 32000), dtypes=("bfloat16",)),
)
CUDA = shapes.CUDA


def call(api: Any, cell: Cell, x: Any, target: Any = None, weight: Any = None) -> Any:
    return api.softmax(x, cell.dim)


def bytes_moved(cell: Cell) -> int:
    """y = softmax(x) reads x and writes y; its backward reads y and dy and writes dx."""
    sweeps = {"no-grad": 2, "forward": 2, "backward": 3, "forward+backward": 5}[cell.pass_name]
    return sweeps * cell.input_bytes
