# SPDX-License-Identifier: Apache-2.0
"""The inputs: difficult values, memory layouts, targets and options of cross-entropy.

The tests of the repository use the same inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor


def logits(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normally distributed logits: their probabilities reach from 1e-7 to nearly 1."""
    g = torch.Generator().manual_seed(seed + 1000003 * len(shape) + sum(shape))
    return (torch.randn(shape, generator=g, dtype=torch.float64) * 3).to(dtype)


def upstream(like: Tensor, kind: str) -> Tensor:
    """The upstream gradient, in each of the forms in which autograd passes it."""
    if kind == "ones":
        return torch.ones_like(like)
    if kind == "expanded":  # as sum().backward() passes it: all strides are 0
        return torch.tensor(0.75, dtype=like.dtype).expand_as(like)
    return logits(*like.shape, dtype=like.dtype, seed=7)


UPSTREAM = ("ones", "expanded", "random")


class Values(Protocol):
    """A function that makes difficult logits; cases refer to it by its name."""

    __name__: str

    def __call__(self, rows: int, classes: int, dtype: torch.dtype = torch.float32) -> Tensor: ...


def _hurt(fill: Callable[[Tensor], Tensor]) -> Values:
    def values(rows: int, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
        x = logits(rows, classes, dtype=torch.float64, seed=3)
        return fill(x).to(dtype)

    values.__name__ = fill.__name__.removeprefix("_")
    return values


def _offset_1e4(
    x: Tensor,
) -> Tensor:  # exp overflows without subtracting the maximum; lse - x_y loses 4 digits
    return x.round(decimals=1) + 1e4


def _offset_1e6(x: Tensor) -> Tensor:  # the same, and float32 has a spacing of 1/16 here
    return (x * 16).round() / 16 + 1e6


def _offset_minus_1e6(x: Tensor) -> Tensor:  # exp underflows to a sum of 0 without subtracting the maximum
    return (x * 16).round() / 16 - 1e6


def _near_overflow(x: Tensor) -> Tensor:  # exp(88.7) is the largest finite result in float32
    return 90 + 10 * x.sigmoid()


def _wide(x: Tensor) -> Tensor:  # results reach from normal through subnormal numbers to exact zero
    return torch.linspace(-120, 0, x.numel(), dtype=x.dtype).reshape(x.shape).flip(-1)


def _broad(x: Tensor) -> Tensor:  # in most rows one class is near 1: log(1 + r) and p - 1 have a tiny r
    return x * 4


def _confident(
    x: Tensor,
) -> Tensor:  # p = 1 - 1e-4: the gradient of the true class is a small difference
    x = x.clone()
    x[:, 0] = 12 + math.log(x.shape[1])
    return x


def _equal(x: Tensor) -> Tensor:  # log C exactly
    return torch.full_like(x, 0.7)


def _signed_zeros(x: Tensor) -> Tensor:
    return torch.where(torch.arange(x.numel()).reshape(x.shape) % 2 == 0, -0.0, 0.0).to(x.dtype)


HURTING = tuple(
    map(
        _hurt,
        (
            _offset_1e4,
            _offset_1e6,
            _offset_minus_1e6,
            _near_overflow,
            _wide,
            _broad,
            _confident,
            _equal,
            _signed_zeros,
        ),
    )
)


def special_rows(classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """One row for each kind of non-finite value, which stands at both ends and in the middle."""
    inf, nan = math.inf, math.nan
    base = logits(1, classes, dtype=dtype, seed=5)[0]
    rows = [base]
    for position in sorted({0, classes // 2, classes - 1}):
        for value in (-inf, inf, nan):
            row = base.clone()
            row[position] = value
            rows.append(row)
    rows += [torch.full_like(base, v) for v in (-inf, inf, nan)]
    masked = torch.full_like(base, -inf)  # only one class is left: its probability is exactly 1
    masked[-1] = 3.0
    nan_and_inf = base.clone()
    nan_and_inf[0], nan_and_inf[-1] = nan, inf
    return torch.stack([*rows, masked, nan_and_inf])


def masked(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Logits of which two fifths are -inf, also of classes that are targets."""
    x = logits(*shape, dtype=dtype, seed=9)
    return torch.where(torch.arange(x.numel()).reshape(shape) * 7 % 5 < 2, -math.inf, x)


def _noise(*shape: int, like: Tensor) -> Tensor:
    """The filling between the elements of a layout: reading it changes the result."""
    fill = math.nan if like.is_floating_point() else 99
    return torch.full(shape, fill, dtype=like.dtype, device=like.device)


def _offset(x: Tensor) -> Tensor:  # begins one element after an aligned address
    flat = _noise(x.numel() + 1, like=x)
    return flat[1:].view(x.shape).copy_(x)


def _padded(x: Tensor) -> Tensor:  # rows with gaps between them
    wide = _noise(*x.shape[:-1], x.shape[-1] + 3, like=x)
    return wide[..., : x.shape[-1]].copy_(x)


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def _every_other(x: Tensor) -> Tensor:
    wide = _noise(*x.shape[:-1], 2 * x.shape[-1], like=x)
    return wide[..., ::2].copy_(x)


def _expanded(x: Tensor) -> Tensor:  # all rows are the first one: stride 0
    return x[:1].clone().expand_as(x)


def _expanded_classes(x: Tensor) -> Tensor:  # all classes are the first one
    return x[..., :1].clone().expand_as(x)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.clone()


def _permuted(x: Tensor) -> Tensor:  # every dimension at another place in memory than usual
    order = [*range(1, x.dim()), 0]
    return x.permute(order).contiguous().permute([x.dim() - 1, *range(x.dim() - 1)])


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    f.__name__.removeprefix("_"): f
    for f in (
        torch.clone,
        _offset,
        _padded,
        _transposed,
        _every_other,
        _expanded,
        _expanded_classes,
        _channels_last,
        _permuted,
    )
}


REDUCTIONS = ("none", "mean", "sum")

# Options alone and combined. probs: class probabilities instead of class indices.
OPTIONS: tuple[dict[str, Any], ...] = (
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


def class_weights(classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weights from 0.25 to 2.25, exact in 16 bits, none of them 1."""
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


def probabilities(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows that sum to 1 and contain an exact 0, because 0 * -inf is a special case."""
    p = logits(*shape, dtype=torch.float64, seed=11).softmax(min(1, len(shape) - 1))
    return torch.where(p < p.mean() / 50, 0, p).to(dtype)


def row_weights(rows: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """From -0.5 to 2.5, exact in 16 bits; some are 0 and some negative."""
    n = torch.Size(rows).numel()
    return (((torch.arange(n) * 3 % 7).double() - 1) / 2).to(dtype).reshape(rows)


def several(shape: tuple[int, ...], k: int) -> tuple[Tensor, Tensor]:
    """k class indices a row in the class dimension, and their probabilities.

    Some indices of a row are equal. The probabilities are exact in 16 bits and do not sum to 1.
    """
    dim = min(1, len(shape) - 1)
    classes, rows = shape[dim], shape[:dim] + shape[dim + 1 :]
    n = torch.Size(rows).numel()
    number = torch.arange(n).unsqueeze(-1) * 5 + torch.arange(k) * torch.arange(k)
    target, shares = number % classes, ((number * 3) % 8).double() / (4 * k)
    return tuple(t.reshape(*rows, k).movedim(-1, dim) for t in (target, shares))  # type: ignore[return-value]


def padded_with_nan(x: Tensor, classes: int, dim: int) -> Tensor:
    shape = (*x.shape[:dim], classes, *x.shape[dim + 1 :])
    return torch.cat([x, torch.full(shape, math.nan, dtype=x.dtype)], dim)


def problem(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    *,
    weight: bool = False,
    ignore: int | None = None,
    smoothing: float = 0.0,
    probs: bool = False,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Logits, target and the keyword arguments of F.cross_entropy."""
    x = logits(*shape, dtype=dtype)
    kwargs: dict[str, Any] = {}
    if weight:
        kwargs["weight"] = class_weights(shape[min(1, len(shape) - 1)], dtype)
    if ignore is not None:
        kwargs["ignore_index"] = ignore
    if smoothing:
        kwargs["label_smoothing"] = smoothing
    target = probabilities(shape, dtype) if probs else indices(shape, ignore)
    return x, target, kwargs
