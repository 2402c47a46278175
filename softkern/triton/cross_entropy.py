# SPDX-License-Identifier: Apache-2.0
"""cross_entropy's four ops on tensors, with the meaning that csrc/ops/ops.h gives them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from softkern.triton.cross_entropy_kernels import cross_entropy_kernel, scale_kernel
from softkern.triton.launch import on_device_of, options, programs, ran, scratch, stages, triton_dtype, units
from softkern.triton.plan import Walk, compute_dtype, layout_of, make_plan, power_of_two, walk_of, walkable
from softkern.triton.reduce_kernels import loss_kernel, mass_kernel, merge_loss_kernel, merge_mass_kernel
from softkern.triton.rows import MERGED

NONE, MEAN, SUM = 0, 1, 2  # as torch.nn._reduction.get_enum
# Rows that one program adds up, a few microseconds' work; beyond them as many programs as needed, at most so
# many.
ROWS_ALONE, MOST_PROGRAMS = 16384, 1024


def class_dim(logits: Tensor) -> int:
    return min(1, logits.dim() - 1)


def _is_index(logits: Tensor, target: Tensor) -> bool:
    return target.shape != logits.shape


def _own_walk(x: Tensor, dim: int) -> Walk:
    """Of a tensor that is written to: the callers have made it, or refused what can't be walked."""
    walk = walk_of(x, dim)
    assert walk is not None
    return walk


@dataclass(frozen=True)
class Sums:
    """How sums over the rows are shared out."""

    parts: int
    sums: Tensor
    block: int  # power of two that is not below parts

    @property
    def alone(self) -> bool:
        return self.parts == 1


