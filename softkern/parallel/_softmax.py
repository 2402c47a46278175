# SPDX-License-Identifier: Apache-2.0
"""softmax and log_softmax of rows whose classes are spread over ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softkern.options import OUTPUTS, RowOptions
from softkern.parallel import _collectives as collectives
from softkern.parallel._exchange import MAX, TERMS_BELOW
from softkern.parallel._rows import Shard, first_derivative, gathered_parts
from softkern.parallel._shapes import as_rows, for_autocast, from_rows, row_sizes

_ops = torch.ops.softkern
_NO_TARGET = (None, None, None, None, None)


def softmax(input: Tensor, dim: int, log: bool, shard: Shard) -> Tensor:
    """This rank's classes of the softmax along `dim`, or of its logarithm."""
    apply: Any = _Softmax.apply
    input, _ = for_autocast(input, _NO_TARGET)
    y: Tensor = apply(as_rows(input, dim), log, shard)
    return from_rows(y, row_sizes(input, dim), dim).contiguous()


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, log: bool, shard: Shard) -> Tensor:
        options = RowOptions(0, valid_classes=shard.vocabulary.classes, outputs=OUTPUTS["lse"])
        parts, hot_z, _ = gathered_parts(x, _NO_TARGET, options, shard)
        whole = _ops.row_parts_merge(x, parts)
        # Without E, the entropy, log d + E / total, is log d.
        whole[TERMS_BELOW] = 0
        options = options._replace(outputs=OUTPUTS["entropy"])
        log_d = _ops.row_parts_results(x, whole[:, None], hot_z, *_NO_TARGET, *options)[3]
        y: Tensor
        if log:
            y = ((x.to(whole.dtype) - whole[MAX, :, None]) - log_d[:, None]).to(x.dtype)
        else:
            # The gradient of lse.
            one = torch.ones_like(log_d)
            y = _ops.row_parts_backward(None, None, one, None, x, whole, *_NO_TARGET, *options, shard.first)
        ctx.save_for_backward(x, y)
        ctx.log, ctx.group = log, shard.group
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        with torch.no_grad():
            dx = _gradient(y, grad, ctx.log, ctx.group)
        return first_derivative(dx, x), None, None


def _gradient(y: Tensor, grad: Tensor, log: bool, group: Any) -> Tensor:
    wide = torch.float64 if y.dtype == torch.float64 else torch.float32
    g, p = grad.to(wide), y.to(wide)
    total = collectives.all_reduce((g if log else g * p).sum(1, keepdim=True), group)
    return (g - p.exp() * total if log else p * (g - total)).to(y.dtype)
