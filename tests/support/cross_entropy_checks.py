# SPDX-License-Identifier: Apache-2.0
"""Checks a result of cross-entropy against the oracle."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from cases import upstream
from compare import assert_close, assert_gradient
from tolerances import TABLE
from torch import Tensor

import softkern
from softkern import reference
from softkern.verify.oracle import in_float64, loss_gradient_scale, loss_scale


def check_values(x: Tensor, target: Tensor, reduction: str = "mean", **kwargs) -> Tensor:
    """softkern's loss against the oracle's; returns it."""
    loss = softkern.cross_entropy(x, target, reduction=reduction, **kwargs)
    args, wide = in_float64(x, target, kwargs)
    expected = reference.cross_entropy(*args, reduction=reduction, **wide)
    torch_result = None
    if TABLE[x.dtype].k:
        index = target if target.is_floating_point() else target.long()
        torch_result = F.cross_entropy(x, index, reduction=reduction, **kwargs)
    scale = loss_scale(*args, wide, reduction)
    assert_close(loss, expected, x.dtype, scale=scale, torch_result=torch_result, what="loss")
    return loss


def check_gradients(
    x: Tensor,
    target: Tensor,
    reduction: str = "mean",
    *,
    grad: Tensor | str = "random",
    **kwargs,
) -> Tensor:
    """The gradient in x for the upstream gradient `grad`; returns it.

    Two roundings in 16 bits: of the gradient formed in forward, and of its product with `grad`.
    """
    x = x.detach().requires_grad_()
    loss = softkern.cross_entropy(x, target, reduction=reduction, **kwargs)
    grad = upstream(loss, grad) if isinstance(grad, str) else grad
    (dx,) = torch.autograd.grad(loss, x, grad)
    args, wide = in_float64(x, target, kwargs)
    g = grad.double()
    expected = reference.cross_entropy_backward(g, *args, reduction=reduction, **wide)
    torch_result = None
    if TABLE[x.dtype].k:
        index = target if target.is_floating_point() else target.long()
        theirs = F.cross_entropy(x, index, reduction=reduction, **kwargs)
        (torch_result,) = torch.autograd.grad(theirs, x, grad)
    options = {"scale": loss_gradient_scale(*args, wide, reduction, g), "torch_result": torch_result}
    dim = min(1, x.dim() - 1)
    assert_gradient(dx, expected, x.dtype, dim=dim, roundings=2, what="dx", **options)
    return dx
