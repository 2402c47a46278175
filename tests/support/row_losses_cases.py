# SPDX-License-Identifier: Apache-2.0
"""Problems for row_losses: logits, targets and softkern's own options, alone and combined."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from cases import logits
from cross_entropy_cases import class_weights, indices, probabilities
from torch import Tensor

__all__ = ["ALL", "ALONE", "PAIRS", "TARGETS", "over_targets", "row_problem", "rows_of"]

# Targets, by the name of the option `target` of row_problem.
TARGETS = ("index", "indices", "probs", "none")

# Each option alone: the arguments of row_problem.
ALONE: dict[str, dict[str, Any]] = {
    "plain": {},
    "weight": {"weight": True},
    "ignored": {"ignore": 2},
    "smoothing": {"smoothing": 0.1},
    "row_weight": {"row_weight": True},
    "num_items": {"num_items": 3.5},
    "valid_classes": {"padding": 3},
    "logit_scale": {"logit_scale": 0.7},
    "softcap": {"softcap": 2.5},
    "temperature": {"temperature": 1.7},
    "z_loss": {"z_loss": 0.05},
}


def _together(*names: str) -> dict[str, Any]:
    return {k: v for name in names for k, v in ALONE[name].items()}


# Every two of them, and all.
PAIRS = {"+".join(pair): _together(*pair) for pair in itertools.combinations(list(ALONE)[1:], 2)}
PAIRS["all"] = ALL = _together(*ALONE)

over_targets = pytest.mark.parametrize("target", TARGETS)


def rows_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:1] + shape[2:] if len(shape) > 1 else ()


def several(shape: tuple[int, ...], k: int, classes: int) -> Tensor:
    """K class indices for each row of logits of `shape`; in every other row the last repeats the first."""
    rows = rows_of(shape)
    n = torch.Size(rows).numel()
    y = (torch.arange(n)[:, None] * 5 + torch.arange(k) * 3 + classes - 1) % classes
    if k > 1:
        y[::2, -1] = y[::2, 0]
    return y.reshape(*rows, k).movedim(-1, min(1, len(rows)))


def row_problem(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    *,
    target: str = "index",
    k: int = 3,
    weight: bool = False,
    ignore: int | None = None,
    smoothing: float = 0.0,
    row_weight: bool = False,
    padding: int = 0,
    seed: int = 0,
    **options: Any,
) -> tuple[Tensor, dict[str, Any]]:
    """Logits, and the keyword arguments of reference.row_losses.

    The last `padding` classes are not valid. What is not read is NaN: logits and probabilities of these,
    and ignored rows. `options` are handed on.
    """
    x = logits(*shape, dtype=dtype, seed=seed)
    dim = min(1, len(shape) - 1)
    valid = max(1, shape[dim] - padding)
    inner = (*shape[:dim], valid, *shape[dim + 1 :])  # the shape without padding
    rows = rows_of(shape)
    if valid < shape[dim]:
        x.narrow(dim, valid, shape[dim] - valid).fill_(torch.nan)
        options["valid_classes"] = valid
    if weight:
        options["weight"] = class_weights(shape[dim], dtype)
    if smoothing:
        options["label_smoothing"] = smoothing
    if row_weight:  # some are 0
        r = (torch.arange(torch.Size(rows).numel()) * 3 % 4).reshape(rows) / 2
        options["row_weight"] = r.to(dtype)
    if target == "index":
        options["target"] = indices(inner, ignore)
        if ignore is not None:
            options["ignore_index"] = ignore
            x = torch.where((options["target"] == ignore).unsqueeze(dim), torch.nan, x)
    elif target == "indices":
        options["target"] = several(inner, k, valid)
        options["target_probs"] = probabilities((*shape[:dim], k, *shape[dim + 1 :]), dtype)
    elif target == "probs":
        t = torch.full(shape, torch.nan, dtype=dtype)
        t.narrow(dim, 0, valid).copy_(probabilities(inner, dtype))
        options["target"] = t
    return x, options
