# SPDX-License-Identifier: Apache-2.0
"""The ops of rows whose classes are spread over tensors, on fake and meta tensors: shapes and dtypes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softkern import _inductor
from softkern._fake import (
    _LINEAR_TENSORS,
    _NUMBERS,
    _ROW_TENSORS,
    _compute_dtype,
    _like,
    _row_results,
)
from softkern.options import OUTPUTS, LinearOptions, RowOptions


def _indices(logits: Tensor, target: Tensor | None) -> int:
    """K of targets with several indices a row."""
    if target is None or target.is_floating_point() or target.dim() < logits.dim():
        return 0
    return target.shape[1]


def _parts(
    logits: Tensor, target: Tensor | None, outputs: int, tile_classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    _inductor.register()
    compute = _compute_dtype(logits)
    rows, classes = logits.shape
    # A rank may have no classes.
    tiles = torch.sym_max(1, -(-classes // tile_classes))  # type: ignore[no-untyped-call]
    indices = _indices(logits, target)
    return (
        logits.new_empty([_NUMBERS, tiles, rows], dtype=compute),
        logits.new_empty([rows, indices] if indices else [0], dtype=compute),
        logits.new_empty([tiles if outputs & OUTPUTS["argmax"] else 0, rows], dtype=torch.int64),
    )


@torch.library.register_fake("softkern::row_parts")
def _row_parts(self: Tensor, target: Tensor | None, *given: Any) -> tuple[Tensor, ...]:
    *options, _, tile_classes = given[_ROW_TENSORS - 1 :]
    return _parts(self, target, RowOptions(*options).outputs, tile_classes)


@torch.library.register_fake("softkern::linear_row_parts")
def _linear_row_parts(input: Tensor, linear_weight: Tensor, *given: Any) -> tuple[Tensor, ...]:
    *options, _, tile_classes = given[_LINEAR_TENSORS:]
    logits = input.new_empty([]).expand(input.shape[0], linear_weight.shape[0])
    return _parts(logits, given[1], LinearOptions(*options).outputs, tile_classes)


@torch.library.register_fake("softkern::linear_row_parts_backward")
def _linear_row_parts_backward(
    grad_loss: Tensor | None,
    grad_log_prob: Tensor | None,
    grad_lse: Tensor | None,
    grad_entropy: Tensor | None,
    whole: Tensor,
    input: Tensor,
    linear_weight: Tensor,
    *given: Any,
) -> tuple[Tensor, ...]:
    needs = given[-1]
    wanted = (
        (1, input.shape, _compute_dtype(input)),
        (2, linear_weight.shape, input.dtype),
        (4, linear_weight.shape[:1], input.dtype),
    )
    return tuple(input.new_empty(sizes if needs & bit else [0], dtype=dtype) for bit, sizes, dtype in wanted)


@torch.library.register_fake("softkern::row_parts_merge")
def _row_parts_merge(self: Tensor, parts: Tensor) -> Tensor:
    return parts.new_empty([parts.shape[0], parts.shape[2]])


@torch.library.register_fake("softkern::row_parts_results")
def _row_parts_results(
    self: Tensor, parts: Tensor, hot_z: Tensor, target: Tensor | None, *given: Any
) -> tuple[Tensor, ...]:
    options = RowOptions(*given[_ROW_TENSORS - 1 :])
    loss, log_prob, lse, entropy, *_ = _row_results(self, target, options)
    whole = self.new_empty([_NUMBERS, self.shape[0]], dtype=_compute_dtype(self))
    return loss, log_prob, lse, entropy, whole


@torch.library.register_fake("softkern::row_parts_backward")
def _row_parts_backward(
    grad_loss: Tensor | None,
    grad_log_prob: Tensor | None,
    grad_lse: Tensor | None,
    grad_entropy: Tensor | None,
    self: Tensor,
    *given: Any,
) -> Tensor:
    return _like(self)
