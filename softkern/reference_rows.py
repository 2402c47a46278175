# SPDX-License-Identifier: Apache-2.0
"""Losses and statistics of rows with softkern's own options in plain torch: a part of `softkern.reference`.

`row_losses` is differentiable by torch's autograd, `row_losses_backward` is its gradient in the logits as a
formula. The first class with the maximum is kept apart from the sum of the others, which keeps the digits of
confident rows: log d = log1p(rest), and 1 - p = rest / d. In the shape comments, V is the number of valid
classes, and K the number of class indices of a row: 1, K or, for class probabilities, 0.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor


class RowLosses(NamedTuple):
    """The results of `row_losses`; None where the target has no such number."""

    loss: Tensor | None  #                              (...) or ()
    log_prob: Tensor | None  #                          as the class indices
    lse: Tensor  #                                      (...)
    entropy: Tensor  #                                  (...)
    argmax: Tensor  #                                   (...)
    correct: Tensor | None  #                           (...)


def classes_last(x: Tensor) -> Tensor:
    """(C), (N, C) or (N, C, d1, ...) -> (..., C)."""
    return x.movedim(min(1, x.dim() - 1), -1)  #        (..., C)


def transformed(x: Tensor, logit_scale: float, softcap: float | None, temperature: float) -> Tensor:
    """z = softcap * tanh(logit_scale * x / softcap) / temperature; a logit of -inf stays -inf."""
    lowest = x == -math.inf  #                          (..., V)
    if softcap is None:
        z = x * (logit_scale / temperature)  #          (..., V)
        return z if logit_scale > 0 else torch.where(lowest, -math.inf, z)  # (..., V)
    u = torch.where(lowest, 0, x) * (logit_scale / softcap)  # (..., V)
    return torch.where(lowest, -math.inf, u.tanh() * (softcap / temperature))  # (..., V)


def slope(x: Tensor, logit_scale: float, softcap: float | None, temperature: float) -> Tensor:
    """dz/dx = logit_scale (1 - tanh^2) / temperature; 0 where a capped logit is -inf."""
    u = x * (logit_scale / softcap if softcap else 0)  #  (..., V)
    outer = torch.full_like(x, logit_scale / temperature)  # (..., V)
    return outer / u.cosh().square() if softcap else outer  # (..., V)


class Statistics(NamedTuple):
    top: Tensor  #      (..., 1)  the first class with the maximum
    m: Tensor  #        (..., 1)  the maximum
    first: Tensor  #    (..., V)  c = top, if m is finite
    below: Tensor  #    (..., V)  m - z
    terms: Tensor  #    (..., V)  exp(z - m), but 0 where c = top
    rest: Tensor  #     (..., 1)  the sum of the terms: d = 1 + rest
    log_d: Tensor  #    (..., 1)
    finite: Tensor  #   (..., V)  m - z, but 0 where the term is 0: 0 * inf must not arise
    mean: Tensor  #     (..., 1)  sum_c p_c (m - z_c)


def statistics(z: Tensor) -> Statistics:
    """A row that contains NaN or inf, or only -inf, has NaN as each of its sums, as in torch's softmax."""
    top = z.argmax(-1, keepdim=True)  #                 (..., 1)
    m = z.gather(-1, top)  #                            (..., 1)
    first = torch.arange(z.shape[-1], device=z.device) == top  # (..., V)
    first = first & m.isfinite()  #                     (..., V)
    below = torch.where(first, 0, m - z)  #             (..., V)
    terms = torch.where(first, 0, (-below).exp())  #    (..., V)
    rest = terms.sum(-1, keepdim=True)  #               (..., 1)
    finite = torch.where(terms == 0, 0, below)  #       (..., V)
    mean = (terms * finite).sum(-1, keepdim=True) / (1 + rest)  # (..., 1)
    return Statistics(top, m, first, below, terms, rest, rest.log1p(), finite, mean)


class Masses(NamedTuple):
    """The mass a_c = sum_k hot_k [c = y_k] + spread_c of a class, and what else depends on the target."""

    valid: Tensor  #            (...)     the rows that are not ignored
    y: Tensor  #                (..., K)  class indices
    hot: Tensor  #              (..., K)
    spread: Tensor | None  #    (..., V)  None: 0
    w: Tensor  #                (...)     the weight of a row's only class index, otherwise 1
    r: Tensor  #                (...)     the weight of a row


