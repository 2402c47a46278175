# SPDX-License-Identifier: Apache-2.0
"""Fake kernels: shapes and dtypes of the ops' results for torch.compile, torch.export and meta tensors.

Each option is an argument. The dispatcher drops the last ones if they equal their defaults.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._prims_common import canonicalize_dim

from softkern import _C, _inductor
from softkern.exporting import aten_cross_entropy
from softkern.options import CrossEntropyOptions


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


def _loss_shape(logits: Tensor, reduction: int) -> list[int]:
    _inductor.register()
    if reduction != 0:
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