def _share_rows(rows: int, fields: int, device: torch.device) -> Sums:
    parts = max(1, min(MOST_PROGRAMS, -(-rows // ROWS_ALONE)))
    size = fields * parts if parts > 1 else 0
    sums = torch.empty(size, dtype=torch.float64, device=device)
    return Sums(parts, sums, power_of_two(parts))


def _mass(
    target: Tensor, weight: Tensor | None, classes: int, ignore_index: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The weight of the targets that count, and its reciprocal in the dtype of the computation."""
    mass = torch.empty((), dtype=torch.float64, device=target.device)
    factor = torch.empty((), dtype=dtype, device=target.device)
    rows = target.numel()
    shared = _share_rows(rows, 2, target.device)
    fixed = options(target.device)
    mass_kernel[(shared.parts,)](
        target, weight, mass, factor, shared.sums, rows, classes, ignore_index, shared.parts,
        ALONE=shared.alone, **fixed,
    )  # fmt: skip
    if not shared.alone:
        merge_mass_kernel[(1,)](shared.sums, mass, factor, shared.parts, BLOCK_P=shared.block, **fixed)
    return mass, factor


def _reduced(
    losses: Tensor, dtype: torch.dtype, mass: Tensor | float, storage: Tensor | float, need_grad: bool
) -> tuple[Tensor, Tensor]:
    """The reduced loss and grad_scale."""
    loss = torch.empty((), dtype=dtype, device=losses.device)
    grad_scale = torch.empty((), dtype=losses.dtype, device=losses.device) if need_grad else None
    shared = _share_rows(losses.numel(), 1, losses.device)
    on_device = tuple(v if isinstance(v, Tensor) else None for v in (mass, storage))
    constant = tuple(1.0 if isinstance(v, Tensor) else float(v) for v in (mass, storage))
    fixed = options(losses.device)
    loss_kernel[(shared.parts,)](
        losses, *on_device, loss, grad_scale, shared.sums, losses.numel(), shared.parts, *constant,
        ALONE=shared.alone, **fixed,
    )  # fmt: skip
    if not shared.alone:
        merge_loss_kernel[(1,)](
            *on_device, loss, grad_scale, shared.sums, shared.parts, *constant, BLOCK_P=shared.block, **fixed,
        )  # fmt: skip
    return loss, losses.new_empty(0) if grad_scale is None else grad_scale


def _half_storage(weight: Tensor | None, target: Tensor, indices: bool, dim: int) -> Tensor | float:
    """Power of two that puts fp16 gradients where the format has most digits: |A p - a| is at most the
    largest mass of a row, and 2^15 is the format's largest power."""
    if weight is None and indices:
        return 2.0**15
    largest = torch.ones((), dtype=torch.float32, device=target.device)
    if not indices and target.numel() > 0:
        row_mass = torch.linalg.vector_norm(target, 1, dim, dtype=torch.float32)
        largest = torch.maximum(largest, row_mass.max())
    if weight is not None:
        largest = largest * torch.clamp_min(weight.abs().max().float(), 1)
    _, exponent = torch.frexp(largest)  # largest <= 2^exponent
    # 2^(15 - exponent) from its bits: what exp2 gives need not be a power of two.
    storage = ((15 - exponent.int() + 127) << 23).view(torch.float32)
    return torch.where(largest.isfinite(), storage, 1.0)


def _refuse_wrong_targets(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: int,
    label_smoothing: float,
) -> None:
    """For tensors of the CPU, whose kernels are interpreted: no assertion stops these."""
    counted = target[target != ignore_index]
    if counted.numel() == 0 or (counted.min() >= 0 and counted.max() < x.shape[class_dim(x)]):
        return
    # ATen finds the same target and raises its own exception.
    torch.ops.aten.cross_entropy_loss(x, target.long(), weight, reduction, ignore_index, label_smoothing)
    raise IndexError(f"softkern::cross_entropy: a target is out of bounds [0, {x.shape[class_dim(x)]})")


def _loss_and_gradient(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
    grad: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """loss and grad_scale; the gradient goes to `grad`, which may be x, if that is given."""
    dim = class_dim(x)
    layout = layout_of(x, dim)
    indices = _is_index(x, target)
    spread = not indices or label_smoothing > 0
    compute = compute_dtype(x.dtype)
    weight = None if weight is None else weight.contiguous()
    if indices and x.device.type == "cpu":
        _refuse_wrong_targets(x, target, weight, ignore_index, reduction, label_smoothing)
    logits, x_walk = walkable(x, dim)
    walks = [x_walk]
    if indices:
        target, t_walk = target.contiguous(), Walk(0, 0, 0)
    else:
        target, t_walk = walkable(target, dim)
        walks.append(t_walk)
    grad_walk = Walk(0, 0, 0)
    if grad is not None:
        grad_walk = _own_walk(grad, dim)
        walks.append(grad_walk)
    plan = make_plan(layout, walks, x.element_size(), others=spread and (weight is not None or not indices))
    with on_device_of(x):
        mass: Tensor | float = float(layout.rows) if reduction == MEAN else 1.0
        storage: Tensor | float = 0.0  # gradients are stored as they are
        factor: Tensor | float = 1 / mass if mass else math.nan
        if reduction == MEAN and indices:
            mass, factor = _mass(target, weight, layout.classes, ignore_index, compute)
        if grad is not None and x.dtype == torch.float16:
            factor = storage = _half_storage(weight, target, indices, dim)
        losses = torch.empty(layout.rows, dtype=x.dtype if reduction == NONE else compute, device=x.device)
        if x.numel() > 0:
            parts, launches = stages(x, layout, plan)
            sizes, strides = units(layout, plan, [x_walk, t_walk, grad_walk])
            kept = scratch(x, 6, parts, layout, launches)
            factor_on_device = factor if isinstance(factor, Tensor) else None
            for stage, width in launches:
                if stage == MERGED.value and grad is None:
                    width = 1
                cross_entropy_kernel[(programs(layout, plan), width)](
                    logits, target, weight, losses, grad, factor_on_device, kept, *sizes, layout.rows, parts,
                    *strides, ignore_index, 1 - label_smoothing, label_smoothing / layout.classes,
                    1.0 if factor_on_device is not None else factor,
                    DTYPE=triton_dtype(x.dtype), PROBABILITIES=not indices, SPREAD=spread,
                    STAGE=stage, **plan.constants(), **options(x.device, plan.warps, plan.registers),
                )  # fmt: skip
            ran(plan, launches)
        if reduction == NONE:
            shape = [size for i, size in enumerate(x.shape) if i != dim]
            if grad is None:
                grad_scale = losses.new_empty(0, dtype=compute)
            elif isinstance(storage, Tensor):
                grad_scale = storage.reciprocal()
            else:
                grad_scale = torch.full((), 1 / storage if storage else 1.0, dtype=compute, device=x.device)
            return losses.view(shape), grad_scale
        return _reduced(losses, x.dtype, mass, storage, grad is not None)


def cross_entropy_forward(
    self: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad = torch.empty_like(self, memory_format=torch.contiguous_format) if need_grad else None
    loss, grad_scale = _loss_and_gradient(
        self, target, weight, reduction, ignore_index, label_smoothing, grad
    )
    return loss, self.new_empty(0) if grad is None else grad, grad_scale


def cross_entropy_forward_(
    self: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[Tensor, Tensor]:
    if walk_of(self, class_dim(self)) is None or torch._debug_has_internal_overlap(self) == 1:
        raise RuntimeError(
            "softkern::cross_entropy_forward_: expected logits whose elements have memory of their own, in "
            f"steps that the kernels can walk; got strides {self.stride()}"
        )
    return _loss_and_gradient(self, target, weight, reduction, ignore_index, label_smoothing, self)


def _scale_gradient(
    grad_output: Tensor, grad: Tensor, grad_scale: Tensor, target: Tensor, ignore_index: int, out: Tensor
) -> None:
    """out = grad (grad_output grad_scale); out may be grad."""
    if grad.numel() == 0:
        return
    dim = class_dim(grad)
    layout = layout_of(grad, dim)
    if grad_output.numel() not in (1, layout.rows) or not grad_output.is_floating_point():
        raise RuntimeError(
            "softkern::cross_entropy_backward: expected a floating-point grad_output with one element or one "
            f"for each of {layout.rows} rows, got {grad_output.numel()} of {grad_output.dtype}"
        )
    # Expanded gradients, as loss.sum() gives them, are one factor.
    single = all(
        size == 1 or stride == 0 for size, stride in zip(grad_output.shape, grad_output.stride(), strict=True)
    )
    upstream = grad_output if single else grad_output.contiguous()
    index = target.contiguous() if _is_index(grad, target) else None
    walks = [_own_walk(grad, dim), _own_walk(out, dim)]
    plan = make_plan(layout, walks, grad.element_size())
    sizes, strides = units(layout, plan, walks)
    with on_device_of(grad):
        scale_kernel[(programs(layout, plan),)](
            grad, out, upstream, grad_scale, index, *sizes, layout.rows, *strides, ignore_index,
            BY_ROW=not single, IN_PLACE=out is grad, **plan.constants(),
            **options(grad.device, plan.warps, plan.registers),
        )  # fmt: skip
    ran(plan, [(0, 1)])


def cross_entropy_backward(
    grad_output: Tensor, grad: Tensor, grad_scale: Tensor, target: Tensor, ignore_index: int
) -> Tensor:
    out = torch.empty_like(grad, memory_format=torch.contiguous_format)
    _scale_gradient(grad_output, grad.contiguous(), grad_scale, target, ignore_index, out)
    return out


def cross_entropy_backward_(
    grad_output: Tensor, grad: Tensor, grad_scale: Tensor, target: Tensor, ignore_index: int
) -> None:
    if walk_of(grad, class_dim(grad)) is None:
        raise RuntimeError(
            "softkern::cross_entropy_backward_: expected a grad with strides that the kernels can walk, got "
            f"{grad.stride()}"
        )
    _scale_gradient(grad_output, grad, grad_scale, target, ignore_index, grad)
