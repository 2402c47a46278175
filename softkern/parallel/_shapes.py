# SPDX-License-Identifier: Apache-2.0
"""Tensors of any shape as rows, and the rows' results in the shapes of the op row_losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from softkern.options import OUTPUTS, RowOptions
from softkern.parallel._rows import Shard, row_losses
from softkern.row_losses import Given

_NONE = 0  # of torch.nn._reduction.get_enum
_LOG_PROB = tuple(OUTPUTS).index("log_prob")


def as_rows(x: Tensor, dim: int) -> Tensor:
    """(rows, K) for a tensor with K numbers in dimension `dim`."""
    sizes = row_sizes(x, dim)
    return x.movedim(dim, -1).reshape(torch.Size(sizes).numel(), x.shape[dim])


def row_sizes(x: Tensor, dim: int) -> list[int]:
    return [n for i, n in enumerate(x.shape) if i != dim]


def from_rows(x: Tensor, sizes: Sequence[int], dim: int) -> Tensor:
    """The reverse of `as_rows`, with `sizes` as the other dimensions."""
    return x.reshape(*sizes, x.shape[1]).movedim(-1, dim)


def row_losses_of(
    input: Tensor, dim: int, given: Given, options: RowOptions, shard: Shard
) -> tuple[Tensor, ...]:
    """The results of row_losses for logits whose classes are in dimension `dim`, some of them on each rank.

    Targets with K indices and probabilities have them in `dim`, too.
    """
    input, given = for_autocast(input, given)
    target, weight, row_weight, num_items, target_probs = given
    several = target is not None and target.dim() == input.dim()
    y = None if target is None else as_rows(target, dim) if several else target.reshape(-1)
    probs = None if target_probs is None else as_rows(target_probs, dim)
    by_row = None if row_weight is None else row_weight.reshape(-1)
    results = row_losses(as_rows(input, dim), (y, weight, by_row, num_items, probs), options, shard)
    sizes = row_sizes(input, dim)

    def shaped(i: int, bit: int, x: Tensor) -> Tensor:
        if not options.outputs & bit or (i == 0 and options.reduction != _NONE):
            return x
        if i == _LOG_PROB and several:
            return from_rows(x, sizes, dim).contiguous()
        return x.reshape(sizes)

    return tuple(shaped(i, bit, x) for i, (bit, x) in enumerate(zip(OUTPUTS.values(), results, strict=True)))


def for_autocast(input: Tensor, given: Given) -> tuple[Tensor, Given]:
    """In float32 where autocast is on, as torch's losses."""
    if not torch.is_autocast_enabled(input.device.type) or input.dtype not in (torch.bfloat16, torch.float16):
        return input, given

    def wide(t: Tensor | None) -> Tensor | None:
        return t.float() if t is not None and t.dtype == input.dtype else t

    target, weight, row_weight, num_items, target_probs = given
    return input.float(), (wide(target), wide(weight), wide(row_weight), num_items, wide(target_probs))
