# SPDX-License-Identifier: Apache-2.0
"""DTensors: the kernels compute each rank's rows, or its classes of them.

Rows may be sharded along any dimension, over any number of mesh dimensions, or be replicated. Classes may be
sharded over one mesh dimension (`softkern.parallel`). The functions here return None for everything else, and
torch computes it: other placements, pending sums, ranks outside the mesh, arguments that do not match.

This file uses only public conversions of DTensor. It does not import `torch.distributed` before a DTensor
exists.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor
from torch.nn import _reduction as _Reduction

from softkern.options import OUTPUTS, CrossEntropyOptions, RowOptions

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor, Placement

    from softkern.parallel._rows import Shard as ClassShard

_ops = torch.ops.softkern
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_NONE, _MEAN, _SUM = (_Reduction.get_enum(name) for name in ("none", "mean", "sum"))


def is_dtensor(x: object) -> TypeGuard[DTensor]:
    tensor = sys.modules.get("torch.distributed.tensor")
    return tensor is not None and isinstance(x, tensor.DTensor)


def softmax(
    op: Callable[[Tensor, int], Tensor], input: DTensor, dim: int, dtype: torch.dtype | None
) -> Tensor | None:
    """`op` on this rank's part of `input`, converted to `dtype`; a DTensor placed like `input`, or None."""
    if not -input.dim() <= dim < input.dim():
        return None
    dim %= input.dim()
    shard = _shared_classes(input, dim)
    if shard is None and not _whole_along(input, dim):
        return None
    local = input.to_local()
    local = local if dtype is None else local.to(dtype)
    if shard is None:
        result = op(local, dim)
    else:
        from softkern.parallel import _softmax

        result = _softmax.softmax(local, dim, op is _ops.log_softmax, shard)
    return _placed(result, input, input.placements, input.shape)


def cross_entropy(
    input: DTensor, target: Tensor, weight: Tensor | None, options: CrossEntropyOptions
) -> Tensor | None:
    """The loss: for "none" placed like the rows, otherwise pending its sum over the ranks; or None."""
    if not _go_together(input, target, weight):
        return None

    def rows(x: Tensor, local: Sequence[Tensor | None], reduction: int) -> tuple[Tensor, ...]:
        own = options._replace(reduction=reduction)
        shard = _shared_classes(input, _class_dim(input))
        if shard is not None:
            return _row_losses_of(x, local, RowOptions(*own), shard)[:1]
        return (_ops.cross_entropy(x, *local[:2], *own),)

    return _results(input, (target, weight, None, None, None), options, rows)[0]


def row_losses(
    input: DTensor, given: Sequence[Tensor | None], options: RowOptions
) -> tuple[Tensor, ...] | None:
    """The loss as for `cross_entropy`, and the statistics that are wanted placed like the rows; or None.

    `given` are the op's tensors behind the logits. The number of items may be a plain tensor, the same on all
    ranks.
    """
    target, weight, row_weight, num_items, target_probs = given
    if not _go_together(input, target, weight, row_weight, target_probs):
        return None
    if num_items is not None and num_items.requires_grad:
        return None
    given = target, weight, row_weight, _whole(num_items), target_probs

    def rows(x: Tensor, local: Sequence[Tensor | None], reduction: int) -> tuple[Tensor, ...]:
        own = options._replace(reduction=reduction)
        shard = _shared_classes(input, _class_dim(input))
        if shard is not None:
            return _row_losses_of(x, local, own, shard)
        results: tuple[Tensor, ...] = _ops.row_losses(x, *local, *own)
        return results

    loss, *statistics = _results(input, given, options, rows)
    dim = _class_dim(input)
    sizes = [n for i, n in enumerate(input.shape) if i != dim]
    bits = tuple(OUTPUTS.values())[1:]
    return loss, *(
        _like_rows(x, input, dim, sizes) if options.outputs & bit else x
        for bit, x in zip(bits, statistics, strict=True)
    )


