# SPDX-License-Identifier: Apache-2.0
"""The kernels of the ops in Triton: csrc/ops/{softmax, cross_entropy} in Python. Ops that have no driver here
raise; what calls them asks before whether they take the arguments (``_binding.stable.checks``)."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from softkern._binding.none import choice
from softkern._binding.stable import keys
from softkern._binding.stable.checks import DEVICE_TYPES, same_shape
from softkern._binding.stable.softmaxes import SOFTMAXES, torchs
from softkern._binding.stable.tensors import class_dim, compute_dtype
from softkern.options import CrossEntropyOptions

_NONE, _MEAN = 0, 1
_DEVICES = ("CPU", "CUDA", "XPU")
_HALF_STORAGE = 2.0**15  # the largest power of two in float16


def register(names: list[str]) -> None:
    for key in _DEVICES:
        for name in names:
            if name in _KERNELS:
                keys.at(key, name, _KERNELS[name])
            elif name not in _ABOVE:
                keys.at(key, name, _refusing(name))


def _refusing(name: str) -> Callable[..., Any]:
    from softkern._binding.none import WITHOUT

    def refuse(*_: Any) -> Any:
        raise RuntimeError(f"softkern::{name}: {WITHOUT}")

    return refuse


def _module(name: str) -> Any:
    """Triton is imported at its first use, which takes seconds."""
    return import_module(f"softkern.triton.{name}")


def _softmax(name: str) -> Callable[[Tensor, int], Tensor]:
    def call(x: Tensor, dim: int) -> Tensor:
        # Inference tensors come here past autograd, whose function asks this too.
        if not choice.computes_on(DEVICE_TYPES[x.device.type], -1):
            return torchs(name, x, dim)
        result: Tensor = getattr(_module(name), name)(x, dim % max(1, x.dim()))
        return result

    return call


def _softmax_backward(name: str) -> Callable[[Tensor, Tensor, int], Tensor]:
    def call(g: Tensor, y: Tensor, dim: int) -> Tensor:
        result: Tensor = getattr(_module(name), f"{name}_backward")(g, y, dim % max(1, y.dim()))
        return result

    return call


def _checked_targets(x: Tensor, target: Tensor, ignore_index: int) -> None:
    """A compiled kernel stops the device if a target is out of range; an interpreted one has none to stop."""
    if x.device.type != "cpu":
        return
    y = target.to(torch.int64)
    wrong = (y != ignore_index) & ((y < 0) | (y >= x.shape[class_dim(x)]))
    if bool(wrong.any()):
        raise IndexError(f"Target {int(y[wrong].flatten()[0])} is out of bounds.")


def _half_storage(
    x: Tensor, target: Tensor, weight: Tensor | None, indices: bool
) -> tuple[float, Tensor | None]:
    """CrossEntropyKernels::half_storage, on the host or on the device."""
    if indices and weight is None:
        return _HALF_STORAGE, None
    largest = torch.ones((), dtype=torch.float32, device=x.device)
    if not indices and target.numel() > 0:
        masses = torch.linalg.vector_norm(target, 1, class_dim(x), dtype=torch.float32)
        largest = torch.maximum(largest, masses.max())
    if weight is not None:
        largest = largest * weight.abs().max().to(torch.float32).clamp_min(1)
    exponent = torch.frexp(largest)[1].to(torch.int32)  # largest <= 2^exponent
    # 2^(15 - exponent) is made from its bits, because the result of exp2 need not be a power of two.
    storage = torch.bitwise_left_shift(15 + 127 - exponent, 23).view(torch.float32)
    return 0.0, torch.where(largest.isfinite(), storage, torch.ones_like(storage))


def _loss_and_gradient(
    x: Tensor, target: Tensor, weight: Tensor | None, given: tuple[Any, ...], grad: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(loss, grad_scale), and the gradient in `grad`, which may be the logits."""
    steps, plan = _module("cross_entropy"), _module("plan")
    options = CrossEntropyOptions(*given)
    dim, compute = class_dim(x), compute_dtype(x)
    indices, mean = not same_shape(x, target), options.reduction == _MEAN
    rows = x.numel() // max(1, x.shape[dim])
    if not indices and plan.walk_of(target, dim) is None:
        target = target.contiguous()
    weight = None if weight is None else weight.contiguous()

    def number(dtype: torch.dtype = compute) -> Tensor:
        return torch.empty((), dtype=dtype, device=x.device)

    divisor, reciprocal = 1.0, 1.0
    divisor_on_device = reciprocal_on_device = None
    if indices:
        target = target.contiguous()
        _checked_targets(x, target, options.ignore_index)
        if mean:
            divisor_on_device, reciprocal_on_device = number(torch.float64), number()
            steps.target_weight(
                target, weight, x.shape[dim], options.ignore_index, divisor_on_device, reciprocal_on_device
            )
    elif mean:
        divisor = float(rows)
        reciprocal = 1 / divisor if rows else 0.0
    storage, storage_on_device = 0.0, None  # 0: gradients are stored unscaled
    if grad is not None and x.dtype == torch.float16:
        storage, storage_on_device = _half_storage(x, target, weight, indices)
    stored = storage != 0 or storage_on_device is not None
    factor = (storage, storage_on_device) if stored else (reciprocal, reciprocal_on_device)

    reduces = options.reduction != _NONE
    losses = torch.empty(rows, dtype=compute if reduces else x.dtype, device=x.device)
    on_host = 1.0 if factor[1] is not None else factor[0]
    steps.cross_entropy_rows(x, target, weight, *options, on_host, factor[1], losses, grad)

    scale = number() if grad is not None else torch.empty(0, dtype=compute, device=x.device)
    if reduces:
        loss = number(x.dtype)
        steps.reduce_losses(
            losses, divisor, divisor_on_device, storage, storage_on_device, loss,
            scale if grad is not None else None,
        )  # fmt: skip
        return loss, scale
    if storage_on_device is not None:
        scale = storage_on_device.reciprocal()
    elif grad is not None:
        scale.fill_(1 / storage if storage else 1)
    return losses.view([size for i, size in enumerate(x.shape) if i != dim]), scale


