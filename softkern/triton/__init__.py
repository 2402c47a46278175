# SPDX-License-Identifier: Apache-2.0
"""The GPU kernels in Triton. Triton compiles them at run time, so no compiler is needed to install softkern.

The package is imported when a tensor on a GPU needs it, not by ``import softkern``. ``plan`` chooses the
shape of a program. The mathematics is in ``elementary``, ``formulas``, ``rows``, ``row_losses_blocks`` and
the ``*_kernels`` modules. Each op on tensors is in the module of its name."""

from __future__ import annotations

import torch

from softkern.triton import cross_entropy, log_softmax, row_losses, row_merge, softmax
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
    row_losses.row_losses,
    row_merge.merge_rows,
)
# GPUs for which Triton has a compiler. They include AMD's, which torch calls CUDA. Triton's interpreter takes
# CPU tensors.
KEYS = ("CUDA", "XPU", *(("CPU",) if INTERPRETED else ()))

_registered: torch.library.Library | None = None


def register() -> None:
    """Registers the functions of this package as the kernels of the ops ``softkern_triton::*``. Further calls
    do nothing."""
    global _registered
    if _registered is not None:
        return
    library = torch.library.Library("softkern_triton", "IMPL")  # type: ignore[no-untyped-call]
    for op in OPS:
        for key in KEYS:
            library.impl(op.__name__, op, key)  # type: ignore[no-untyped-call]
    _registered = library
