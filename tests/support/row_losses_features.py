# SPDX-License-Identifier: Apache-2.0
"""cross_entropy with softkern's own options and statistics, as a function of the logits alone."""

from __future__ import annotations

import pytest
import row_losses_plain as plain
import torch
from cases import upstream
from cross_entropy_cases import class_weights
from feature_cases import SHAPE, TARGET, f64, leaf

import softkern

STATS = ("log_prob", "lse", "entropy")
OPTIONS = {
    "label_smoothing": 0.1,
    "valid_classes": 9,
    "logit_scale": 0.9,
    "softcap": 4.0,
    "temperature": 1.5,
    "z_loss": 0.02,
    "num_items": 3.5,
}
ROWS = torch.tensor([0.5, 1.0, 2.0, 0.0, 1.5, 0.25], dtype=f64)
Y = torch.where(TARGET == 9, 8, TARGET)


def feature(row: str):
    """The mark of a test for this row of docs/compatibility.md."""
    return pytest.mark.feature(row, "row_losses")


def ours(x, y=Y, weight=None, rows=None, options=OPTIONS):
    """(loss, log_prob, lse, entropy)"""
    weight = class_weights(SHAPE[1], x.dtype) if weight is None else weight
    rows = ROWS.to(x.dtype) if rows is None else rows
    loss, stats = softkern.cross_entropy(x, y, weight, row_weight=rows, stats=STATS, **options)
    return loss, stats.log_prob, stats.lse, stats.entropy


def theirs(x, y=Y, weight=None, rows=None, options=OPTIONS):
    weight = class_weights(SHAPE[1], x.dtype) if weight is None else weight
    rows = ROWS.to(x.dtype) if rows is None else rows
    return plain.row_losses(x, y, weight, rows, **options)[:4]


def number(f):
    """One number that all results move, with derivatives of all orders."""
    return lambda *args: sum((t**2).sum() for t in f(*args))


def value_and_gradient(f, kind="random", x=None):
    x = leaf() if x is None else x
    y = f(x)
    return [t.detach() for t in y], torch.autograd.grad(y, x, [upstream(t.detach(), kind) for t in y])[0]
