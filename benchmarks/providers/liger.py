# SPDX-License-Identifier: Apache-2.0
"""Liger-Kernel: Triton kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.cells import Cell
from benchmarks.providers.cuda_peer import CudaPeer

WIDEST_SOFTMAX = 65536  # its softmax raises above


class Liger(CudaPeer):
    """Its cross_entropy writes the gradient in the forward, where the logits require one, and over them.

    Without requires_grad it computes the loss alone, so it has a place in the no-grad column.
    """

    name = "liger"
    distribution = "liger_kernel"
    ops = ("softmax", "cross_entropy")
    overwrites_logits = True

    def functions(self) -> dict[str, Callable[..., Any]]:
        from liger_kernel.transformers.functional import liger_cross_entropy, liger_softmax

        return {"softmax": liger_softmax, "cross_entropy": liger_cross_entropy}

    def left_out(self, cell: Cell, threads: int | None) -> str | None:
        reason = super().left_out(cell, threads)
        if reason is None and cell.op == "softmax" and cell.classes > WIDEST_SOFTMAX:
            return f"its softmax takes at most {WIDEST_SOFTMAX} classes"
        return reason
