# SPDX-License-Identifier: Apache-2.0
"""Fake kernels: shapes and dtypes of the ops' results for torch.compile, torch.export and meta tensors.

Each option is an argument. The dispatcher drops the last ones if they equal their defaults.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._prims_common import canonicalize_dim
from torch.nn import _reduction as _Reduction

from softkern import _C, _inductor
from softkern.exporting import aten_cross_entropy
from softkern.options import OUTPUTS, PLANS, CrossEntropyOptions, LinearOptions, RowOptions


def _like(x: Tensor) -> Tensor:
    _inductor.register()
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _softmax(*given: Any) -> Tensor:
    """Of the input and `dim`; backward's gradient and output come before `dim`."""
    *tensors, dim = given
    if len(tensors) == 1:
        canonicalize_dim(tensors[0].dim(), dim)
    return _like(tensors[-1])


for _name in _C.op_names():
    if "softmax" in _name:
        torch.library.register_fake(f"softkern::{_name}", _softmax)


_NONE = _Reduction.get_enum("none")


def _loss_shape(logits: Tensor, reduction: int) -> list[int]:
    _inductor.register()
    if reduction != _NONE:
        return []
    class_dim = 0 if logits.dim() == 1 else 1
    return [size for i, size in enumerate(logits.shape) if i != class_dim]


@torch.library.register_fake("softkern::cross_entropy_")
@torch.library.register_fake("softkern::cross_entropy")
def _cross_entropy(self: Tensor, target: Tensor, weight: Tensor | None = None, *given: Any) -> Tensor:
    options = CrossEntropyOptions(*given)
    like = self
    if not _C.takes_cross_entropy(self, target, weight, *options):
        # ATen's op refuses the arguments, or gives the dtype of its loss. Its shape is not used: ATen's
        # decomposition for symbolic sizes treats "none" as a sum.
        like = aten_cross_entropy(self, target, weight, options)
    return like.new_empty(_loss_shape(self, options.reduction))


