# SPDX-License-Identifier: Apache-2.0
"""The maths of softkern in plain torch, one line per step, a shape on every line.

This file is the specification. It uses elementary operations only (max, exp, log, sum), computes
in the dtype of its inputs and checks nothing: call it with valid float64 tensors and it is the
oracle of the tests. In the shape comments `(..., C)`, the class dimension has been moved to the
end and `...` are the rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from softkern.reference_rows import (
    classes_last,
    linear_cross_entropy,
    linear_cross_entropy_backward,
    row_losses,
    row_losses_backward,
)

__all__ = [
    "cross_entropy",
    "cross_entropy_backward",
    "linear_cross_entropy",
    "linear_cross_entropy_backward",
    "log_softmax",
    "log_softmax_backward",
    "row_losses",
    "row_losses_backward",
    "softmax",
    "softmax_backward",
]


def _shift_and_sum(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Returns z = x - max(x), which makes exp(z) <= 1, and d = sum(exp(z))."""
    if x.numel() == 0:  # a maximum over nothing does not exist, and there is nothing to shift
        return x, x.exp().sum(dim, keepdim=True)  #     z (..., C), d (..., 1)
    m = x.amax(dim, keepdim=True)  #                    (..., 1)
    z = x - m  #                                        (..., C)
    return z, z.exp().sum(dim, keepdim=True)  #         z (..., C), d (..., 1)


def softmax(x: Tensor, dim: int) -> Tensor:
    """Equivalent to `F.softmax(x, dim)`: y_j = exp(x_j - m) / d."""
    z, d = _shift_and_sum(x, dim)  #                    (..., C), (..., 1)
    return z.exp() / d  #                               (..., C)


def softmax_backward(grad: Tensor, y: Tensor, dim: int) -> Tensor:
    """The gradient of `y = softmax(x)` in x: dx_j = y_j (g_j - sum_k g_k y_k)."""
    s = (grad * y).sum(dim, keepdim=True)  #            (..., 1)
    return y * (grad - s)  #                            (..., C)


def log_softmax(x: Tensor, dim: int) -> Tensor:
    """Equivalent to `F.log_softmax(x, dim)`: y_j = (x_j - m) - log d."""
    z, d = _shift_and_sum(x, dim)  #                    (..., C), (..., 1)
    return z - d.log()  #                               (..., C)


def log_softmax_backward(grad: Tensor, y: Tensor, dim: int) -> Tensor:
    """The gradient of `y = log_softmax(x)` in x: dx_j = g_j - exp(y_j) sum_k g_k."""
    s = grad.sum(dim, keepdim=True)  #                  (..., 1)
    return grad - y.exp() * s  #                        (..., C)


def _hits(target: Tensor, classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The rows that are not ignored, and in each of them the class of the target."""
    valid = target != ignore_index  #                   (...)
    labels = torch.arange(classes, device=target.device)  # (C)
    hit = target.unsqueeze(-1) == labels  #             (..., C)
    return valid, hit & valid.unsqueeze(-1)  #          (...), (..., C)


def _smoothed(target: Tensor, classes: int, e: float, dtype: torch.dtype) -> Tensor:
    """Class probabilities, of which (1 - e) count, and a uniform distribution for the rest."""
    t = classes_last(target).to(dtype)  #              (..., C)
    return t * (1 - e) + e / classes if e > 0 else t  # (..., C)


def cross_entropy(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Equivalent to `F.cross_entropy`, for class indices and for class probabilities.

    The target has the weight 1 - e, a uniform distribution the weight e. The mean over class indices
    divides by the weight of the targets that are not ignored, the mean over probabilities by the
    number of rows.
    """
    e, logp = label_smoothing, log_softmax(classes_last(x), -1)  # (..., C)
    classes = logp.shape[-1]
    w = logp.new_ones(classes) if weight is None else weight  # (C)
    if target.is_floating_point():
        t = _smoothed(target, classes, e, x.dtype)  #   (..., C)
        loss = -(logp * t * w).sum(-1)  #               (...)
        return _reduce(loss, reduction, loss.numel())
    valid, hit = _hits(target, classes, ignore_index)  # (...), (..., C)
    total = torch.where(hit, w, 0).sum()  #             ()
    # A class that is not the target must not become 0 * inf: select the target instead of multiplying.
    loss = -torch.where(hit, logp * w, 0).sum(-1)  #    (...)
    loss = _reduce(loss, reduction, total)  #           (...) or ()
    if e > 0:
        smooth = torch.where(valid, -(logp * w).sum(-1), 0)  # (...)
        smooth = _reduce(smooth, reduction, total)  #   (...) or ()
        loss = (1 - e) * loss + e / classes * smooth  # (...) or ()
    return loss


def _reduce(rows: Tensor, reduction: str, total: Tensor | int) -> Tensor:
    if reduction == "none":
        return rows  #                                  (...)
    return rows.sum() / total if reduction == "mean" else rows.sum()  # ()


def _mass(
    target: Tensor, w: Tensor, classes: int, ignore_index: int, e: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The mass a of each class in each row; the rows that are not ignored; the weight of the targets."""
    if target.is_floating_point():
        a = w * _smoothed(target, classes, e, w.dtype)  # (..., C)
        rows = w.new_ones(a.shape[:-1])  #              (...)
        return a, rows.bool(), rows.sum()  #            (..., C), (...), ()
    valid, hit = _hits(target, classes, ignore_index)  # (...), (..., C)
    a = torch.where(hit, (1 - e) * w, 0)  #             (..., C)
    a = a + e / classes * w if e > 0 else a  #          (..., C)
    return a, valid, torch.where(hit, w, 0).sum()  #    (..., C), (...), ()


def cross_entropy_backward(
    grad: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """The gradient of `cross_entropy` in x: dx_c = (A p_c - a_c) g, with the mass a and A = sum(a).

    Class indices: a_c = (1 - e) w_c [c is the target] + e/C w_c. Class probabilities:
    a_c = w_c (t_c (1 - e) + e/C). Ignored rows are exactly zero for any logits.
    `grad` is one number, or one number per row if nothing is reduced.
    """
    p = softmax(classes_last(x), -1)  #                (..., C)
    classes = p.shape[-1]
    w = p.new_ones(classes) if weight is None else weight  # (C)
    a, valid, total = _mass(target, w, classes, ignore_index, label_smoothing)  # (..., C), (...), ()
    a = a / total if reduction == "mean" else a  #      (..., C)
    g = grad.unsqueeze(-1) if reduction == "none" else grad  # (..., 1) or ()
    dx = (a.sum(-1, keepdim=True) * p - a) * g  #       (..., C)
    dx = torch.where(valid.unsqueeze(-1), dx, 0)  #     (..., C)
    return dx.movedim(-1, min(1, x.dim() - 1))  #       as x
