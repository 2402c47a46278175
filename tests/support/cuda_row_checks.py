# SPDX-License-Identifier: Apache-2.0
"""Checks the step row_losses of the CUDA kernels against the float64 oracle, on a GPU and emulated."""

from __future__ import annotations

from typing import Any

import torch
from compare import assert_gradient, assert_same_bits
from cuda_checks import DEVICE, logits, way
from row_losses_cases import row_problem
from row_losses_checks import DIFFERENTIABLE, OUTPUTS, arguments, check_values, in_float64, possible
from row_losses_scales import scales
from torch import Tensor

from softkern import reference
from softkern.reference_rows import RowLosses

ops = torch.ops.softkern


def problem(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, **kwargs: Any):
    """As row_problem, on the device of the kernels."""
    x, options = row_problem(shape, dtype, **kwargs)
    moved = {k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in options.items()}
    return x.to(DEVICE), {**moved, "reduction": "none"}


def forward(x: Tensor, need_grad: bool = False, outputs: tuple[str, ...] | None = None, **options: Any):
    """The results, None for those that are not wanted, and the gradient of the losses."""
    outputs = possible(x, **options) if outputs is None else outputs
    *found, grad = ops.row_losses_forward(x, *arguments(x, outputs, **options), need_grad)
    return RowLosses(*(t if n in outputs else None for t, n in zip(found, OUTPUTS, strict=True))), grad


def backward(grads: dict[str, Tensor], x: Tensor, *, inplace: bool = False, **options: Any) -> Tensor:
    given = (*map(grads.get, DIFFERENTIABLE), x, *arguments(x, possible(x, **options), **options))
    if not inplace:
        return ops.row_losses_backward(*given)
    ops.row_losses_backward_(*given)
    return x


def upstream(found: RowLosses, mix: tuple[str, ...]) -> dict[str, Tensor]:
    """Random ones of the results that there are."""
    results = {n: t for n in mix if (t := getattr(found, n)) is not None}
    return {n: logits(*t.shape, dtype=t.dtype, seed=i) for i, (n, t) in enumerate(results.items(), 7)}


def check_gradient(dx: Tensor, grads: dict[str, Tensor], x: Tensor, **options: Any) -> None:
    wide, kwargs = in_float64(x, options)
    g = {n: t.double() for n, t in grads.items()}
    expected = reference.row_losses_backward(*map(g.get, DIFFERENTIABLE), wide, **kwargs)
    _, scale = scales(wide, g, **kwargs)
    dim = min(1, x.dim() - 1)
    assert_gradient(dx, expected, x.dtype, dim=dim, scale=scale, roundings=2, what=f"dx of {list(g)}")


def check(
    x: Tensor,
    mixes: tuple[tuple[str, ...], ...] = (DIFFERENTIABLE,),
    without: tuple[str, ...] = (),
    **options: Any,
) -> str:
    """Checks the results but those `without`; the gradient of the losses, which the forward writes; and for
    each mix of results that of their upstream gradients, also over the logits. Returns the kernel's way."""
    outputs = tuple(n for n in possible(x, **options) if n not in without)
    found, dx = forward(x, "loss" in outputs, outputs, **options)
    ran = way()
    check_values(found, x, **options)
    if found.loss is not None:
        check_gradient(dx, {"loss": torch.ones_like(found.loss)}, x, **options)
    for mix in mixes:
        if grads := upstream(found, mix):
            dx = backward(grads, x, **options)
            fresh = way()
            check_gradient(dx, grads, x, **options)
            place = backward(grads, x.clone(), inplace=True, **options)
            if way() == fresh:  # the strides of a fresh gradient may lead to another one
                assert_same_bits(place, dx)
            else:
                check_gradient(place, grads, x, **options)
    return ran