def of_rows(
    compute: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]],
    input: DTensor,
    dim: int,
    index: Tensor | None,
    options: RowOptions,
) -> tuple[Tensor, Tensor] | None:
    """`compute`'s log-probabilities and entropies of this rank's rows, placed like the rows; or None."""
    shard = _shared_classes(input, dim)
    if shard is None and not _whole_along(input, dim):
        return None
    if index is not None and not (is_dtensor(index) and index.device_mesh == input.device_mesh):
        return None
    local, y = input.to_local(), _share(index, input, dim)
    if shard is None:
        log_prob, entropy = compute(local, y)
    else:
        from softkern.parallel import _shapes

        if y is not None and y.dim() == local.dim() > 1:
            y = y.movedim(-1, dim)
        options = options._replace(valid_classes=shard.vocabulary.classes)
        given = (y, None, None, None, None)
        _, log_prob, _, entropy, _, _ = _shapes.row_losses_of(local, dim, given, options, shard)
        if y is not None and y.dim() == local.dim() > 1:
            log_prob = log_prob.movedim(dim, -1).contiguous()
    if index is not None:
        log_prob = _like_rows(log_prob, input, dim, index.shape)
    if options.outputs & OUTPUTS["entropy"]:
        entropy = _like_rows(entropy, input, dim, [n for i, n in enumerate(input.shape) if i != dim])
    return log_prob, entropy


def _results(
    input: DTensor,
    given: tuple[Tensor | None, ...],
    options: CrossEntropyOptions | RowOptions,
    rows: Callable[[Tensor, Sequence[Tensor | None], int], tuple[Tensor, ...]],
) -> tuple[Tensor, ...]:
    """The results of `rows` on this rank's rows, with the loss as a DTensor.

    The mean divides by the weight of the targets of all ranks. So shards may have different sizes and
    different numbers of ignored rows. The kernels compute the sum of each rank's rows; float16 is converted
    first, because that sum may overflow it.
    """
    from torch.distributed.tensor import Partial

    dim = _class_dim(input)
    placements = _row_placements(input, dim)
    target, weight, row_weight, num_items, target_probs = given
    x = input.to_local()
    local = [
        _share(target, input, dim, is_dtensor(target) and target.is_floating_point()),
        _whole(weight),
        _share(row_weight, input, dim),
        num_items,
        _share(target_probs, input, dim),
    ]
    if options.reduction == _NONE or all(p.is_replicate() for p in placements):
        loss, *statistics = rows(x, local, options.reduction)
        sizes = [n for i, n in enumerate(input.shape) if i != dim] if options.reduction == _NONE else ()
        return _placed(loss, input, placements, sizes), *statistics
    pending = [Partial() if p.is_shard() else p for p in placements]
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    if x.dtype == torch.float16:
        x = x.to(compute)
        local = [t.to(compute) if t is not None and t.is_floating_point() else t for t in local]
    loss, *statistics = rows(x, local, _SUM)
    if options.reduction == _MEAN:
        mass: Tensor | int | None = num_items
        if mass is None:
            mass = _all_mass(input, dim, target, local[1], row_weight, options.ignore_index, compute, pending)
        loss = loss / mass
    return _placed(loss.to(input.dtype), input, pending, ()), *statistics


def _go_together(
    input: DTensor, target: Tensor | None, weight: Tensor | None, *of_rows: Tensor | None
) -> bool:
    class_dim = _class_dim(input)
    if input.dim() == 0 or input.shape[class_dim] == 0:
        return False
    whole = _whole_along(input, class_dim)
    if not whole and _mesh_dim_along(input, class_dim) is None:
        return False
    for t in (target, weight, *of_rows):
        if t is not None and not (is_dtensor(t) and t.device_mesh == input.device_mesh):
            return False
        if t is not None and t.requires_grad and not whole:
            return False
    # The gradient of a replicated weight would be pending a sum: torch has the rules for that.
    if weight is not None and (
        weight.requires_grad or weight.shape != input.shape[class_dim : class_dim + 1]
    ):
        return False
    rows = (*input.shape[:class_dim], *input.shape[class_dim + 1 :])
    return target is None or any(t is not None for t in of_rows) or target.shape in (rows, input.shape)


def _class_dim(input: DTensor) -> int:
    return 0 if input.dim() == 1 else 1


def _row_placements(input: DTensor, dim: int) -> list[Placement]:
    """Those of a tensor without the dimension of the classes."""
    from torch.distributed.tensor import Replicate, Shard

    return [
        Shard(p.dim - (p.dim > dim)) if isinstance(p, Shard) and p.dim != dim else Replicate()
        for p in input.placements
    ]


def _with_own_classes(input: DTensor, dim: int) -> list[Placement]:
    """Those of a tensor of the same rows whose numbers in the dimension of the classes all ranks need."""
    from torch.distributed.tensor import Replicate, Shard

    return [Replicate() if isinstance(p, Shard) and p.dim == dim else p for p in input.placements]


def _share(t: Tensor | None, input: DTensor, dim: int, of_classes: bool = False) -> Tensor | None:
    """This rank's part of a tensor with one number, or some, for each row, or one for each class of it."""
    if not is_dtensor(t):
        return None
    placements: Sequence[Placement] = input.placements
    if t.dim() != input.dim():
        placements = _row_placements(input, dim)
    elif not of_classes:
        placements = _with_own_classes(input, dim)
    return t.redistribute(placements=placements).to_local()


