# SPDX-License-Identifier: Apache-2.0
"""The float64 answers for softkern's own options and for statistics, and the magnitude of their terms.

The answers are the plain formulas in torch, their gradient is that of autograd: nothing is shared with the
kernels. z are the logits after scaling and capping. Where z differs from x it is rounded, and R = max |z| is
the magnitude of that error; otherwise R = 0. Where the logits are sums of products, theirs is added to R. The
scales:

    log p_c   |log p_c| + 2R
    lse       |m| + log d + R
    entropy   H + R sum_c p_c |log p_c + H|
    p_c       p_c (1 + 2R)                   p_c below the smallest normal number counts as that number
    1 - p_c   (1 - p_c) (1 + 2R)     of a single class index: it is not the difference of terms near 1
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """A call in float64, with the classes last; V: classes that are no padding, K: class indices a row."""

    x: Tensor  # (..., V)
    shares: Tensor  # (..., V): target probabilities, before smoothing
    index: Tensor | None  # (..., K)
    single: bool  # one class index a row
    valid: Tensor  # (...): not ignored
    weight: Tensor  # (V)
    row_weight: Tensor  # (...)
    total: Tensor | None  # (): what the sum of the rows is divided by; None: rows are not summed
    smoothing: float = 0.0
    logit_scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    z_loss: float = 0.0
    product: Tensor | None = None  # (..., 1): the error of x, where it is the result of products

    @property
    def transforms(self) -> bool:
        return self.softcap is not None or self.logit_scale != self.temperature

    @property
    def masses(self) -> tuple[Tensor, Tensor]:
        """Of the targets, and of label smoothing."""
        smooth = self.smoothing / self.x.shape[-1] * self.weight
        return (1 - self.smoothing) * self.weight * self.shares, smooth.expand_as(self.shares)

    @property
    def target_weight(self) -> Tensor:
        """The weight of a single class index; otherwise 1."""
        if not self.single:
            return torch.ones_like(self.row_weight)
        return (self.weight * self.shares).sum(-1)


@dataclass(frozen=True)
class Answer:
    value: Tensor
    scale: Tensor


def answers(rows: Rows, upstream: dict[str, Tensor], compute: torch.dtype) -> dict[str, Answer]:
    """By name: loss, log_prob, lse, entropy, argmax, correct, and gradient, that of x.

    `upstream`: gradients by name. `compute`: the dtype of softkern's computation.
    """
    x = rows.x.detach().requires_grad_()
    values = _values(rows, x)
    pulled = [values[name] for name in upstream]
    (dx,) = torch.autograd.grad(pulled, x, [g.double() for g in upstream.values()])
    scales = _scales(rows, values, upstream, compute)
    return {name: Answer(y.detach(), scales[name]) for name, y in {**values, "gradient": dx}.items()}


def transformed(rows: Rows, x: Tensor) -> Tensor:
    """z; a logit of -inf stays -inf, and rows that are ignored are 0."""
    x = torch.where(rows.valid.unsqueeze(-1), x, 0)
    z = x * rows.logit_scale
    if rows.softcap is not None:
        z = torch.where(x == -torch.inf, -torch.inf, rows.softcap * torch.tanh(z / rows.softcap))
    return z / rows.temperature


def _probs(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """p, log p, log p with 0 in place of -inf (0 log 0 is 0, and so is its gradient), log d as (..., 1).

    torch's own log_softmax and logsumexp round |z| + log d; a sum with the 1 of the maximum loses the rest.
    """
    m, top = z.detach().max(-1, keepdim=True)
    below = z - m
    of_top = torch.expm1(below.gather(-1, top))  # 0; its gradient is that of exp
    rest = below.exp().scatter(-1, top, 0).sum(-1, keepdim=True) + of_top
    log_d = torch.log1p(rest)
    logp = below - log_d
    return below.exp() / (1 + rest), logp, torch.where(logp == -torch.inf, 0, logp), log_d


def _values(rows: Rows, x: Tensor) -> dict[str, Tensor]:
    z = transformed(rows, x)
    p, logp, finite, log_d = _probs(z)
    hot, spread = rows.masses
    a = hot + spread
    lse = (z.detach().amax(-1, keepdim=True) + log_d)[..., 0]
    loss = -torch.where(a == 0, 0, a * logp).sum(-1) + rows.z_loss * rows.target_weight * lse**2
    loss = rows.row_weight * loss
    found = {"loss": loss, "lse": lse, "entropy": -(p * finite).sum(-1)}
    top = z.argmax(-1)
    if rows.index is not None:
        found["log_prob"] = logp.gather(-1, rows.index)
    if rows.single:
        assert rows.index is not None
        found["log_prob"] = found["log_prob"][..., 0]
        found["correct"] = rows.valid & (top == rows.index[..., 0])
    found = {n: y if y.dtype == torch.bool else _kept(rows, y) for n, y in found.items()}
    if rows.total is not None:
        found["loss"] = found["loss"].sum() / rows.total
    return {**found, "argmax": torch.where(rows.valid, top, -1)}


def _kept(rows: Rows, y: Tensor) -> Tensor:
    valid = rows.valid if y.dim() == rows.valid.dim() else rows.valid.unsqueeze(-1)
    return torch.where(valid, y, 0)


def _scales(
    rows: Rows, values: dict[str, Tensor], upstream: dict[str, Tensor], compute: torch.dtype
) -> dict[str, Tensor]:
    # float64's own errors: of p, which is magnified by log p, and of a term near 1 after some roundings.
    own = torch.finfo(torch.float64).eps / torch.finfo(compute).eps
    lost = 8 * own
    z = transformed(rows, rows.x)
    p, _, finite, log_d = _probs(z)
    m = z.amax(-1, keepdim=True)
    entropy = -(p * finite).sum(-1, keepdim=True)
    rounding = z.abs().where(z.isfinite(), 0).amax(-1, keepdim=True) if rows.transforms else 0 * log_d
    if rows.product is not None:
        rounding = rounding + abs(rows.logit_scale / rows.temperature) * rows.product
    of_log = finite.abs() + 2 * rounding + own * entropy
    of_lse = m.abs() + log_d + rounding
    of_p = rounding + own * finite.abs()
    of_entropy = entropy + (p * of_p * (finite + entropy).abs()).sum(-1, keepdim=True)
    hot, spread = (mass.abs() for mass in rows.masses)
    zeta = 2 * abs(rows.z_loss) * rows.target_weight.abs().unsqueeze(-1)
    r = rows.row_weight.abs().unsqueeze(-1)
    of_loss = r * (((hot + spread) * of_log).sum(-1, keepdim=True) + zeta * (m + log_d).abs() * of_lse)

    g = {name: upstream[name].double().abs() if name in upstream else 0 * log_d[..., 0] for name in values}
    of_rows = {"lse": g["lse"].unsqueeze(-1), "entropy": g["entropy"].unsqueeze(-1)}
    mean = 1 if rows.total is None else rows.total.abs()
    pull_loss = r * (g["loss"].unsqueeze(-1) if rows.total is None else g["loss"] / mean)
    picked = torch.zeros_like(p)
    if rows.index is not None and "log_prob" in upstream:
        up = g["log_prob"].unsqueeze(-1) if rows.single else g["log_prob"]
        picked = picked.scatter_add(-1, rows.index, up)
    chosen = pull_loss * hot + picked
    rest = spread if rows.single else spread + hot
    pull = pull_loss * (rest.sum(-1, keepdim=True) + zeta * of_lse) + of_rows["lse"]
    pull = pull + of_rows["entropy"] * (finite.abs() + entropy + of_entropy + lost)
    near_one = 1 + 2 * rounding + lost * finite.abs()
    p = p.clamp_min(torch.finfo(compute).tiny)  # below the smallest normal number an ulp is constant
    if rows.single:
        h = chosen.sum(-1, keepdim=True)
        dz = near_one * (p * pull + h * torch.where(rows.shares > 0, 1 - p + lost, p)) + pull_loss * spread
    else:
        pull = pull + picked.sum(-1, keepdim=True)
        dz = near_one * p * pull + pull_loss * spread + chosen
    slope = abs(rows.logit_scale / rows.temperature) * (2 if rows.softcap is not None else 1)

    found = {"loss": of_loss[..., 0], "lse": of_lse[..., 0], "entropy": of_entropy[..., 0]}
    if rows.index is not None:
        of_index = of_log.gather(-1, rows.index)
        found["log_prob"] = of_index[..., 0] if rows.single else of_index
    found = {name: _kept(rows, scale) for name, scale in found.items()}
    if rows.total is not None:
        found["loss"] = found["loss"].sum() / mean
    exact = {name: torch.zeros(()) for name in ("argmax", "correct")}
    return {**found, **exact, "gradient": _kept(rows, slope * dz)}
