# SPDX-License-Identifier: Apache-2.0
"""Lowerings of softkern's ops for inductor, the default backend of torch.compile.

The first op that is traced after inductor was loaded registers them. So a process that does not compile does
not load inductor.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from softkern import _C

_registered = False


def register() -> None:
    """Does nothing if inductor is not loaded; leaves ops unchanged if inductor lacks the functions needed."""
    global _registered
    lowering: Any = sys.modules.get("torch._inductor.lowering")
    if _registered or lowering is None or not hasattr(lowering, "make_fallback"):
        return
    _registered = True
    _lower_scaling(lowering)
    for name in _C.op_names():
        op = getattr(torch.ops.softkern, name).default
        if op not in lowering.lowerings:
            lowering.make_fallback(op, _layout_constraint(op, lowering), warn=False)


def _layout_constraint(op: Any, lowering: Any) -> Any:
    """The constraint that inductor itself gives to ops without a lowering."""
    try:
        return lowering.tag_to_layout_constraint(
            torch._library.utils.get_layout_constraint_tag(op, with_default=True)
        )
    except AttributeError:
        return None


def _lower_scaling(lowering: Any) -> None:
    """cross_entropy_backward stays an op if inductor lacks the functions that its expression needs."""
    try:
        scale, mark = _scaling(lowering.lowerings), lowering.register_lowering
    except (AttributeError, KeyError):
        return
    mark(torch.ops.softkern.cross_entropy_backward.default, type_promotion_kind=None)(scale)


def _scaling(lowerings: dict[Any, Any]) -> Any:
    """cross_entropy_backward as an elementwise expression of the gradient that the forward has stored.

    As an op, it would get a second tensor of that size for its result. Inductor's own expressions overwrite
    a tensor that is no longer needed.
    """
    aten = torch.ops.aten
    to = lowerings[torch.ops.prims.convert_element_type.default]
    equals, where = lowerings[aten.eq.Scalar], lowerings[aten.where.self]
    times, unsqueeze, full = (
        lowerings[aten.mul.Tensor],
        lowerings[aten.unsqueeze.default],
        lowerings[aten.full.default],
    )

    def cross_entropy_backward(
        grad_output: Any, grad: Any, grad_scale: Any, target: Any, ignore_index: Any
    ) -> Any:
        compute, dims = grad_scale.get_dtype(), len(grad.get_size())
        class_dim = min(1, dims - 1)
        factor = times(to(grad_output, compute), grad_scale)
        if len(target.get_size()) != dims:
            # Ignored rows are stored as zeros and have to stay zeros: 0 * inf must not make them NaN.
            ignored = equals(to(target, torch.int64), ignore_index)
            zero = full([], 0.0, dtype=compute, device=grad.get_device())
            factor = where(ignored, zero, factor)
        if len(factor.get_size()) > 0:
            factor = unsqueeze(factor, class_dim)
        return to(times(to(grad, compute), factor), grad.get_dtype())

    return cross_entropy_backward