def masses(
    x: Tensor,
    target: Tensor | None,
    weight: Tensor | None,
    row_weight: Tensor | None,
    target_probs: Tensor | None,
    ignore_index: int,
    e: float,
) -> Masses:
    """For logits (..., V) and the label smoothing e."""
    classes, one = x.shape[-1], x.new_ones(x.shape[:-1])  # (...)
    r = one if row_weight is None else row_weight.to(x.dtype)  # (...)
    c = x.new_ones(classes) if weight is None else weight[:classes]  # (V)
    spread = (e / classes * c).expand_as(x) if e > 0 else None  # (..., V)
    if target is None or target.is_floating_point():
        if target is not None:
            t = classes_last(target)[..., :classes].to(x.dtype)  # (..., V)
            spread = c * ((1 - e) * t + e / classes)  # (..., V)
        none = one.unsqueeze(-1)[..., :0]  #            (..., 0)
        return Masses(one.bool(), none.long(), none, spread, one, r)
    if has_one_index(target, one):
        valid = target != ignore_index  #               (...)
        y = torch.where(valid, target, 0).long()  #     (...)
        return Masses(valid, y.unsqueeze(-1), (1 - e) * c[y].unsqueeze(-1), spread, c[y], r)
    y = classes_last(target).long()  #                  (..., K)
    t = torch.zeros_like(y) if target_probs is None else classes_last(target_probs)  # (..., K)
    return Masses(one.bool(), y, (1 - e) * c[y] * t.to(x.dtype), spread, one, r)


def has_one_index(target: Tensor | None, rows: Tensor) -> bool:
    """Whether each of the rows (...) has one class index as its target."""
    return target is not None and not target.is_floating_point() and target.dim() == rows.dim()


def divisor(a: Masses, reduction: str, num_items: Tensor | float | None) -> Tensor | float:
    if reduction != "mean":
        return 1
    return torch.where(a.valid, a.r * a.w, 0).sum() if num_items is None else num_items  # ()


def row_losses(
    x: Tensor,
    target: Tensor | None = None,
    weight: Tensor | None = None,
    row_weight: Tensor | None = None,
    num_items: Tensor | float | None = None,
    target_probs: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    valid_classes: int | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    z_loss: float = 0.0,
) -> RowLosses:
    """Losses, and statistics of z: the transformed logits of the first `valid_classes` classes.

    A row's loss is r (sum_c a_c ((m - z_c) + log d) + z_loss w lse^2). The targets are class indices, one a
    row or K of them in the class dimension, or class probabilities. Ignored rows are 0 for any logits.
    """
    x = classes_last(x)[..., :valid_classes]  #         (..., V)
    a = masses(x, target, weight, row_weight, target_probs, ignore_index, label_smoothing)
    x = torch.where(a.valid.unsqueeze(-1), x, 0)  #     (..., V)
    s = statistics(transformed(x, logit_scale, softcap, temperature))
    log_p = -(s.below.gather(-1, a.y) + s.log_d)  #     (..., K)
    lse = (s.m + s.log_d).squeeze(-1)  #                (...)
    entropy = (s.log_d + s.mean).squeeze(-1)  #         (...)
    top = s.top.squeeze(-1)  #                          (...)

    rows = -(a.hot * log_p).sum(-1)  #                  (...)
    if a.spread is not None:
        rows = rows + (a.spread * (s.below + s.log_d)).sum(-1)  # (...)
    rows = torch.where(a.valid, a.r * (rows + z_loss * a.w * lse.square()), 0)  # (...)
    loss = rows if reduction == "none" else rows.sum() / divisor(a, reduction, num_items)  # (...) or ()

    lse, entropy = torch.where(a.valid, lse, 0), torch.where(a.valid, entropy, 0)  # (...), (...)
    argmax = torch.where(a.valid, top, -1)  #           (...)
    if has_one_index(target, a.r):
        log_prob = torch.where(a.valid, log_p.squeeze(-1), 0)  # (...)
        return RowLosses(loss, log_prob, lse, entropy, argmax, a.valid & (top == target))
    log_p = log_p.movedim(-1, min(1, log_p.dim() - 1))  # as the class indices
    return RowLosses(loss, log_p if a.y.shape[-1] else None, lse, entropy, argmax, None)


