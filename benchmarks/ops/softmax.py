# SPDX-License-Identifier: Apache-2.0
"""softmax: shapes, calls and bytes.

An option sums the output up to one number before the backward. Then all entries of the output, or of a row,
have the same upstream gradient, which autograd passes with strides of 0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.cells import Case, Cell
from benchmarks.ops import shapes

OPTIONS = ("sum", "mean", "row-weights")
BACKWARD = ("forward+backward", "backward")
MASKED_PASSES = ("no-grad", *BACKWARD)

CPU = (
    *shapes.CPU,
    Case((64, 1000, 196), dim=1, main=True),
    Case((4096, 1000), dtypes=("bfloat16", "float64")),
    Case((2048, 32000), dtypes=("bfloat16",)),
    Case((4, 256, 256), passes=MASKED_PASSES, inputs="causal", edge=True),
    Case((512, 1000), passes=MASKED_PASSES, inputs="half-inf", edge=True),
    Case((512, 1000), passes=("backward",), option="sum", edge=True),
    Case((100, 100, 3, 3), 1, passes=("backward",), edge=True),
)
# In addition to the edges of the full run.
EDGES = (
    *(replace(case, passes=MASKED_PASSES) for case in shapes.MASKED),
    Case((4, 256, 256), dtypes=("bfloat16",), passes=MASKED_PASSES, inputs="causal", edge=True),
    Case((8, 1024, 1024), passes=MASKED_PASSES, inputs="causal", edge=True),
    Case((1000, 512), 0, passes=MASKED_PASSES, inputs="half-inf", edge=True),
    Case((64, 1000, 49), 1, passes=MASKED_PASSES, inputs="half-inf", edge=True),
    Case((64, 1000, 49), 1, passes=MASKED_PASSES, inputs="half-1e4", edge=True),
    Case((512, 1000), passes=("forward+backward",), option="sum", edge=True),
    Case((512, 1000), dtypes=("bfloat16",), passes=BACKWARD, option="sum", edge=True),
    *(Case((512, 1000), passes=BACKWARD, option=option, edge=True) for option in ("mean", "row-weights")),
    *(
        Case(shape, dim, passes=BACKWARD, option=option, edge=True)
        for shape, dim in (((4096, 1000), -1), ((65536, 10), -1), ((100, 100, 3, 3), 1), ((4, 4096, 8), 1))
        for option in OPTIONS
    ),
    Case((100, 100, 3, 3), 1, passes=("forward+backward",), edge=True),
    Case((4, 4096, 8), 1, passes=BACKWARD, edge=True),
)
CUDA = shapes.CUDA
OWN = OWN_CUDA = ()  # cases of options that F lacks


def call(api: Any, cell: Cell, x: Any, target: Any = None, weight: Any = None) -> Any:
    return api.softmax(x, cell.dim)


def summed_up(cell: Cell, output: Any, weight: Any) -> Any:
    """The differentiated value."""
    if cell.option == "sum":
        return output.sum()
    if cell.option == "mean":
        return output.mean()
    if cell.option == "row-weights":
        return (output.sum(cell.dim) * weight).sum()
    return output


def bytes_moved(cell: Cell) -> int:
    """y = softmax(x) reads x and writes y; its backward reads y and dy and writes dx. With an option, dy is
    one number, or one per row, which the forward reads as well."""
    sweeps = {"no-grad": 2, "forward": 2, "backward": 3, "forward+backward": 5}[cell.pass_name]
    if not cell.option:
        return sweeps * cell.input_bytes
    vectors = {"backward": 1, "forward+backward": 2}[cell.pass_name] if cell.option == "row-weights" else 0
    return (sweeps - 1) * cell.input_bytes + vectors * cell.rows * cell.item_size
