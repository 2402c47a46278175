# SPDX-License-Identifier: Apache-2.0
"""softmax and log_softmax above their kernels, as csrc/autograd/softmax.cpp and output_node.h."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from softkern._binding.stable import keys
from softkern._binding.stable.checks import takes_tensor
from softkern._binding.stable.tensors import (
    below_autograd,
    by_aten,
    in_backward,
    is_for_onnx,
    is_traced_for_onnx,
    ops,
    requires_grad,
    wants_composite,
)

SOFTMAX, LOG_SOFTMAX = SOFTMAXES = ("softmax", "log_softmax")
_aten = torch.ops.aten


def torchs(name: str, x: Tensor, dim: int) -> Tensor:
    result: Tensor = getattr(_aten, name).int(x, dim)
    return result


def derivative(name: str, g: Tensor, y: Tensor, dim: int) -> Tensor:
    """That of the softmax with the output y, which can be differentiated."""
    result: Tensor = getattr(_aten, f"_{name}_backward_data")(g, y, dim, y.dtype)
    return result


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, op: str, x: Tensor, dim: int) -> Tensor:
        y: Tensor = getattr(ops, op)(x, dim)
        ctx.save_for_backward(y)
        ctx.op, ctx.dim = op, dim
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, derivative(ctx.op, g, y, ctx.dim), None
        with in_backward():
            return None, getattr(ops, f"{ctx.op}_backward")(g, y, ctx.dim), None


class SoftkernSoftmax(_Softmax):
    """Its name is that of the node in a graph."""


class SoftkernLogSoftmax(_Softmax):
    """As SoftkernSoftmax."""


class _Output(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, of: Tensor, y: Tensor, dim: int) -> Tensor:
        y = y.view_as(y)
        ctx.save_for_backward(y)
        ctx.op, ctx.dim = name, dim
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return None, derivative(ctx.op, g, y, ctx.dim), None, None


def with_history(name: str, of: Tensor, y: Tensor, dim: int) -> Tensor:
    """y as the result of a softmax of the tensor `of`, whose values are not needed."""
    result: Tensor = _Output.apply(name, of, y.detach(), dim)
    return result


def _at_autograd(name: str) -> Callable[[Tensor, int], Tensor]:
    function = SoftkernSoftmax if name == "softmax" else SoftkernLogSoftmax

    def call(x: Tensor, dim: int) -> Tensor:
        if is_for_onnx(x):
            return torchs(name, x, dim)
        if not takes_tensor(x) or wants_composite(x):
            return by_aten(torchs(name, x, dim))
        with below_autograd():
            if requires_grad(x):
                tracked: Tensor = function.apply(name, x, dim)
                return tracked
            result: Tensor = getattr(ops, name)(x, dim)
            return result

    return call


def _by_aten(name: str) -> Callable[[Tensor, int], Tensor]:
    return lambda x, dim: by_aten(torchs(name, x, dim))


def _in_float32(name: str) -> Callable[..., Tensor]:
    def call(cast: Callable[..., Tensor], x: Tensor, dim: int) -> Tensor:
        result: Tensor = getattr(ops, name)(cast(x, torch.float32), dim)
        return result

    return call


def register() -> None:
    for name in SOFTMAXES:
        keys.at("Autograd", name, _at_autograd(name))
        # Other devices, nested tensors with and without autograd, and vmap.
        for key in ("CompositeExplicitAutograd", "CompositeImplicitAutogradNestedTensor", "FuncTorchBatched"):
            keys.at(key, name, _by_aten(name))
        # On the CPU, autocast does not change the softmaxes.
        keys.at_autocast(name, _in_float32(name), ("cuda", "xpu"))
        keys.without_derivative(f"{name}_backward")
        keys.at(
            "FuncTorchBatched", f"{name}_backward", lambda g, y, dim, name=name: derivative(name, g, y, dim)
        )


def _entry(name: str) -> Callable[[Tensor, int], Tensor]:
    op = getattr(ops, name).default

    def call(x: Tensor, dim: int, /) -> Tensor:
        if is_traced_for_onnx(x):
            return torchs(name, x, dim)
        if not takes_tensor(x):
            return by_aten(torchs(name, x, dim))
        result: Tensor = op(x, dim)
        return result

    return call


def entries() -> dict[str, Callable[..., Any]]:
    return {name: _entry(name) for name in SOFTMAXES}