def row_losses_backward(
    grad_loss: Tensor | None,
    grad_log_prob: Tensor | None,
    grad_lse: Tensor | None,
    grad_entropy: Tensor | None,
    x: Tensor,
    target: Tensor | None = None,
    weight: Tensor | None = None,
    row_weight: Tensor | None = None,
    num_items: Tensor | float | None = None,
    target_probs: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    valid_classes: int | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    z_loss: float = 0.0,
) -> Tensor:
    """The gradient of `row_losses` in x for upstream gradients in the shapes of its results; None: 0.

    With g the upstream gradient of a row's loss times r, g_k, g_l and g_h those of log_prob, lse and entropy,
    and h_c = sum_k (g hot_k - g_k) [c = y_k]:
        dz_c = h_c (p_c - 1) + p_c (sum_k h_k - h_c + g (sum spread + 2 z_loss w lse) + g_l
               + g_h ((m - z_c) - sum_k p_k (m - z_k))) - g spread_c
    """
    classes = classes_last(x)  #                        (..., C)
    x = classes[..., :valid_classes]  #                 (..., V)
    a = masses(x, target, weight, row_weight, target_probs, ignore_index, label_smoothing)
    x = torch.where(a.valid.unsqueeze(-1), x, 0)  #     (..., V)
    s = statistics(transformed(x, logit_scale, softcap, temperature))
    zero = torch.zeros_like(a.r).unsqueeze(-1)  #       (..., 1)
    p = torch.where(s.first, 1, s.terms) / (1 + s.rest)  # (..., V)
    less_one = torch.where(s.first, -s.rest / (1 + s.rest), p - 1)  # (..., V)

    g, g_k = zero, zero  #                              (..., 1)
    if grad_loss is not None:
        g = (grad_loss * a.r / divisor(a, reduction, num_items)).unsqueeze(-1)  # (..., 1)
    if grad_log_prob is not None:
        one_index = has_one_index(target, a.r)
        g_k = grad_log_prob.unsqueeze(-1) if one_index else classes_last(grad_log_prob)  # (..., K)
    g_l = zero if grad_lse is None else grad_lse.unsqueeze(-1)  # (..., 1)
    g_h = zero if grad_entropy is None else grad_entropy.unsqueeze(-1)  # (..., 1)

    h_k = g * a.hot - g_k  #                            (..., K)
    h = torch.zeros_like(x).scatter_add(-1, a.y, h_k)  # (..., V)
    spread = torch.zeros_like(x) if a.spread is None else a.spread  # (..., V)
    of_lse = 2 * z_loss * a.w.unsqueeze(-1) * (s.m + s.log_d)  # (..., 1)
    common = g * (spread.sum(-1, keepdim=True) + of_lse) + g_l  # (..., 1)
    pull = h_k.sum(-1, keepdim=True) - h + common + g_h * (s.finite - s.mean)  # (..., V)
    dz = h * less_one + p * pull - g * spread  #        (..., V)
    dx = dz * slope(x, logit_scale, softcap, temperature)  # (..., V)
    dx = torch.where(a.valid.unsqueeze(-1), dx, 0)  #   (..., V)
    padding = torch.zeros_like(classes[..., dx.shape[-1] :])  # (..., C - V)
    return torch.cat([dx, padding], -1).movedim(-1, min(1, classes.dim() - 1))  # as the logits


def linear_cross_entropy(
    x: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None = None, **options: Any
) -> RowLosses:
    """`row_losses` of the logits x W^T + b of N rows with H features; `options` are its other arguments."""
    x = _counted(x, target, **options)  #               (N, H)
    return row_losses(_layer(x, linear_weight, linear_bias), target, **options)


def _counted(x: Tensor, target: Tensor, *, ignore_index: int = -100, **_: Any) -> Tensor:
    """Ignored rows as zeros: inf or NaN there must not become 0 * inf in the gradient of W."""
    if not has_one_index(target, x[:, 0]):
        return x  #                                     (N, H)
    return torch.where((target != ignore_index).unsqueeze(-1), x, 0)  # (N, H)


def _layer(x: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> Tensor:
    z = x @ linear_weight.T  #                          (N, C)
    return z if linear_bias is None else z + linear_bias  # (N, C)


def linear_cross_entropy_backward(
    grad_loss: Tensor | None,
    grad_log_prob: Tensor | None,
    grad_lse: Tensor | None,
    grad_entropy: Tensor | None,
    x: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `linear_cross_entropy` in x, W and b: dz W, dz^T x and the sum of dz over the rows."""
    upstream = (grad_loss, grad_log_prob, grad_lse, grad_entropy)
    x = _counted(x, target, **options)  #               (N, H)
    z = _layer(x, linear_weight, linear_bias)  #        (N, C)
    dz = row_losses_backward(*upstream, z, target, **options)  # (N, C)
    return dz @ linear_weight, dz.T @ x, dz.sum(0)  #   (N, H), (C, H), (C)
