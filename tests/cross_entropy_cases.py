# SPDX-License-Identifier: Apache-2.0
"""Problems for cross-entropy: logits, targets and options, in every shape F.cross_entropy takes."""

from __future__ import annotations

import pytest
import torch
from cases import logits, name
from tolerances import DTYPES
from torch import Tensor

REDUCTIONS = ("none", "mean", "sum")

# (C), (N, C), (N, C, d1), (N, C, d1, d2) and an empty inner dimension's neighbour, d1 = 1
SHAPES = ((7,), (6, 10), (4, 5, 3), (3, 7, 1), (2, 5, 3, 4))

# Every option alone and with each other. probs: class probabilities instead of class indices.
OPTIONS = (
    {},
    {"weight": True},
    {"ignore": 2},
    {"smoothing": 0.1},
    {"weight": True, "ignore": -100},
    {"weight": True, "smoothing": 0.3},
    {"ignore": -1, "smoothing": 0.2},
    {"weight": True, "ignore": 0, "smoothing": 1.0},
    {"probs": True},
    {"probs": True, "weight": True},
    {"probs": True, "smoothing": 0.1},
    {"probs": True, "weight": True, "smoothing": 0.25},
)

# Class indices, everything at once with indices, everything at once with probabilities.
KINDS = ({}, {"weight": True, "ignore": 1, "smoothing": 0.1}, OPTIONS[-1])

over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=name)
over_reductions = pytest.mark.parametrize("reduction", REDUCTIONS)
over_kinds = pytest.mark.parametrize("kind", KINDS, ids=("indices", "all-options", "probs"))


def class_weights(classes: int, dtype=torch.float32) -> Tensor:
    """From 0.25 to 2.25, exact in 16 bits, none of them 1."""
    return (0.25 + (torch.arange(classes) * 5 % 9).double() / 4).to(dtype)


def indices(shape: tuple[int, ...], ignore: int | None = None) -> Tensor:
    """Targets for logits of `shape`: first and last class included, every third row ignored."""
    classes = shape[min(1, len(shape) - 1)]
    rows = shape[:1] + shape[2:] if len(shape) > 1 else ()
    n = torch.Size(rows).numel()
    t = (torch.arange(n) * 7 + classes - 1) % classes
    if ignore is not None:
        t = torch.where(torch.arange(n) % 3 == 1, ignore, t)
    return t.reshape(rows)


def probabilities(shape: tuple[int, ...], dtype=torch.float32) -> Tensor:
    """Rows that sum to 1 with an exact 0 in each (0 * -inf is a case of its own)."""
    p = logits(*shape, dtype=torch.float64, seed=11).softmax(min(1, len(shape) - 1))
    return torch.where(p < p.mean() / 50, 0, p).to(dtype)


def problem(
    shape: tuple[int, ...],
    dtype=torch.float32,
    *,
    weight: bool = False,
    ignore: int | None = None,
    smoothing: float = 0.0,
    probs: bool = False,
) -> tuple[Tensor, Tensor, dict]:
    """Logits, target and the keyword arguments of F.cross_entropy."""
    x = logits(*shape, dtype=dtype)
    kwargs = {}
    if weight:
        kwargs["weight"] = class_weights(shape[min(1, len(shape) - 1)], dtype)
    if ignore is not None:
        kwargs["ignore_index"] = ignore
    if smoothing:
        kwargs["label_smoothing"] = smoothing
    target = probabilities(shape, dtype) if probs else indices(shape, ignore)
    return x, target, kwargs
