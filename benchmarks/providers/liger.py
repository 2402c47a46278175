# SPDX-License-Identifier: Apache-2.0
"""Liger-Kernel: Triton kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.cells import HEAD_OP, Cell
from benchmarks.providers.cuda_peer import CudaPeer

WIDEST_SOFTMAX = 65536  # its softmax raises an error for wider rows


class Liger(CudaPeer):
    """If the logits require a gradient, the forward of its cross_entropy writes it over them.

    Without requires_grad it computes only the loss, so it is measured in the pass "no-grad", too. Its head
    of a language model overwrites no input.
    """

    name = "liger"
    distribution = "liger_kernel"
    ops = ("softmax", "cross_entropy", HEAD_OP)
    overwrites_logits = True

    def functions(self) -> dict[str, Callable[..., Any]]:
        from liger_kernel.transformers import functional

        return {
            "softmax": functional.liger_softmax,
            "cross_entropy": functional.liger_cross_entropy,
            HEAD_OP: functional.liger_fused_linear_cross_entropy,
        }

    def left_out(self, cell: Cell, threads: int | None) -> str | None:
        reason = super().left_out(cell, threads)
        if reason is None and cell.op == "softmax" and cell.classes > WIDEST_SOFTMAX:
            return f"its softmax takes at most {WIDEST_SOFTMAX} classes"
        return reason
