# SPDX-License-Identifier: Apache-2.0
"""One call of each op, softkern's and torch's, as a function of the logits alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from cases import logits
from compatibility import OPS
from cross_entropy_cases import class_weights, indices
from torch import Tensor
from torch.utils._pytree import tree_map_only

import softkern

over_ops = pytest.mark.parametrize("op", OPS)
f64 = torch.float64
SHAPE = (6, 10)
TARGET = indices(SHAPE, ignore=-100)


def function(op: str, namespace=softkern, dtype=f64) -> Callable[[Tensor], Tensor]:
    """Of (6, 10) logits; the loss with all its options."""
    f = getattr(namespace, op)
    if op != "cross_entropy":
        return lambda x: f(x, 1)
    weight = class_weights(SHAPE[1], dtype)
    return lambda x: f(x, TARGET, weight, label_smoothing=0.1)


def both(op: str, dtype=f64) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    return function(op, softkern, dtype), function(op, F, dtype)


def scalar(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Of a result whose sum would be a constant (softmax), a number with derivatives of all orders."""
    return lambda x: (f(x) ** 2).sum()


def data(dtype=f64, seed: int = 0) -> Tensor:
    return logits(*SHAPE, dtype=dtype, seed=seed)


def leaf(dtype=f64) -> Tensor:
    return data(dtype).requires_grad_()


def close(actual, expected) -> None:
    """In float64: another formula, another order of the sums, and no more."""
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


class Tagged(torch.Tensor):
    """Stays what it is through torch's functions, and notes them."""

    seen: list = []  # noqa: RUF012  (one list for all)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


class Wrapped(torch.Tensor):
    """Holds its values in another tensor, which only torch's own ops find."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, strides=inner.stride(), requires_grad=inner.requires_grad
        )

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        assert func.namespace == "aten", func
        args, kwargs = tree_map_only(Wrapped, lambda t: t.inner, (args, kwargs or {}))
        return tree_map_only(torch.Tensor, Wrapped, func(*args, **kwargs))
