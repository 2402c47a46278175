# SPDX-License-Identifier: Apache-2.0
"""What F lacks, written out in torch as people do who need it. Keywords are those of softkern.cross_entropy.

Of several ways in use, each formula is the fastest.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.cells import HEAD_OP, Cell
from benchmarks.ops import end_to_end
from benchmarks.ops.selective_log_softmax import Selected
from benchmarks.options import RowStats

Tensor = torch.Tensor
ROWS = 128  # of which TRL computes the entropy at a time


def api(cell: Cell) -> Any:
    """The namespace with the op, for the cell's option."""
    if cell.op in (HEAD_OP, end_to_end.HEAD):
        return SimpleNamespace(linear_cross_entropy=linear_cross_entropy)
    formula = selective_log_softmax if cell.op == "selective_log_softmax" else LOSSES[cell.option]
    return SimpleNamespace(**{cell.op: formula})


def row_weight(x: Tensor, target: Tensor, *, row_weight: Tensor) -> Tensor:
    losses = F.cross_entropy(x, target, reduction="none")
    return (losses * row_weight).sum() / row_weight.sum()


def num_items(x: Tensor, target: Tensor, *, num_items: Tensor) -> Tensor:
    """As the trainer of Hugging Face's transformers does."""
    return F.cross_entropy(x, target, reduction="sum") / num_items


def valid_classes(x: Tensor, target: Tensor, *, valid_classes: int) -> Tensor:
    return F.cross_entropy(x[:, :valid_classes], target)


def target_probs(x: Tensor, target: Tensor, *, target_probs: Tensor) -> Tensor:
    """As in distillation from a teacher's largest probabilities."""
    return -(F.log_softmax(x, 1).gather(1, target) * target_probs).sum(1).mean()


def logit_scale(x: Tensor, target: Tensor, *, logit_scale: float) -> Tensor:
    return F.cross_entropy(x * logit_scale, target)


def temperature(x: Tensor, target: Tensor, *, temperature: float) -> Tensor:
    return F.cross_entropy(x / temperature, target)


def softcap(x: Tensor, target: Tensor, *, softcap: float) -> Tensor:
    return F.cross_entropy(softcap * torch.tanh(x / softcap), target)


def z_loss(x: Tensor, target: Tensor, *, z_loss: float) -> Tensor:
    return F.cross_entropy(x, target) + z_loss * x.logsumexp(1).square().mean()


def stats(x: Tensor, target: Tensor, *, stats: tuple[str, ...]) -> tuple[Tensor, RowStats]:
    """All of them, as metrics beside the loss: without a graph."""
    loss = F.cross_entropy(x, target)
    with torch.no_grad():
        log_p = F.log_softmax(x, 1)
        entropy = -(log_p.exp() * log_p).sum(1)
        argmax = x.argmax(1)
        log_prob = log_p.gather(1, target[:, None])[:, 0]
        return loss, RowStats(log_prob, x.logsumexp(1), entropy, argmax, argmax == target)


LOSSES: dict[str, Callable[..., Any]] = {
    "row_weight": row_weight,
    "num_items": num_items,
    "valid_classes": valid_classes,
    "target_probs:2": target_probs,
    "target_probs:8": target_probs,
    "logit_scale": logit_scale,
    "temperature": temperature,
    "softcap": softcap,
    "z_loss": z_loss,
    "stats": stats,
}


def linear_cross_entropy(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """The two calls; some versions of F have one that makes them."""
    return F.cross_entropy(F.linear(x, weight), target)


def selective_log_softmax(x: Tensor, index: Tensor, *, entropy: bool) -> Selected:
    """The plain formulas: all log-probabilities for one of them, and log d less a mean of the logits."""
    log_prob = F.log_softmax(x, -1).gather(-1, index[..., None])[..., 0]
    return Selected(log_prob, x.logsumexp(-1) - (x.softmax(-1) * x).sum(-1))


def selective_log_softmax_in_parts(x: Tensor, index: Tensor, *, entropy: bool) -> Selected:
    """As TRL does."""
    parts = [_entropy(part) for part in x.flatten(0, -2).split(ROWS)]
    return Selected(_log_prob(x, index[..., None])[..., 0], torch.cat(parts).view(index.shape))


def _log_prob(x: Tensor, index: Tensor) -> Tensor:
    """Sequence by sequence; in 16 bits by log_softmax: a logit less the log-sum-exp would have few digits."""
    if x.dtype == torch.float32:
        return x.gather(-1, index) - torch.stack([logits.logsumexp(-1) for logits in x])[..., None]
    sequences = zip(x, index, strict=True)
    return torch.stack([F.log_softmax(logits, -1).gather(-1, at) for logits, at in sequences])


def _entropy(x: Tensor) -> Tensor:
    log_p = F.log_softmax(x, -1)
    return -(log_p.exp() * log_p).sum(-1)
