# SPDX-License-Identifier: Apache-2.0
"""Registers functions at keys of the dispatcher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from softkern._binding.stable.tensors import below_autograd, ops, requires_grad

_AUTOCAST = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA", "xpu": "AutocastXPU"}
_library: Any = None  # torch removes its functions when it is freed


def at(key: str, name: str, function: Callable[..., Any]) -> None:
    global _library
    if _library is None:
        _library = torch.library.Library("softkern", "IMPL")
    _library.impl(name, function, key)


def at_autocast(name: str, function: Callable[..., Any], devices: tuple[str, ...] = tuple(_AUTOCAST)) -> None:
    """Registers function(cast, *arguments), which runs without autocast. cast(x, dtype) is as autocast's: it
    converts floating-point tensors of the device, but no float64."""
    for device in devices:
        at(_AUTOCAST[device], name, _without_autocast(device, function))


def _without_autocast(device: str, function: Callable[..., Any]) -> Callable[..., Any]:
    key = torch._C.DispatchKeySet(torch._C._dispatch_key_parse(_AUTOCAST[device]))

    def cast(x: Any, dtype: torch.dtype | None = None) -> Any:
        if not isinstance(x, Tensor) or x.device.type != device:
            return x
        narrow = x.is_floating_point() and x.dtype != torch.float64
        return x.to(torch.get_autocast_dtype(device) if dtype is None else dtype) if narrow else x

    def call(*given: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(key):
            return function(cast, *given)

    return call


class _NotDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, results: tuple[Tensor, ...], *inputs: Tensor) -> Any:
        ctx.op = name
        outputs = tuple(x.view_as(x) for x in results)
        ctx.mark_non_differentiable(*(x for x in outputs if not x.is_floating_point()))
        return outputs

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(f"derivative for softkern::{ctx.op} is not implemented")


def without_derivative(name: str) -> None:
    """For an op that is the derivative of another one, or a part of it: its own would be a second derivative,
    which the Functions compute in another way."""

    def call(*given: Any) -> Any:
        with below_autograd():
            results = getattr(ops, name)(*given)
        tensors = [x for x in given if isinstance(x, Tensor)]
        if results is None or not requires_grad(*tensors):
            return results
        single = isinstance(results, Tensor)
        tracked = _NotDifferentiable.apply(name, (results,) if single else results, *tensors)
        return tracked[0] if single else tracked

    at("Autograd", name, call)