def _forward(x: Tensor, target: Tensor, weight: Tensor | None, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    *options, need_grad = given
    grad = torch.empty(x.shape, dtype=x.dtype, device=x.device) if need_grad else None
    loss, scale = _loss_and_gradient(x, target, weight, tuple(options), grad)
    return loss, x.new_empty(0) if grad is None else grad, scale


def _forward_(x: Tensor, target: Tensor, weight: Tensor | None, *given: Any) -> tuple[Tensor, Tensor]:
    return _loss_and_gradient(x, target, weight, given, x)


def _backward_(g: Tensor, grad: Tensor, scale: Tensor, target: Tensor, ignore_index: int) -> None:
    if grad.numel() > 0:
        indices = None if same_shape(grad, target) else target
        _module("cross_entropy").scale_gradient(g, grad, scale, indices, ignore_index, grad)


def _backward(g: Tensor, grad: Tensor, scale: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    out = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)
    if grad.numel() > 0:
        indices = None if same_shape(grad, target) else target
        given = grad.contiguous()
        _module("cross_entropy").scale_gradient(g, given, scale, indices, ignore_index, out)
    return out


_ABOVE = {"cross_entropy", "cross_entropy_", "row_losses", "row_losses_", "linear_cross_entropy"}
_KERNELS: dict[str, Callable[..., Any]] = {
    "cross_entropy_forward": _forward,
    "cross_entropy_forward_": _forward_,
    "cross_entropy_backward": _backward,
    "cross_entropy_backward_": _backward_,
    **{name: _softmax(name) for name in SOFTMAXES},
    **{f"{name}_backward": _softmax_backward(name) for name in SOFTMAXES},
}
