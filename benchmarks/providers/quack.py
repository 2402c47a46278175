# SPDX-License-Identifier: Apache-2.0
"""QuACK: kernels in the CuTe DSL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.cells import Cell
from benchmarks.providers.cuda_peer import CudaPeer

VECTOR_BYTES = 16  # its softmax reads rows in whole vectors


class Quack(CudaPeer):
    """quack.softmax and quack.cross_entropy."""

    name = "quack"
    distribution = "quack-kernels"
    ops = ("softmax", "cross_entropy")

    def functions(self) -> dict[str, Callable[..., Any]]:
        import quack

        return {"softmax": quack.softmax, "cross_entropy": quack.cross_entropy}

    def left_out(self, cell: Cell, threads: int | None) -> str | None:
        reason = super().left_out(cell, threads)
        if reason is None and cell.op == "softmax" and cell.classes * cell.item_size % VECTOR_BYTES:
            return f"its softmax takes multiples of {VECTOR_BYTES // cell.item_size} classes in {cell.dtype}"
        return reason
