# SPDX-License-Identifier: Apache-2.0
"""Functions that `softkern.install` leaves in the place of others: of patches, and, where no extension can
exchange the code of a C function (``softkern._binding``), of torch's softmaxes."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Any

import torch
from torch import Tensor

from softkern import _C
from softkern._binding.behind import Others, decision

Function = Callable[..., Tensor]


def for_a_patch(ours: Function, theirs: Function) -> Function:
    """softkern for plain tensors, the patch for others."""

    def stand_in(*args: Any, **kwargs: Any) -> Tensor:
        tensors = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        plain = all(type(x) in (Tensor, torch.nn.Parameter) for x in tensors)
        return (ours if plain else theirs)(*args, **kwargs)

    return update_wrapper(stand_in, theirs)


def for_c(op: str, others: Others, torchs: Function) -> Function:
    """softkern for the calls that ``csrc/behind.cpp`` takes, torch's code for all others."""
    ours = decision(getattr(_C, op), others, _C.makes_a_graph)

    def stand_in(*args: Any, **kwargs: Any) -> Tensor:
        result = NotImplemented if torch.compiler.is_dynamo_compiling() else ours(*args, **kwargs)
        return torchs(*args, **kwargs) if result is NotImplemented else result

    return update_wrapper(stand_in, torchs)
