# SPDX-License-Identifier: Apache-2.0
"""selective_log_softmax with the entropy: shapes, calls and bytes.

Reinforcement learning of language models needs both of every token, with gradients: the logits are those of
sequences of tokens. F has neither.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.cells import Case, Cell

ENTROPY = "entropy"
WHOLE = ("no-grad", "forward+backward")

CPU = CUDA = EDGES = ()
OWN = (Case((8, 256, 32000), dtypes=("float32", "bfloat16"), passes=WHOLE, option=ENTROPY, compiled=True),)
# 8192 tokens of Qwen's vocabulary.
OWN_CUDA = (Case((8, 1024, 151936), dtypes=("bfloat16",), passes=WHOLE, option=ENTROPY, compiled=True),)


class Selected(NamedTuple):
    log_prob: Any
    entropy: Any


def call(api: Any, cell: Cell, x: Any, target: Any = None, weight: Any = None) -> Selected:
    return Selected(*api.selective_log_softmax(x, target, entropy=True))


def summed_up(cell: Cell, output: Selected, weight: Any) -> Any:
    """The differentiated value: each row has upstream gradients of its own."""
    return (output.log_prob * weight[0] + output.entropy * weight[1]).sum()


def bytes_moved(cell: Cell) -> int:
    """The forward reads the logits and the indices, and writes both values in the compute dtype. The backward
    knows its upstream gradients only then: it reads the logits and the indices again, and writes the
    gradient."""
    index, compute = 8, max(4, cell.item_size)  # int64; float32 for 16-bit logits
    forward = cell.input_bytes + (index + 2 * compute) * cell.rows
    backward = 2 * cell.input_bytes + (index + 2 * compute) * cell.rows
    return forward + (backward if cell.pass_name == "forward+backward" else 0)
