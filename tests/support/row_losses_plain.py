# SPDX-License-Identifier: Apache-2.0
"""The formulas of row_losses as users write them in torch today: a second oracle, in float64.

The loss is F.cross_entropy of the transformed logits; several indices a row become class probabilities.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from softkern.reference_rows import RowLosses


def transformed(x: Tensor, logit_scale=1.0, softcap=None, temperature=1.0) -> Tensor:
    """As TRL scales, caps and divides; masked logits stay masked."""
    masked = x == -torch.inf
    x = torch.where(masked, 0, x) * logit_scale
    x = softcap * torch.tanh(x / softcap) if softcap is not None else x
    return torch.where(masked, -torch.inf, x / temperature)


def selective_log_softmax(logits: Tensor, index: Tensor) -> Tensor:
    """TRL's for 32 and 64 bits: logits (..., V), index (...) or (..., K)."""
    squeeze = index.dim() == logits.dim() - 1
    index = index.unsqueeze(-1) if squeeze else index
    picked = logits.gather(-1, index) - logits.logsumexp(-1, keepdim=True)
    return picked.squeeze(-1) if squeeze else picked


def entropy_from_logits(logits: Tensor) -> Tensor:
    """TRL's: of logits (..., V)."""
    log_p = F.log_softmax(logits, -1)
    return -(log_p.exp() * log_p).sum(-1)


def several_as_probabilities(x: Tensor, target: Tensor, target_probs: Tensor) -> Tensor:
    """The class probabilities that K indices a row stand for; repeated ones add up."""
    dim = min(1, x.dim() - 1)
    return torch.zeros_like(x).scatter_add(dim, target.long(), target_probs.to(x.dtype))


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
    z_loss: float = 0.0,
    **transform: Any,
) -> RowLosses:
    """Of finite logits; what of them is ignored or padding may be anything."""
    dim = min(1, x.dim() - 1)
    x = x.narrow(dim, 0, valid_classes or x.shape[dim])
    weight = None if weight is None else weight[: x.shape[dim]]
    one_index = target is not None and not target.is_floating_point() and target.dim() < x.dim()
    keep = target != ignore_index if one_index else torch.ones_like(x.select(dim, 0), dtype=torch.bool)
    z = transformed(torch.where(keep.unsqueeze(dim), x, 0), **transform)
    rows = z.movedim(dim, -1)
    lse, entropy = rows.logsumexp(-1), entropy_from_logits(rows)
    argmax = torch.where(keep, z.argmax(dim), -1)
    log_prob = correct = loss = None
    w = r = torch.ones_like(lse)
    r = r if row_weight is None else row_weight
    index = target
    if target is not None and target.is_floating_point():
        target = target.narrow(dim, 0, x.shape[dim])
    elif one_index:
        index = torch.where(keep, target, 0).long()
        w = w if weight is None else weight[index]
        log_prob, correct = selective_log_softmax(rows, index) * keep, keep & (argmax == target)
        target = torch.where(keep, target.long(), -100)
    elif target is not None:
        log_prob = selective_log_softmax(rows, target.long().movedim(dim, -1)).movedim(-1, dim)
        target = None if target_probs is None else several_as_probabilities(z, target, target_probs)
    if target is not None:
        loss = F.cross_entropy(z, target, weight, reduction="none", label_smoothing=label_smoothing)
        loss = (loss + z_loss * w * lse**2) * r * keep
    if target is not None and reduction != "none":
        total = (r * w * keep).sum() if num_items is None else num_items
        loss = loss.sum() / total if reduction == "mean" else loss.sum()
    return RowLosses(loss, log_prob, lse * keep, entropy * keep, argmax, correct)


def liger_cross_entropy(
    x: Tensor, target: Tensor, *, lse_square_scale=0.0, softcap=None, reduction="mean"
) -> Tensor:
    """Liger's of logits (N, V) and indices that may be -100; a mean is that of the rows that are kept."""
    keep = target != -100
    z = softcap * torch.tanh(x / softcap) if softcap is not None else x
    rows = F.cross_entropy(z, target, reduction="none") + lse_square_scale * z.logsumexp(-1) ** 2 * keep
    return rows if reduction == "none" else rows.sum() / (keep.sum() if reduction == "mean" else 1)
