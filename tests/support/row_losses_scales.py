# SPDX-License-Identifier: Apache-2.0
"""The magnitude of the terms of each result of row_losses: an error in it is relative to that.

All of them keep the digits of confident rows, whose log d, entropy and p - 1 are small: none contains a 1
that stands for log d. In the shape comments, V is the number of valid classes and K that of class indices.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from softkern import reference_rows as rows

# Below the smallest normal number, p is rounded to a multiple of what that one is rounded to.
SMALLEST = torch.finfo(torch.float32).tiny


class Scales(NamedTuple):
    loss: Tensor
    log_prob: Tensor | None
    lse: Tensor
    entropy: Tensor


class Errors(NamedTuple):
    """Of the parts of a row; each is one rounding, and what the roundings before have become."""

    below: Tensor  #     (..., V) of m - z
    p: Tensor  #         (..., V)
    less_one: Tensor  #  (..., V) of p - 1
    log_d: Tensor  #     (..., 1)
    lse: Tensor  #       (..., 1)
    mean: Tensor  #      (..., 1) of sum_c p_c (m - z_c)


def errors(s: rows.Statistics, z: Tensor, transforms: bool) -> Errors:
    """`transforms`: z was computed, and rounded relative to its own size."""
    of_z = z.abs().nan_to_num(0, 0, 0) if transforms else torch.zeros_like(z)  # (..., V)
    of_m = torch.where(s.first, of_z, 0).sum(-1, keepdim=True)  # (..., 1)
    of_below = torch.where(s.first, 0, s.finite.abs() + of_z + of_m)  # (..., V)
    of_terms = s.terms * (1 + of_below)  # (..., V)   rounding m - z changes exp(z - m) by as much, relatively
    d = 1 + s.rest  # (..., 1)
    of_d = of_terms.sum(-1, keepdim=True) / d  # (..., 1)   relative
    p = torch.where(s.first, 1, s.terms) / d  # (..., V)
    of_p = p.clamp_min(SMALLEST) * (1 + of_below + of_d)  # (..., V)
    less_one = torch.where(s.first, s.rest / d * (1 + of_d) + of_d, (1 - p) + of_p)  # (..., V)
    log_d = s.log_d + of_d  # (..., 1)
    lse = (s.m + s.log_d).abs() + of_m + log_d  # (..., 1)
    mean = ((of_terms * s.finite + s.terms * of_below) / d).sum(-1, keepdim=True) + s.mean * (1 + of_d)
    return Errors(of_below, of_p, less_one, log_d, lse, mean)


def scales(
    x: Tensor,
    upstream: dict[str, Tensor],
    *,
    valid_classes: int | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    num_items: Tensor | float | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    **given: Tensor,
) -> tuple[Scales, Tensor]:
    """Of the results, and of the gradient for the upstream gradients of loss, log_prob, lse and entropy."""
    transform = logit_scale, softcap, temperature
    classes = rows.classes_last(x)  # (..., C)
    x = classes[..., :valid_classes]  # (..., V)
    names = ("target", "weight", "row_weight", "target_probs")
    a = rows.masses(x, *map(given.get, names), ignore_index, label_smoothing)
    x = torch.where(a.valid.unsqueeze(-1), x, 0)  # (..., V)
    z = rows.transformed(x, *transform)  # (..., V)
    s = rows.statistics(z)
    e = errors(s, z, transform != (1.0, None, 1.0))

    spread = torch.zeros_like(x) if a.spread is None else a.spread.abs()  # (..., V)
    factor = (a.r / rows.divisor(a, reduction, num_items)).abs().unsqueeze(-1)  # (..., 1)
    log_p = e.below + s.finite + e.log_d  # (..., V)
    log_prob = log_p.gather(-1, a.y)  # (..., K)
    lse = s.m + s.log_d  # (..., 1)
    of_squares = z_loss * a.w.unsqueeze(-1) * (lse.square() + 2 * lse.abs() * e.lse)  # (..., 1)
    loss = factor * ((a.hot.abs() * log_prob).sum(-1, keepdim=True) + of_squares)  # (..., 1)
    loss = (loss + factor * (spread * log_p).sum(-1, keepdim=True)).squeeze(-1)  # (...)
    loss = torch.where(a.valid, loss, 0)  # (...)
    loss = loss if reduction == "none" else loss.sum()  # (...) or ()
    one_index = rows.has_one_index(given.get("target"), a.r)
    values = Scales(
        loss,
        log_prob.squeeze(-1) if one_index else log_prob.movedim(-1, min(1, log_prob.dim() - 1)),
        e.lse.squeeze(-1),
        (e.log_d + e.mean).squeeze(-1),
    )

    zero = torch.zeros_like(factor)  # (..., 1)
    g, g_k, g_l, g_h = (upstream.get(name) for name in values._fields)
    g = zero if g is None else g.abs().unsqueeze(-1) * factor  # (..., 1)
    g_k = zero if g_k is None else g_k.unsqueeze(-1) if one_index else rows.classes_last(g_k)  # (..., K)
    g_l, g_h = (zero if t is None else t.abs().unsqueeze(-1) for t in (g_l, g_h))  # (..., 1)
    h_k = g * a.hot.abs() + g_k.abs()  # (..., K)
    h = torch.zeros_like(x).scatter_add(-1, a.y, h_k)  # (..., V)
    others = h_k.sum(-1, keepdim=True) - (h if one_index else 0)  # (..., V)
    of_lse = 2 * z_loss * a.w.unsqueeze(-1)  # (..., 1)
    pull = others + g * (spread.sum(-1, keepdim=True) + of_lse * lse.abs()) + g_l  # (..., V)
    pull = pull + g_h * (s.finite + s.mean)  # (..., V)
    p = torch.where(s.first, 1, s.terms) / (1 + s.rest)  # (..., V)
    dz = h * e.less_one + e.p * pull + g * spread  # (..., V)
    dz = dz + p * (g * of_lse * e.lse + g_h * (e.below + e.mean))  # (..., V)
    dx = dz * rows.slope(x, *transform).abs()  # (..., V)
    if softcap is not None:  # 1 - t^2 of a rounded t
        t = (x * (logit_scale / softcap)).tanh().nan_to_num(0)  # (..., V)
        size = h * (p - 1).abs() + p * pull + g * spread  # (..., V)
        dx = dx + size * 2 * t.square() * abs(logit_scale / temperature)  # (..., V)
    dx = torch.where(a.valid.unsqueeze(-1), dx, 0)  # (..., V)
    padding = torch.zeros_like(classes[..., x.shape[-1] :])  # (..., C - V)
    return values, torch.cat([dx, padding], -1).movedim(-1, min(1, classes.dim() - 1))
