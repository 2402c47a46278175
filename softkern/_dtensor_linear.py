# SPDX-License-Identifier: Apache-2.0
"""linear_cross_entropy of DTensors (`_dtensor.py`): whole layers, and layers whose classes ranks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from softkern._dtensor import (
    _MEAN,
    _NONE,
    _all_mass,
    _like_rows,
    _mesh_dim_along,
    _placed,
    _row_placements,
    _share,
    _whole,
    _whole_along,
    is_dtensor,
)
from softkern.options import OUTPUTS, LinearOptions

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from softkern.row_losses import Given


def linear_cross_entropy(
    compute: Callable[..., tuple[Tensor, ...]],
    layer: tuple[Tensor, Tensor, Tensor | None],
    given: Sequence[Tensor | None],
    options: LinearOptions,
) -> tuple[Tensor, ...] | None:
    """`compute`'s results of this rank's rows, with a layer that every rank has as a whole, or whose classes
    the ranks of one mesh dimension share; or None.

    They are placed as those of `row_losses`. The gradients of the layer are pending a sum over the ranks that
    have different rows. The rows' targets and numbers have the classes, if any, in the last dimension.
    """
    from torch.distributed.tensor import Partial, Replicate, Shard

    input, *whole = (t for t in layer if t is not None)
    target, weight, row_weight, num_items, target_probs = given
    if not is_dtensor(input) or not all(
        t is None or (is_dtensor(t) and t.device_mesh == input.device_mesh)
        for t in (*whole, target, weight, row_weight, target_probs)
    ):
        return None
    shared = _classes_of_layer(*whole)
    if shared is not None:  # each rank needs the rows of the others that share the classes
        rows = [Replicate() if i == shared else p for i, p in enumerate(input.placements)]
        input = input.redistribute(placements=rows)
    dim = input.dim() - 1
    if not _whole_along(input, dim) or not all(
        is_dtensor(t) and all(p.is_replicate() or i == shared for i, p in enumerate(t.placements))
        for t in whole
    ):
        return None
    if (weight is not None and weight.requires_grad) or (num_items is not None and num_items.requires_grad):
        return None
    if shared is not None and any(
        t is not None and t.requires_grad for t in (target, row_weight, target_probs)
    ):
        return None
    placements = _row_placements(input, dim)
    replicated = all(p.is_replicate() for p in placements)
    pending = [Partial() if p.is_shard() else p for p in placements]
    of_classes, items = _whole(weight), _whole(num_items)
    if options.reduction == _MEAN and items is None and not replicated:
        dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        mass = _all_mass(input, dim, target, of_classes, row_weight, options.ignore_index, dtype, pending)
        items = mass if isinstance(mass, Tensor) else torch.full((), mass, dtype=dtype, device=input.device)
    y, of_rows, probs = (_share(t, input, dim) for t in (target, row_weight, target_probs))
    of_layer = pending
    if shared is not None:
        assert is_dtensor(whole[0])
        mesh, classes, lead = input.device_mesh, whole[0].shape[0], input.shape[:-1]
        of_layer = [Shard(0) if i == shared else p for i, p in enumerate(pending)]
        if is_dtensor(target) and target.is_floating_point():
            own = [Shard(dim) if i == shared else p for i, p in enumerate(input.placements)]
            y = target.redistribute(placements=own).to_local()
        compute = _compute_by_classes(mesh, shared, classes, lead.numel())
    loss, *statistics = compute(
        (
            input.to_local(),
            *(t.to_local(grad_placements=of_layer) if is_dtensor(t) else None for t in layer[1:]),
        ),
        (y, of_classes, of_rows, items, probs),
        options,
    )
    sizes = input.shape[:-1]
    if options.reduction == _NONE:
        loss = _placed(loss, input, placements, sizes)
    else:
        loss = _placed(loss, input, placements if replicated else pending, ())
    bits = tuple(OUTPUTS.values())[1:]
    return loss, *(
        _like_rows(x, input, dim, sizes) if options.outputs & bit else x
        for bit, x in zip(bits, statistics, strict=True)
    )


def _classes_of_layer(linear_weight: Tensor, *linear_bias: Tensor) -> int | None:
    """The mesh dimension whose ranks share the classes of a layer; None: there is none, or several."""
    assert is_dtensor(linear_weight)
    same = all(is_dtensor(t) and t.placements == linear_weight.placements for t in linear_bias)
    return _mesh_dim_along(linear_weight, 0) if same else None


def _compute_by_classes(
    mesh: DeviceMesh, mesh_dim: int, classes: int, rows: int
) -> Callable[..., tuple[Tensor, ...]]:
    """As `compute` of `linear_cross_entropy`, for this rank's classes of the layer."""
    from softkern.parallel import _linear, _shards

    shard = _shards.of_mesh(mesh, mesh_dim, classes, rows)

    def compute(
        layer: tuple[Tensor, Tensor, Tensor | None], given: Given, options: LinearOptions
    ) -> tuple[Tensor, ...]:
        if options.valid_classes < 0:
            options = options._replace(valid_classes=classes)
        return _linear.of_any_lead(layer, given, options, shard)

    return compute