def _whole(t: Tensor | None) -> Tensor | None:
    return t.full_tensor() if is_dtensor(t) else t


def _like_rows(local: Tensor, input: DTensor, dim: int, shape: Sequence[int]) -> DTensor:
    """The DTensor of all ranks' numbers of rows; `shape` has the dimension of the classes or lacks it."""
    several = len(shape) == input.dim()
    placements = _with_own_classes(input, dim) if several else _row_placements(input, dim)
    return _placed(local, input, placements, shape)


def _whole_along(x: DTensor, dim: int) -> bool:
    """Whether this rank is in the mesh and has all elements of its rows along `dim`."""
    from torch.distributed.tensor import Replicate, Shard

    return x.device_mesh.get_coordinate() is not None and all(
        type(p) is Replicate or (type(p) is Shard and p.dim != dim) for p in x.placements
    )


def _mesh_dim_along(x: DTensor, dim: int) -> int | None:
    """The mesh dimension that `dim` is sharded over; None if there is none, or if there are several."""
    from torch.distributed.tensor import Replicate, Shard

    if x.device_mesh.get_coordinate() is None or x.dtype not in _FLOATS or x.shape[dim] == 0:
        return None
    found = [i for i, p in enumerate(x.placements) if type(p) is Shard and p.dim == dim]
    if len(found) != 1 or any(type(p) is not Replicate and type(p) is not Shard for p in x.placements):
        return None
    return found[0]


def _shared_classes(x: DTensor, dim: int) -> ClassShard | None:
    """Which classes of its rows along `dim` this rank has, if those are sharded over one mesh dimension."""
    mesh_dim = _mesh_dim_along(x, dim)
    if mesh_dim is None:
        return None
    from softkern.parallel import _shards

    with torch.no_grad():
        rows = torch.Size([n for i, n in enumerate(x.to_local().shape) if i != dim]).numel()
    return _shards.of_mesh(x.device_mesh, mesh_dim, x.shape[dim], rows)


def _row_losses_of(
    x: Tensor, local: Sequence[Tensor | None], options: RowOptions, shard: ClassShard
) -> tuple[Tensor, ...]:
    """The results of this rank's classes of rows."""
    from softkern.parallel import _shapes

    target, weight, row_weight, num_items, target_probs = local
    if options.valid_classes < 0:
        options = options._replace(valid_classes=shard.vocabulary.classes)
    given = (target, weight, row_weight, num_items, target_probs)
    return _shapes.row_losses_of(x, 0 if x.dim() == 1 else 1, given, options, shard)


def _all_mass(
    input: DTensor,
    dim: int,
    target: Tensor | None,
    weight: Tensor | None,
    row_weight: Tensor | None,
    ignore_index: int,
    dtype: torch.dtype,
    losses: Sequence[Placement],
) -> Tensor | int:
    """What a mean over the rows of all ranks divides by. `dim`: that of `input` which rows do not have."""
    if is_dtensor(target) and target.dim() < input.dim():
        return _mass(target, weight, row_weight, ignore_index, dtype, losses)
    if is_dtensor(row_weight):
        total: Any = row_weight.sum(dtype=dtype)  # a DTensor
        whole: Tensor = total.full_tensor(grad_placements=losses)
        return whole
    return input.numel() // input.shape[dim]


def _mass(
    target: DTensor,
    weight: Tensor | None,
    row_weight: Tensor | None,
    ignore_index: int,
    dtype: torch.dtype,
    losses: Sequence[Placement],
) -> Tensor:
    """The weight of all targets, of all ranks, that are not ignored.

    Each rank counts its own targets. If a rank has all of them, nothing is sent. The gradient of the mass is
    placed like the losses that it divides: pending a sum where each rank has its own.
    """
    from torch.distributed.tensor import Partial, Replicate

    if any(p.is_partial() for p in target.placements):
        target = target.redistribute(placements=[Replicate()] * len(target.placements))
    y = target.to_local()
    kept = y != ignore_index
    masses = kept.to(dtype)
    if weight is not None:
        masses = weight.to(dtype)[torch.where(kept, y, 0).long()].mul(kept)
    if is_dtensor(row_weight):
        of_rows = row_weight.redistribute(placements=target.placements).to_local().to(dtype)
        masses = masses * torch.where(kept, of_rows, 0)
    pending = [Partial() if p.is_shard() else p for p in target.placements]
    return _placed(masses.sum(), target, pending, ()).full_tensor(grad_placements=losses)


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
