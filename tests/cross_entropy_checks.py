# SPDX-License-Identifier: Apache-2.0
"""How an answer of cross-entropy is checked against the oracle."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from cases import oracle_z, upstream
from compare import assert_close, assert_gradient
from tolerances import TABLE
from torch import Tensor

import softkern
from softkern import reference


def _wide(x: Tensor, target: Tensor, kwargs: dict) -> tuple[tuple[Tensor, Tensor], dict]:
    """The same problem in float64."""
    t = target.double() if target.is_floating_point() else target.long()
    kwargs = {k: v.double() if isinstance(v, Tensor) else v for k, v in kwargs.items()}
    return (x.detach().double(), t), kwargs


def _terms(x: Tensor, target: Tensor, kwargs: dict) -> tuple[Tensor, Tensor, Tensor]:
    """The logits and their mass as (..., C), and what a mean divides by; all of float64."""
    rows = x.movedim(min(1, x.dim() - 1), -1)
    weight = kwargs.get("weight")
    w = rows.new_ones(rows.shape[-1]) if weight is None else weight
    ignore, e = kwargs.get("ignore_index", -100), kwargs.get("label_smoothing", 0.0)
    a, valid, total = reference._mass(target, w, rows.shape[-1], ignore, e)
    return rows, torch.where(valid.unsqueeze(-1), a, 0), total


def _loss_scale(x: Tensor, target: Tensor, kwargs: dict, reduction: str) -> Tensor:
    """sum_c |a_c| (1 + |log p_c|): 1 is what a relative error of d becomes in log d."""
    rows, a, total = _terms(x, target, kwargs)
    logp = reference.log_softmax(rows, -1).abs().nan_to_num(0, 0, 0)
    scale = (a.abs() * (1 + logp)).sum(-1)
    return scale if reduction == "none" else scale.sum() / (total if reduction == "mean" else 1)


def _gradient_scale(x: Tensor, target: Tensor, kwargs: dict, reduction: str, g: Tensor) -> Tensor:
    """(A p + a) |g|, with the magnified rounding of x - m in p."""
    rows, a, total = _terms(x, target, kwargs)
    p = reference.softmax(rows, -1).nan_to_num(0, 0, 0) * oracle_z(rows)
    scale = a.abs().sum(-1, keepdim=True) * p + a.abs()
    scale = scale * (g.unsqueeze(-1) if reduction == "none" else g).abs()
    scale = scale / total if reduction == "mean" else scale
    return scale.movedim(-1, min(1, x.dim() - 1))


def check_values(x: Tensor, target: Tensor, reduction: str = "mean", **kwargs) -> Tensor:
    """softkern's loss against the oracle's; returns it."""
    loss = softkern.cross_entropy(x, target, reduction=reduction, **kwargs)
    args, wide = _wide(x, target, kwargs)
    expected = reference.cross_entropy(*args, reduction=reduction, **wide)
    torch_result = None
    if TABLE[x.dtype].k:
        index = target if target.is_floating_point() else target.long()
        torch_result = F.cross_entropy(x, index, reduction=reduction, **kwargs)
    scale = _loss_scale(*args, wide, reduction)
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
    args, wide = _wide(x, target, kwargs)
    g = grad.double()
    expected = reference.cross_entropy_backward(g, *args, reduction=reduction, **wide)
    torch_result = None
    if TABLE[x.dtype].k:
        index = target if target.is_floating_point() else target.long()
        theirs = F.cross_entropy(x, index, reduction=reduction, **kwargs)
        (torch_result,) = torch.autograd.grad(theirs, x, grad)
    options = {"scale": _gradient_scale(*args, wide, reduction, g), "torch_result": torch_result}
    dim = min(1, x.dim() - 1)
    assert_gradient(dx, expected, x.dtype, dim=dim, roundings=2, what="dx", **options)
    return dx
