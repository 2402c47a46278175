# SPDX-License-Identifier: Apache-2.0
"""DTensors with all classes of a row on one rank: the kernels compute each rank's rows.

Rows may be sharded along any dimension, over any number of mesh dimensions, or be replicated. The functions
here return None for everything else, and torch computes it: sharded classes, pending sums, ranks outside the
mesh, arguments that do not match.

This file uses only public conversions of DTensor. It does not import `torch.distributed` before a DTensor
exists.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor
from torch.nn import _reduction as _Reduction

from softkern.options import CrossEntropyOptions

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor, Placement

_ops = torch.ops.softkern


def is_dtensor(x: object) -> TypeGuard[DTensor]:
    tensor = sys.modules.get("torch.distributed.tensor")
    return tensor is not None and isinstance(x, tensor.DTensor)


def softmax(
    op: Callable[[Tensor, int], Tensor], input: DTensor, dim: int, dtype: torch.dtype | None
) -> Tensor | None:
    """`op` on this rank's part of `input`, converted to `dtype`; a DTensor placed like `input`, or None."""
    if not -input.dim() <= dim < input.dim() or not _whole_along(input, dim % input.dim()):
        return None
    local = input.to_local()
    return _placed(op(local if dtype is None else local.to(dtype), dim), input, input.placements, input.shape)


def cross_entropy(
    input: DTensor, target: Tensor, weight: Tensor | None, options: CrossEntropyOptions
) -> Tensor | None:
    """The loss: for "none" placed like the rows, otherwise pending its sum over the ranks; or None.

    The mean divides by the weight of the targets of all ranks. So shards may have different sizes and
    different numbers of ignored rows. The kernels compute the sum of each rank's rows; float16 is converted
    first, because that sum may overflow it.
    """
    from torch.distributed.tensor import Partial, Replicate, Shard

    if not is_dtensor(target) or not (weight is None or is_dtensor(weight)):
        return None
    if not _go_together(input, target, weight):
        return None
    class_dim = 0 if input.dim() == 1 else 1
    indices = target.shape != input.shape
    row_placements = [
        Shard(p.dim - (p.dim > class_dim)) if isinstance(p, Shard) else Replicate() for p in input.placements
    ]
    x = input.to_local()
    y = target.redistribute(placements=row_placements if indices else input.placements).to_local()
    w = None
    if weight is not None:
        w = weight.redistribute(placements=[Replicate()] * len(row_placements)).to_local()
    if options.reduction == _Reduction.get_enum("none"):
        rows = [n for i, n in enumerate(input.shape) if i != class_dim]
        loss = _ops.cross_entropy(x, y, w, *options)
        return _placed(loss, input, row_placements, rows)
    if all(p.is_replicate() for p in row_placements):
        loss = _ops.cross_entropy(x, y, w, *options)
        return _placed(loss, input, row_placements, ())
    pending = [Partial() if p.is_shard() else p for p in row_placements]
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    if x.dtype == torch.float16:
        x, y = x.to(compute), y if indices else y.to(compute)
        w = None if w is None else w.to(compute)
    loss = _ops.cross_entropy(x, y, w, *options._replace(reduction=_Reduction.get_enum("sum")))
    if options.reduction == _Reduction.get_enum("mean"):
        if indices:
            loss = loss * _mass(target, w, options.ignore_index, compute).reciprocal()
        else:
            loss = loss / (input.numel() // input.shape[class_dim])
    return _placed(loss.to(input.dtype), input, pending, ())


def _go_together(input: DTensor, target: DTensor, weight: DTensor | None) -> bool:
    class_dim = 0 if input.dim() == 1 else 1
    if input.dim() == 0 or input.shape[class_dim] == 0 or not _whole_along(input, class_dim):
        return False
    tensors = [target] if weight is None else [target, weight]
    if any(t.device_mesh != input.device_mesh for t in tensors):
        return False
    # The gradient of a replicated weight would be pending a sum: torch has the rules for that.
    if weight is not None and (
        weight.requires_grad or weight.shape != input.shape[class_dim : class_dim + 1]
    ):
        return False
    rows = (*input.shape[:class_dim], *input.shape[class_dim + 1 :])
    return target.shape in (rows, input.shape)


def _whole_along(x: DTensor, dim: int) -> bool:
    """Whether this rank is in the mesh and has all elements of its rows along `dim`."""
    from torch.distributed.tensor import Replicate, Shard

    return x.device_mesh.get_coordinate() is not None and all(
        type(p) is Replicate or (type(p) is Shard and p.dim != dim) for p in x.placements
    )


def _mass(target: DTensor, weight: Tensor | None, ignore_index: int, dtype: torch.dtype) -> Tensor:
    """The weight of all targets, of all ranks, that are not ignored.

    Each rank counts its own targets. If a rank has all of them, nothing is sent.
    """
    from torch.distributed.tensor import Partial, Replicate

    if any(p.is_partial() for p in target.placements):
        target = target.redistribute(placements=[Replicate()] * len(target.placements))
    y = target.to_local()
    kept = y != ignore_index
    if weight is None:
        mass = kept.sum(dtype=dtype)
    else:
        mass = weight.to(dtype)[torch.where(kept, y, 0).long()].mul(kept).sum()
    pending = [Partial() if p.is_shard() else p for p in target.placements]
    return _placed(mass, target, pending, ()).full_tensor()


def _placed(local: Tensor, like: DTensor, placements: Sequence[Placement], shape: Sequence[int]) -> DTensor:
    from torch.distributed.tensor import DTensor

    stride = [1] * len(shape)
    for i in range(len(shape) - 1, 0, -1):
        stride[i - 1] = stride[i] * max(shape[i], 1)
    return DTensor.from_local(
        local,
        like.device_mesh,
        placements,
        run_check=False,
        shape=torch.Size(shape),
        stride=tuple(stride),
    )
