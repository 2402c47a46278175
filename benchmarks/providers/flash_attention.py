# SPDX-License-Identifier: Apache-2.0
"""flash-attention's cross-entropy: a Triton kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.providers.cuda_peer import CudaPeer


class FlashAttention(CudaPeer):
    """The kernel gives a loss per row, in float32; torch takes the mean."""

    name = "flash-attention"
    distribution = "flash-attn"
    ops = ("cross_entropy",)

    def functions(self) -> dict[str, Callable[..., Any]]:
        from flash_attn.ops.triton.cross_entropy import cross_entropy_loss

        def cross_entropy(x: Any, target: Any) -> Any:
            losses, _ = cross_entropy_loss(x, target)
            return losses.mean()

        return {"cross_entropy": cross_entropy}
