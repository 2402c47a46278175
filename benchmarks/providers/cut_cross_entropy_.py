# SPDX-License-Identifier: Apache-2.0
"""Apple's cut-cross-entropy: Triton kernels for the head of a language model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.cells import HEAD_OP, Cell
from benchmarks.providers.cuda_peer import CudaPeer


class CutCrossEntropy(CudaPeer):
    """Without options: it skips blocks of small gradients."""

    name = "cut-cross-entropy"
    distribution = "cut_cross_entropy"
    ops = (HEAD_OP,)

    def functions(self) -> dict[str, Callable[..., Any]]:
        from cut_cross_entropy import linear_cross_entropy

        return {HEAD_OP: linear_cross_entropy}

    def left_out(self, cell: Cell, threads: int | None) -> str | None:
        reason = super().left_out(cell, threads)
        if reason is None and cell.item_size > 2:
            return f"has no products in {cell.dtype}"
        return reason
