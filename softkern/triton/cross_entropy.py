# SPDX-License-Identifier: Apache-2.0
"""The steps of cross_entropy on tensors, as csrc/ops/cross_entropy/call.h defines them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softkern.options import CrossEntropyOptions
from softkern.triton.cross_entropy_kernels import cross_entropy_kernel, scale_kernel
from softkern.triton.formulas import has_spread_mass, mass_numbers
from softkern.triton.launch import (
    launch_options,
    on_device_of,
    programs,
    ran,
    scratch,
    stages,
    triton_dtype,
    units,
)
from softkern.triton.plan import Walk, layout_of, make_plan, power_of_two, walk_of, walkable
from softkern.triton.reduce_kernels import loss_kernel, mass_kernel, merge_loss_kernel, merge_mass_kernel
from softkern.triton.rows import MERGED

# One program adds up to ROWS_ALONE rows, a few microseconds of work. For more rows there are as many programs
# as needed, at most MOST_PROGRAMS.
ROWS_ALONE, MOST_PROGRAMS = 16384, 1024


def class_dim(logits: Tensor) -> int:
    return min(1, logits.dim() - 1)


def own_walk(x: Tensor, dim: int) -> Walk:
    """The walk of a tensor that is written to. The callers have made it, or have refused tensors that can't
    be walked."""
    walk = walk_of(x, dim)
    assert walk is not None
    return walk


@dataclass(frozen=True)
class Sums:
    """How the rows are split among programs for sums over all rows."""

    parts: int
    sums: Tensor
    block: int  # the smallest power of two that is at least parts

    @property
    def alone(self) -> bool:
        return self.parts == 1


def _share_rows(rows: int, fields: int, device: torch.device) -> Sums:
    parts = max(1, min(MOST_PROGRAMS, -(-rows // ROWS_ALONE)))
    size = fields * parts if parts > 1 else 0
    sums = torch.empty(size, dtype=torch.float64, device=device)
    return Sums(parts, sums, power_of_two(parts))


def target_weight(
    target: Tensor,
    weight: Tensor | None,
    classes: int,
    ignore_index: int,
    sum: Tensor,
    reciprocal: Tensor,
) -> None:
    """The total weight of the targets that are not ignored, and its reciprocal in the compute dtype."""
    rows = target.numel()
    shared = _share_rows(rows, 2, target.device)
    fixed = launch_options(target.device)
    with on_device_of(target):
        mass_kernel[(shared.parts,)](
            target, weight, sum, reciprocal, shared.sums, rows, classes, ignore_index, shared.parts,
            ALONE=shared.alone, **fixed,
        )  # fmt: skip
        if not shared.alone:
            merge_mass_kernel[(1,)](shared.sums, sum, reciprocal, shared.parts, BLOCK_P=shared.block, **fixed)


def reduce_losses(
    losses: Tensor,
    divisor: float,
    divisor_on_device: Tensor | None,
    storage: float,
    storage_on_device: Tensor | None,
    loss: Tensor,
    grad_scale: Tensor | None,
) -> None:
    """loss = (sum of losses) / divisor, and the factor of stored gradients."""
    shared = _share_rows(losses.numel(), 1, losses.device)
    on_device = (divisor_on_device, storage_on_device)
    constant = (divisor, storage)
    fixed = launch_options(losses.device)
    with on_device_of(losses):
        loss_kernel[(shared.parts,)](
            losses, *on_device, loss, grad_scale, shared.sums, losses.numel(), shared.parts, *constant,
            ALONE=shared.alone, **fixed,
        )  # fmt: skip
        if not shared.alone:
            merge_loss_kernel[(1,)](
                *on_device, loss, grad_scale, shared.sums, shared.parts, *constant, BLOCK_P=shared.block,
                **fixed,
            )  # fmt: skip


def cross_entropy_rows(self: Tensor, target: Tensor, weight: Tensor | None, *given: Any) -> None:
    """The losses of the rows and, if `grad` is given, their gradients times a factor, which is on the host or
    on the device. `grad` may be the logits. `given`: the options, factor, factor_on_device, losses, grad."""
    if self.numel() == 0:
        return
    options = CrossEntropyOptions(*given[: len(CrossEntropyOptions._fields)])
    factor, factor_on_device, losses, grad = given[len(options) :]
    dim = class_dim(self)
    layout = layout_of(self, dim)
    indices = target.shape != self.shape
    spread = has_spread_mass(options, not indices)
    logits, x_walk = walkable(self, dim)
    walks = [x_walk]
    t_walk = grad_walk = Walk(0, 0, 0)
    if not indices:
        target, t_walk = walkable(target, dim)
        walks.append(t_walk)
    if grad is not None:
        grad_walk = own_walk(grad, dim)
        walks.append(grad_walk)
    plan = make_plan(
        layout, walks, self.element_size(), others=spread and (weight is not None or not indices)
    )
    with on_device_of(self):
        parts, launches = stages(self, layout, plan)
        sizes, strides = units(layout, plan, [x_walk, t_walk, grad_walk])
        kept = scratch(self, 6 * (1 if spread else plan.lanes), parts, layout, launches)
        for stage, width in launches:
            if stage == MERGED.value and grad is None:
                width = 1
            cross_entropy_kernel[(programs(layout, plan), width)](
                logits, target, weight, losses, grad, factor_on_device, kept, *sizes, layout.rows, parts,
                *strides, options.ignore_index, *mass_numbers(options, layout.classes), factor,
                DTYPE=triton_dtype(self.dtype), PROBABILITIES=not indices, SPREAD=spread,
                STAGE=stage, **plan.constants(), **launch_options(self.device, plan.warps, plan.registers),
            )  # fmt: skip
        ran(plan, launches)


def scale_gradient(
    grad_output: Tensor,
    grad: Tensor,
    grad_scale: Tensor,
    target: Tensor | None,
    ignore_index: int,
    out: Tensor,
) -> None:
    """out = grad * (grad_output * grad_scale). out may have the memory of grad."""
    dim = class_dim(grad)
    layout = layout_of(grad, dim)
    # The expanded gradient that loss.sum() passes is one factor for all rows.
    single = all(
        size == 1 or stride == 0 for size, stride in zip(grad_output.shape, grad_output.stride(), strict=True)
    )
    # Even in place, out and grad are two tensors, because autograd's own tensor is never passed to Python. So
    # compare the memory.
    in_place = out.untyped_storage()._cdata == grad.untyped_storage()._cdata
    upstream = grad_output if single else grad_output.contiguous()
    index = None if target is None else target.contiguous()
    walks = [own_walk(grad, dim), own_walk(out, dim)]
    plan = make_plan(layout, walks, grad.element_size())
    sizes, strides = units(layout, plan, walks)
    with on_device_of(grad):
        scale_kernel[(programs(layout, plan),)](
            grad, out, upstream, grad_scale, index, *sizes, layout.rows, *strides, ignore_index,
            BY_ROW=not single, IN_PLACE=in_place, **plan.constants(),
            **launch_options(grad.device, plan.warps, plan.registers),
        )  # fmt: skip
    ran(plan, [(0, 1)])
