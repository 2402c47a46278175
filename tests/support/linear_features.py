# SPDX-License-Identifier: Apache-2.0
"""linear_cross_entropy as a function of the layer alone, and the same in plain torch."""

from __future__ import annotations

import row_losses_plain as plain
import torch
import torch.nn.functional as F
from cases import logits
from cross_entropy_cases import class_weights, indices
from feature_cases import f64
from torch import Tensor

import softkern

OPS = torch.ops.softkern
STATS = ("log_prob", "lse", "entropy")
SHAPE = (6, 10)  # of the logits
FEATURES = 4
X, W, B = (logits(*s, dtype=f64) / 3 for s in ((6, FEATURES), (10, FEATURES), (10,)))
Y = torch.where(torch.arange(6) == 4, -100, indices(SHAPE))
OPTIONS = {"label_smoothing": 0.1, "softcap": 4.0, "temperature": 1.5, "z_loss": 0.02, "num_items": 3.5}


def weights(dtype=f64, y=Y) -> tuple[Tensor, Tensor]:
    """Of the classes and of the rows, some of which are 0."""
    return class_weights(SHAPE[1], dtype), (y % 4).to(dtype) / 2


def ours(x, w, b, y=Y, options=OPTIONS):
    """The loss alone, whose gradients the forward computes; then loss, log_prob, lse and entropy."""
    of_classes, of_rows = weights(x.dtype, y)
    layer = {"linear_bias": b, "weight": of_classes, "row_weight": of_rows}
    alone = softkern.linear_cross_entropy(x, w, y, **layer, **options)
    loss, stats = softkern.linear_cross_entropy(x, w, y, **layer, **options, reduction="none", stats=STATS)
    return alone, loss, stats.log_prob, stats.lse, stats.entropy


def theirs(x, w, b, y=Y, options=OPTIONS):
    of_classes, of_rows = weights(x.dtype, y)
    z, given = F.linear(x, w, b), (y, of_classes, of_rows)
    alone = plain.row_losses(z, *given, **options).loss
    return alone, *plain.row_losses(z, *given, **options, reduction="none")[:4]


def pinned(plan: str, reduction: str):
    """The loss, by one plan."""
    options = softkern.LinearCrossEntropyOptions(plan=plan)
    return lambda x, w, b: softkern.linear_cross_entropy(
        x, w, Y, linear_bias=b, reduction=reduction, options=options
    )
