# SPDX-License-Identifier: Apache-2.0
"""The kernels for GPUs in Triton, which compiles them where they run: no compiler is needed to install
softkern.

Imported where a tensor on a GPU needs it, not by ``import softkern``. The shape of a program is in ``plan``,
the maths in ``elementary``, ``formulas``, ``rows`` and the ``*_kernels`` modules, the ops on tensors in those
of their names."""

from __future__ import annotations

import torch

from softkern.triton import cross_entropy, log_softmax, softmax
from softkern.triton.settings import INTERPRETED

OPS = (
    softmax.softmax,
    softmax.softmax_backward,
    log_softmax.log_softmax,
    log_softmax.log_softmax_backward,
    cross_entropy.target_weight,
    cross_entropy.cross_entropy_rows,
    cross_entropy.reduce_losses,
    cross_entropy.scale_gradient,
)
# GPUs for which Triton has a compiler, AMD's among them, which torch calls CUDA; its interpreter takes
# tensors of the CPU.
KEYS = ("CUDA", "XPU", *(("CPU",) if INTERPRETED else ()))

_registered: torch.library.Library | None = None


def register() -> None:
    """Makes the functions of this package the kernels of the ops ``softkern_triton::*``. Once is enough."""
    global _registered
    if _registered is not None:
        return
    library = torch.library.Library("softkern_triton", "IMPL")  # type: ignore[no-untyped-call]
    for op in OPS:
        for key in KEYS:
            library.impl(op.__name__, op, key)  # type: ignore[no-untyped-call]
    _registered = library
