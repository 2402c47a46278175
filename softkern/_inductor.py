# SPDX-License-Identifier: Apache-2.0
"""What torch.compile's inductor is told of softkern's ops.

Registered by the first op that is traced after inductor has been loaded: a process that doesn't compile
doesn't load it.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

_OPS = (
    "softmax",
    "log_softmax",
    "softmax_backward",
    "log_softmax_backward",
    "cross_entropy",
    "cross_entropy_",
    "cross_entropy_forward",
    "cross_entropy_forward_",
    "cross_entropy_backward",
    "cross_entropy_backward_",
)

_registered = False


def register() -> None:
    """Does nothing where inductor isn't loaded, and leaves ops as they are if it lacks what it takes."""
    global _registered
    lowering: Any = sys.modules.get("torch._inductor.lowering")
    if _registered or lowering is None or not hasattr(lowering, "make_fallback"):
        return
    _registered = True
    for name in _OPS:
        op = getattr(torch.ops.softkern, name).default
        if op not in lowering.lowerings:
            lowering.make_fallback(op, _layout_constraint(op, lowering), warn=False)


def _layout_constraint(op: Any, lowering: Any) -> Any:
    """The one that inductor gives ops that it has to find out about."""
    try:
        return lowering.tag_to_layout_constraint(
            torch._library.utils.get_layout_constraint_tag(op, with_default=True)
        )
    except AttributeError:
        return None
