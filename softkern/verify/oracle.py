# SPDX-License-Identifier: Apache-2.0
"""The float64 answers, and the magnitude of the terms that form them.

`softkern.reference` gives the answers. For errors in ulp, `answers` gives them: it sums the classes below the
maximum separately, because even float64 loses the digits of log(1 + r) and p - 1 if r is tiny.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softkern import reference


def answers(x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """The answers for float64 logits (N, C) and class indices (N), by quantity; one loss per row."""
    m, top = x.max(1, keepdim=True)  # (N, 1)
    e = torch.exp(x - m)  # (N, C)
    rest = e.scatter(1, top, 0).sum(1, keepdim=True)  # (N, 1)
    p = e / (1 + rest)  # (N, C)
    log_p = (x - m) - torch.log1p(rest)  # (N, C)
    minus_one = torch.where(top == target[:, None], -rest / (1 + rest), p.gather(1, target[:, None]) - 1)
    return {
        "softmax": p,
        "log_softmax": log_p,
        "cross_entropy": -log_p.gather(1, target[:, None])[:, 0],
        "cross_entropy gradient": p.scatter(1, target[:, None], minus_one),
    }


def oracle_z(x: Tensor, dim: int = -1) -> Tensor:
    """1 + |x - max x|: the factor by which exp(x - m) magnifies the rounding of x - m."""
    z = 1 + (x - x.amax(dim, keepdim=True)).abs() if x.numel() else x
    return z.nan_to_num(0, 0, 0)


def softmax_scale(x: Tensor, y: Tensor, dim: int) -> Tensor:
    """The scale of y = softmax(x)."""
    return y * oracle_z(x, dim)


def softmax_gradient_scale(g: Tensor, y: Tensor, dim: int) -> Tensor:
    """The scale of y (g - sum(g y))."""
    return y * (g.abs() + (g * y).abs().sum(dim, keepdim=True))


def log_softmax_scale(x: Tensor, y: Tensor, dim: int) -> Tensor:
    """The scale of y = log_softmax(x); a relative error of d becomes an absolute one in log d: hence 1."""
    return 1 + y.abs()


def log_softmax_gradient_scale(g: Tensor, y: Tensor, dim: int) -> Tensor:
    """The scale of g - exp(y) sum(g)."""
    return g.abs() + y.exp() * g.abs().sum(dim, keepdim=True)


def _terms(x: Tensor, target: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """The logits and their mass as (..., C), and the divisor of a mean; all in float64."""
    rows = x.movedim(min(1, x.dim() - 1), -1)
    weight = kwargs.get("weight")
    w = rows.new_ones(rows.shape[-1]) if weight is None else weight
    ignore, e = kwargs.get("ignore_index", -100), kwargs.get("label_smoothing", 0.0)
    a, valid, total = reference._mass(target, w, rows.shape[-1], ignore, e)
    return rows, torch.where(valid.unsqueeze(-1), a, 0), total


def loss_scale(x: Tensor, target: Tensor, kwargs: dict[str, Any], reduction: str) -> Tensor:
    """sum_c |a_c| (1 + |log p_c|); a relative error of d becomes an absolute one in log d: hence 1."""
    rows, a, total = _terms(x, target, kwargs)
    logp = reference.log_softmax(rows, -1).abs().nan_to_num(0, 0, 0)
    scale = (a.abs() * (1 + logp)).sum(-1)
    return scale if reduction == "none" else scale.sum() / (total if reduction == "mean" else 1)


def loss_gradient_scale(
    x: Tensor, target: Tensor, kwargs: dict[str, Any], reduction: str, g: Tensor
) -> Tensor:
    """(A p + a) |g|, with the magnified rounding of x - m in p."""
    rows, a, total = _terms(x, target, kwargs)
    p = reference.softmax(rows, -1).nan_to_num(0, 0, 0) * oracle_z(rows)
    scale = a.abs().sum(-1, keepdim=True) * p + a.abs()
    scale = scale * (g.unsqueeze(-1) if reduction == "none" else g).abs()
    scale = scale / total if reduction == "mean" else scale
    return scale.movedim(-1, min(1, x.dim() - 1))


def in_float64(
    x: Tensor, target: Tensor, kwargs: dict[str, Any]
) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
    """The arguments of cross-entropy in float64, for `softkern.reference` and the scales."""
    t = target.double() if target.is_floating_point() else target.long()
    kwargs = {k: v.double() if isinstance(v, Tensor) else v for k, v in kwargs.items()}
    return (x.detach().double(), t), kwargs