@torch.library.register_fake("softkern::cross_entropy_forward")
def _cross_entropy_forward(
    self: Tensor, target: Tensor, weight: Tensor | None, *given: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *options, need_grad = given
    loss = self.new_empty(_loss_shape(self, CrossEntropyOptions(*options).reduction))
    grad = _like(self) if need_grad else self.new_empty([0])
    grad_scale = self.new_empty([] if need_grad else [0], dtype=_compute_dtype(self))
    return loss, grad, grad_scale


@torch.library.register_fake("softkern::cross_entropy_forward_")
def _cross_entropy_forward_(
    self: Tensor, target: Tensor, weight: Tensor | None, *given: Any
) -> tuple[Tensor, Tensor]:
    loss = self.new_empty(_loss_shape(self, CrossEntropyOptions(*given).reduction))
    return loss, self.new_empty([], dtype=_compute_dtype(self))


@torch.library.register_fake("softkern::cross_entropy_backward")
def _cross_entropy_backward(
    grad_output: Tensor, grad: Tensor, grad_scale: Tensor, target: Tensor, ignore_index: int
) -> Tensor:
    return _like(grad)


@torch.library.register_fake("softkern::cross_entropy_backward_")
def _cross_entropy_backward_(
    grad_output: Tensor, grad: Tensor, grad_scale: Tensor, target: Tensor, ignore_index: int
) -> None:
    return None


# row_losses: `given` are the target, the weight, row_weight, num_items and target_probs; those at the end may
# be missing if they are None, as options are if they equal their defaults.
_ROW_TENSORS = 5


def _row_results(logits: Tensor, target: Tensor | None, options: RowOptions) -> tuple[Tensor, ...]:
    _inductor.register()
    rows, compute = _loss_shape(logits, _NONE), _compute_dtype(logits)
    shapes = {
        "loss": (_loss_shape(logits, options.reduction), logits.dtype),
        "log_prob": (rows if target is None else list(target.shape), compute),
        "lse": (rows, compute),
        "entropy": (rows, compute),
        "argmax": (rows, torch.int64),
        "correct": (rows, torch.bool),
    }
    return tuple(
        logits.new_empty(shape if options.outputs & OUTPUTS[name] else [0], dtype=dtype)
        for name, (shape, dtype) in shapes.items()
    )


@torch.library.register_fake("softkern::row_losses_")
@torch.library.register_fake("softkern::row_losses")
def _row_losses(self: Tensor, *given: Any) -> tuple[Tensor, ...]:
    tensors = (*given[:_ROW_TENSORS], *[None] * (_ROW_TENSORS - len(given)))
    options = RowOptions(*given[_ROW_TENSORS:])
    if not _C.takes_row_losses(self, *tensors, *options):
        return _C.row_losses_in_aten(self, *tensors, *options)
    return _row_results(self, tensors[0], options)


@torch.library.register_fake("softkern::row_losses_forward")
def _row_losses_forward(self: Tensor, target: Tensor | None, *given: Any) -> tuple[Tensor, ...]:
    *options, need_grad = given[_ROW_TENSORS - 1 :]
    grad = _like(self) if need_grad else self.new_empty([0])
    return *_row_results(self, target, RowOptions(*options)), grad


@torch.library.register_fake("softkern::row_losses_forward_")
def _row_losses_forward_(self: Tensor, target: Tensor | None, *given: Any) -> tuple[Tensor, ...]:
    return _row_results(self, target, RowOptions(*given[_ROW_TENSORS - 1 :]))


@torch.library.register_fake("softkern::row_losses_backward")
def _row_losses_backward(
    grad_loss: Tensor | None,
    grad_log_prob: Tensor | None,
    grad_lse: Tensor | None,
    grad_entropy: Tensor | None,
    self: Tensor,
    *given: Any,
) -> Tensor:
    return _like(self)


@torch.library.register_fake("softkern::row_losses_backward_")
def _row_losses_backward_(*given: Any) -> None:
    return None


# linear_cross_entropy: `given` are the bias and the tensors of row_losses, then options.
_LINEAR_TENSORS = 1 + _ROW_TENSORS
_NEEDS = (1, 2, 4)  # bits: input, linear_weight, linear_bias
_FAST = (PLANS.index("auto"), PLANS.index("fast"))
_NUMBERS = 7  # of a row, from which backward computes


def _linear_results(input: Tensor, target: Tensor | None, options: LinearOptions) -> tuple[Tensor, ...]:
    number = input.new_empty([]).expand(input.shape[0], 1)  # in place of the logits
    loss, *statistics = _row_results(number, target, options.of_rows)
    return loss.to(_compute_dtype(input)) if options.wide_loss else loss, *statistics


def _linear_gradients(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, needs: int
) -> tuple[Tensor, ...]:
    """Those that are not needed are empty."""
    return tuple(
        _like(x) if x is not None and needs & bit else input.new_empty([0])
        for x, bit in zip((input, linear_weight, linear_bias), _NEEDS, strict=True)
    )


@torch.library.register_fake("softkern::linear_cross_entropy")
def _linear_cross_entropy(input: Tensor, linear_weight: Tensor, *given: Any) -> tuple[Tensor, ...]:
    tensors = (*given[:_LINEAR_TENSORS], *[None] * (_LINEAR_TENSORS - len(given)))
    options = LinearOptions(*given[_LINEAR_TENSORS:])
    if not _C.takes_linear_cross_entropy(input, linear_weight, *tensors, *options):
        return _C.linear_cross_entropy_in_aten(input, linear_weight, *tensors, *options)
    return _linear_results(input, tensors[1], options)


@torch.library.register_fake("softkern::linear_cross_entropy_forward")
def _linear_cross_entropy_forward(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor | None, *given: Any
) -> tuple[Tensor, ...]:
    *fields, needs = given[_ROW_TENSORS - 1 :]
    options = LinearOptions(*fields)
    numbers = [_NUMBERS, input.shape[0]] if needs else [0]
    return (
        *_linear_results(input, target, options),
        *_linear_gradients(input, linear_weight, linear_bias, needs if _is_fast(input, options) else 0),
        input.new_empty(numbers, dtype=_compute_dtype(input)),
    )


def _is_fast(input: Tensor, options: LinearOptions) -> bool:
    """Whether the forward computes gradients: the rule of csrc/ops/linear_cross_entropy/plan.cpp."""
    statistics = options.outputs & (OUTPUTS["log_prob"] | OUTPUTS["lse"] | OUTPUTS["entropy"])
    return (
        options.plan in _FAST
        and bool(options.outputs & OUTPUTS["loss"])
        and options.reduction != _NONE
        and input.dtype != torch.float16
        and not (statistics and options.plan != PLANS.index("fast"))
    )


@torch.library.register_fake("softkern::linear_cross_entropy_backward")
def _linear_cross_entropy_backward(
    grad_loss: Tensor | None,
    grad_log_prob: Tensor | None,
    grad_lse: Tensor | None,
    grad_entropy: Tensor | None,
    numbers: Tensor,
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    *given: Any,
) -> tuple[Tensor, ...]:
    *_, needs = given
    return _linear_gradients(input, linear_weight, linear_bias, needs)
