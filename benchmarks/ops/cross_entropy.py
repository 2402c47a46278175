# SPDX-License-Identifier: Apache-2.0
"""cross_entropy: shapes, calls and bytes. Classes are dimension 1, as in F.cross_entropy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks import options
from benchmarks.cells import CREATE_GRAPH, Case, Cell
from benchmarks.ops import shapes
from benchmarks.problems import IGNORE_INDEX, LABEL_SMOOTHING

OPTIONS = ("label_smoothing", "weight+ignore_index", "probabilities", "none")
LLAMA = (512, 128256)  # for the loss, the vocabulary in most comparisons
WHOLE = ("no-grad", "forward+backward")

CPU = (
    *(replace(case, dim=1, main=case.main or case.shape == LLAMA) for case in shapes.CPU),
    Case((4, 21, 256, 256), dim=1, main=True),
    *(Case((4096, 1000), dim=1, passes=WHOLE, option=option) for option in OPTIONS),
    *(Case((65536, 10), dim=1, passes=WHOLE, option=option) for option in OPTIONS),
    Case((4096, 1024), dim=1, dtypes=("bfloat16",), main=True),
    Case((1024, 32000), dim=1, dtypes=("bfloat16",), main=True),
    Case((1024, 1000), dim=1, dtypes=("float64",)),
    Case((512, 1000), dim=1, passes=WHOLE, inputs="half-inf", edge=True),
    Case((8, 21, 64, 64), 1, ("float16",), ("forward+backward",), "probabilities", edge=True),
    Case((512, 1000), dim=1, passes=(CREATE_GRAPH,), edge=True),
)
# In addition to the edges of the full run.
EDGES = (
    *(replace(case, dim=1, passes=WHOLE) for case in shapes.MASKED),
    Case((8, 21, 64, 64), dim=1, passes=WHOLE, inputs="half-inf", edge=True),
    *(
        Case(shape, 1, ("float16",), ("forward+backward",), "probabilities", edge=True)
        for shape in ((2, 3, 256, 256), (50000, 2))
    ),
    Case((4096, 1000), dim=1, passes=(CREATE_GRAPH,), edge=True),
)
CUDA = tuple(replace(case, dim=1) for case in shapes.CUDA)
# One option at a time.
OWN = tuple(
    Case(shape, 1, passes=("forward+backward",), option=option, compiled=True)
    for shape in ((4096, 1000), (2048, 32000))
    for option in options.OWN
)
OWN_CUDA = tuple(
    Case((2048, 128256), 1, ("bfloat16",), ("forward+backward",), option, compiled=True)
    for option in options.OWN
)


def call(api: Any, cell: Cell, x: Any, target: Any = None, weight: Any = None) -> Any:
    if cell.option == "label_smoothing":
        return api.cross_entropy(x, target, label_smoothing=LABEL_SMOOTHING)
    if cell.option == "weight+ignore_index":
        return api.cross_entropy(x, target, weight=weight, ignore_index=IGNORE_INDEX)
    if cell.option == "none":
        return api.cross_entropy(x, target, reduction="none")
    if cell.option in options.OWN:
        return api.cross_entropy(x, target, **options.keywords(cell, weight))
    return api.cross_entropy(x, target)  # class indices or probabilities


def summed_up(cell: Cell, output: Any, weight: Any) -> Any:
    """The differentiated value: the loss, without its statistics."""
    return output[0] if cell.option == "stats" else output


def bytes_moved(cell: Cell) -> int:
    """The loss reads the logits and the targets. Its gradient is one more write if the same pass makes it. A
    separate backward is one read and one write, and reads the targets again. A graph of the gradient moves
    no more bytes: it saves tensors that exist already."""
    sweeps = 1 if cell.pass_name in ("no-grad", "forward") else 2
    index_bytes = 8  # int64
    target = cell.input_bytes if cell.option == "probabilities" else index_bytes * cell.rows
    weight = cell.classes * cell.item_size if cell.option == "weight+ignore_index" else 0
    per_row = 0
    if cell.option == "none":  # writes the losses, reads their gradients
        vectors = 2 if cell.pass_name in ("forward+backward", CREATE_GRAPH) else 1
        per_row = vectors * cell.rows * cell.item_size
    own = options.bytes_beside(cell)
    return sweeps * cell.input_bytes + target + weight + per_row + own
