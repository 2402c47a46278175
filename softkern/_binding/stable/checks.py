# SPDX-License-Identifier: Apache-2.0
"""Which arguments the kernels take: csrc/ops/checks.h and the checks of row_losses and linear_cross_entropy.

ATen computes all others, or raises its own exception. Only devices, dims, dtypes and sizes are read, so
that fake tensors pass too. No comparison of symbolic sizes requires an answer; sizes that must be equal are
recorded as checks for the run.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from softkern._binding.stable import native
from softkern._binding.stable.tensors import class_dim, compute_dtype
from softkern.options import OUTPUTS, PLANS, CrossEntropyOptions, LinearOptions, RowOptions

_DTYPES = {torch.float32, torch.float64, torch.bfloat16, torch.float16}
_INDEX_DTYPES = {torch.int64, torch.int32, torch.uint8}
DEVICE_TYPES = {"cpu": 0, "cuda": 1, "xpu": 12}  # torch's numbers of those that have a backend
_LOSS, _LOG_PROB, _CORRECT = OUTPUTS["loss"], OUTPUTS["log_prob"], OUTPUTS["correct"]

has_row_kernels = True  # also of row_losses and linear_cross_entropy


def is_true(condition: Any) -> bool:
    """False if only the run can know."""
    if isinstance(condition, bool):
        return condition
    from torch.fx.experimental.symbolic_shapes import guard_or_false

    return bool(guard_or_false(condition))


def is_expected(condition: Any) -> bool:
    """True if only the run can know, which then checks it."""
    if isinstance(condition, bool):
        return condition
    from torch.fx.experimental.symbolic_shapes import expect_true

    return bool(expect_true(condition))


def takes_tensor(x: Tensor) -> bool:
    if x.layout is not torch.strided or x.dtype not in _DTYPES or x.is_nested:
        return False
    device = x.device
    number = DEVICE_TYPES.get(device.type)
    index = -1 if device.index is None else device.index  # type: ignore[redundant-expr]
    return number is not None and native.computes_on(number, index)


def same_shape(a: Tensor, b: Tensor) -> bool:
    """As in F.cross_entropy, targets of the same shape as the logits are class probabilities."""
    return a.dim() == b.dim() and all(is_true(m == n) for m, n in zip(a.shape, b.shape, strict=True))


def has_simple_strides(logits: Tensor) -> bool:
    """Whether one stride walks all dims before the classes, and another one all dims after them. Then the
    kernels can write gradients over the logits."""
    if logits.numel() == 0:
        return True
    skip, expected = class_dim(logits), -1
    for i in reversed(range(logits.dim())):
        if i == skip:
            expected = -1
        elif logits.shape[i] != 1:
            if expected not in (-1, logits.stride(i)):
                return False
            expected = logits.stride(i) * logits.shape[i]
    return True


def _indices_fit(logits: Tensor, target: Tensor) -> bool:
    if target.dtype not in _INDEX_DTYPES or target.dim() != logits.dim() - 1:
        return False
    return _fits_rows(logits, target, False)


def _fits_rows(logits: Tensor, x: Tensor, with_classes: bool) -> bool:
    """Whether x has the sizes of the logits without, or with any, class dimension."""
    skip = class_dim(logits)
    if x.dim() != logits.dim() - (not with_classes):
        return False
    sizes = [size for i, size in enumerate(x.shape) if not (with_classes and i == skip)]
    rows = [size for i, size in enumerate(logits.shape) if i != skip]
    return all(is_expected(m == n) for m, n in zip(sizes, rows, strict=True))


def _takes_options(options: CrossEntropyOptions | RowOptions | LinearOptions) -> bool:
    return 0 <= options.reduction <= 2 and 0 <= options.label_smoothing <= 1


def _takes_weight(logits: Tensor, weight: Tensor | None) -> bool:
    if weight is None:
        return True
    return (
        not weight.is_nested
        and weight.dim() == 1
        and weight.dtype == logits.dtype
        and weight.device == logits.device
        and weight.layout is torch.strided
        and is_expected(weight.shape[0] == logits.shape[class_dim(logits)])
    )


def takes_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, options: CrossEntropyOptions
) -> bool:
    if not takes_tensor(logits) or logits.dim() < 1:
        return False
    if target.layout is not torch.strided or target.device != logits.device or target.is_nested:
        return False
    if not _takes_options(options) or is_true(logits.shape[class_dim(logits)] == 0):
        return False
    if same_shape(logits, target):
        if target.dtype != logits.dtype or options.ignore_index >= 0:
            return False
    elif not _indices_fit(logits, target) or (weight is not None and weight.requires_grad):
        return False  # torch raises: the weights of class indices have no gradient
    return _takes_weight(logits, weight)


class RowTensors(NamedTuple):
    """The tensors of row_losses."""

    self: Tensor
    target: Tensor | None
    weight: Tensor | None
    row_weight: Tensor | None
    num_items: Tensor | None
    target_probs: Tensor | None

    @property
    def kind(self) -> str:
        """What the targets are. A tensor of class indices has one a row, or K in the class dimension."""
        if self.target is None:
            return "none"
        if self.target.is_floating_point():
            return "probabilities"
        return "indices" if self.target.dim() == self.self.dim() else "index"


def _is_row_number(logits: Tensor, x: Tensor, with_classes: bool) -> bool:
    return (
        x.layout is torch.strided
        and not x.is_nested
        and x.device == logits.device
        and x.dtype in (logits.dtype, torch.float32)
        and _fits_rows(logits, x, with_classes)
    )


def takes_row_losses(of: RowTensors, options: RowOptions | LinearOptions) -> bool:
    x, y, kind = of.self, of.target, of.kind
    if not has_row_kernels or not takes_tensor(x) or x.dim() < 1 or not _takes_options(options):
        return False
    c = class_dim(x)
    if is_true(x.shape[c] == 0):
        return False
    wanted = options.outputs
    if y is None:
        if wanted & (_LOSS | _LOG_PROB | _CORRECT):
            return False
    elif y.layout is not torch.strided or y.device != x.device or y.is_nested:
        return False
    elif kind == "probabilities":
        if not same_shape(x, y) or y.dtype != x.dtype or wanted & _LOG_PROB:
            return False
    elif kind == "index":
        if not _indices_fit(x, y):
            return False
    elif (
        y.dtype not in _INDEX_DTYPES
        or not _fits_rows(x, y, True)
        or (wanted & _LOSS and of.target_probs is None)
    ):
        return False
    if kind != "index" and wanted & _CORRECT:
        return False
    if of.target_probs is not None and not (
        y is not None
        and kind == "indices"
        and _is_row_number(x, of.target_probs, True)
        and is_expected(of.target_probs.shape[c] == y.shape[c])
    ):
        return False
    if of.row_weight is not None and not _is_row_number(x, of.row_weight, False):
        return False
    if of.num_items is not None and (
        of.num_items.dim() != 0 or of.num_items.device != x.device or of.num_items.is_complex()
    ):
        return False
    return _takes_weight(x, of.weight)


class LinearTensors(NamedTuple):
    """The tensors of linear_cross_entropy. `rows` has logits of the shape of its own, without memory."""

    input: Tensor
    matrix: Tensor
    bias: Tensor | None
    rows: RowTensors


def linear_tensors(
    input: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    target: Tensor | None,
    weight: Tensor | None,
    row_weight: Tensor | None,
    num_items: Tensor | None,
    target_probs: Tensor | None,
) -> LinearTensors:
    compute = compute_dtype(input)
    # The dtype of the logits for row_losses: the compute dtype, or that of class probabilities.
    of_rows = target.dtype if target is not None and target.is_floating_point() else compute
    logits = torch.empty((), dtype=of_rows, device=input.device)
    if input.dim() == 2 and matrix.dim() == 2:
        logits = logits.expand(input.shape[0], matrix.shape[0])

    def converted(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Others than of the two dtypes are left to the checks."""
        return x.to(dtype) if x is not None and x.dtype in (input.dtype, compute) else x

    numbers = (converted(weight, of_rows), converted(row_weight, compute))
    rows = RowTensors(logits, target, *numbers, num_items, converted(target_probs, compute))
    return LinearTensors(input, matrix, bias, rows)


def takes_linear_cross_entropy(of: LinearTensors, options: LinearOptions) -> bool:
    x, w, b = of.input, of.matrix, of.bias

    def fits(t: Tensor, dims: int) -> bool:
        dense = t.layout is torch.strided and not t.is_nested
        return dense and t.dim() == dims and t.dtype == x.dtype and t.device == x.device

    if not takes_tensor(x) or not fits(x, 2) or not fits(w, 2):
        return False
    if not is_expected(x.shape[1] == w.shape[1]):
        return False
    if b is not None and not (fits(b, 1) and is_expected(b.shape[0] == w.shape[0])):
        return False
    if of.rows.self.dtype not in (x.dtype, compute_dtype(x)):
        return False
    return 0 <= options.plan < PLANS.index("reference") and takes_row_losses(of.rows, options)
