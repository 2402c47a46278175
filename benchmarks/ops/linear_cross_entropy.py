# SPDX-License-Identifier: Apache-2.0
"""linear_cross_entropy, the head of a language model: shapes, calls, products and results.

A shape is N x H x V: rows, features, classes. The weight has no bias, as in most language models.
"""

from __future__ import annotations

from typing import Any

from benchmarks.cells import Case, Cell

WHOLE = ("no-grad", "forward+backward")

CPU = CUDA = EDGES = OWN = OWN_CUDA = ()
# GPT-2 small; then a vocabulary whose logits take a gigabyte.
HEAD = (
    *(
        Case((rows, 768, 50257), dtypes=("float32", "bfloat16"), passes=WHOLE, compiled=True)
        for rows in (512, 2048)
    ),
    Case((4096, 1024, 128256), dtypes=("bfloat16",), passes=("forward+backward",)),
)
# Llama 3 8B.
HEAD_CUDA = (Case((8192, 4096, 128256), dtypes=("bfloat16",), passes=WHOLE, compiled=True),)


def call(api: Any, cell: Cell, x: Any, target: Any = None, weight: Any = None) -> Any:
    return api.linear_cross_entropy(x, weight, target)


def bytes_moved(cell: Cell) -> int:
    """Not declared: its products take the time."""
    return 0


def flops(cell: Cell) -> int:
    """Of the products: that of the logits, and those of the gradients of input and weight. A plan that
    computes the logits again gets no more of them."""
    rows, features, classes = cell.shape
    products = 3 if cell.pass_name == "forward+backward" else 1
    return products * 2 * rows * features * classes


def result_bytes(cell: Cell) -> int:
    """Of the gradients: those of input and weight are as large as these."""
    return cell.operand_bytes if cell.pass_name == "forward+backward" else 0
