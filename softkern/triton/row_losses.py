# SPDX-License-Identifier: Apache-2.0
"""The step row_losses on tensors, as csrc/ops/row_losses/call.h defines it."""

from __future__ import annotations

from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softkern.options import OUTPUTS, RowOptions
from softkern.triton.cross_entropy import class_dim, own_walk
from softkern.triton.formulas import has_spread_mass, logit_numbers, mass_numbers, transforms_logits
from softkern.triton.launch import (
    MOST_PARTS,
    launch_options,
    on_device_of,
    programs,
    ran,
    triton_dtype,
    units,
)
from softkern.triton.plan import (
    Layout,
    Plan,
    Walk,
    compute_dtype,
    layout_of,
    make_plan,
    most_registers,
    power_of_two,
    walkable,
)
from softkern.triton.row_losses_blocks import CAPPED, INDEX, INDICES, NONE, PROBABILITIES, SAME, SCALED
from softkern.triton.row_losses_hot_kernels import FIELDS, gather_kernel, scatter_kernel
from softkern.triton.row_losses_kernels import row_losses_kernel
from softkern.triton.row_parts_kernels import PART_HOT_Z, PART_MAX, part_gradient_kernel

# The class indices that a program has at once, in one row or in several.
HOT_BLOCK = 512


class Targets(NamedTuple):
    """Undefined tensors are None. `indices` has one class index a row, or K of them: (rows, K)."""

    indices: Tensor | None
    target_probs: Tensor | None  # (rows, K)
    probabilities: Tensor | None
    weight: Tensor | None
    row_weight: Tensor | None  # (rows)


class Results(NamedTuple):
    """One number a row, K of them in `log_prob` with K indices; None if not wanted."""

    loss: Tensor | None
    log_prob: Tensor | None
    lse: Tensor | None
    entropy: Tensor | None
    argmax: Tensor | None
    correct: Tensor | None
    parts: Tensor | None  # PartNumbers (csrc/common/options.h) of the rows: (7, rows)
    hot_z: Tensor | None  # beside `parts`, the z of each of K indices, 0 for classes not read: (rows, K)


class Upstream(NamedTuple):
    """The gradient of a row's loss is factor * factor_on_device * loss[row], without the last two if they are
    None. The gradients of the other results may be None too."""

    factor: float
    factor_on_device: Tensor | None
    loss: Tensor | None
    log_prob: Tensor | None
    lse: Tensor | None
    entropy: Tensor | None


def zeta_of(options: RowOptions) -> float:
    """The factor of the squared lse in a row's loss."""
    return options.z_loss


def row_losses(self: Tensor, *given: Any) -> None:
    """Writes the results that are given and, if `grad` is given, the gradient of the logits for the upstream
    gradients. `grad` may be the logits. `given`: the targets, the options, `first` and `whole` (RowCall in
    csrc/ops/row_losses/call.h), the upstream gradients, the results, grad."""
    rest = iter(given)
    targets = Targets(*islice(rest, len(Targets._fields)))
    options = RowOptions(*islice(rest, len(RowOptions._fields)))
    first: int = next(rest)
    whole: Tensor | None = next(rest)
    upstream = Upstream(*islice(rest, len(Upstream._fields)))
    results = Results(*islice(rest, len(Results._fields)))
    grad: Tensor | None = next(rest)
    dim = class_dim(self)
    valid = min(max(options.valid_classes - first, 0), self.shape[dim])
    padding = self.shape[dim] - valid
    if padding:
        self = self.narrow(dim, 0, valid)
        if grad is not None:
            grad.narrow(dim, valid, padding).zero_()
            grad = grad.narrow(dim, 0, valid)
        if targets.probabilities is not None:
            targets = targets._replace(probabilities=targets.probabilities.narrow(dim, 0, valid))
    if first and targets.weight is not None:
        targets = targets._replace(weight=targets.weight[first:])
    if self.numel() == 0:
        if results.parts is not None:
            _no_classes(results.parts, targets.indices, options.ignore_index)
        if results.hot_z is not None:
            results.hot_z.zero_()
        if results.argmax is not None:
            results.argmax.fill_(-1)
        return
    with on_device_of(self):
        _launch(self, dim, targets, options, first, whole, upstream, results, grad)


def _no_classes(parts: Tensor, indices: Tensor | None, ignore_index: int) -> None:
    """The numbers of rows without classes."""
    parts.zero_()
    parts[PART_MAX.value].fill_(-torch.inf)
    if indices is not None and indices.dim() == 1:
        parts[PART_MAX.value].masked_fill_(indices == ignore_index, 0)


def _launch(
    self: Tensor,
    dim: int,
    targets: Targets,
    options: RowOptions,
    first: int,
    whole: Tensor | None,
    upstream: Upstream,
    results: Results,
    grad: Tensor | None,
) -> None:
    indices, target_probs, probabilities, weight, row_weight = targets
    of_part = whole is not None or results.parts is not None
    pulled = grad is not None and not (upstream.factor == 0 and upstream.factor_on_device is None)
    weighs = results.loss is not None or pulled
    if not weighs and results.parts is None:
        # No mass counts, and a factor of 0 would make infinite weights NaN.
        target_probs = probabilities = weight = row_weight = None
        options = options._replace(label_smoothing=0.0, z_loss=0.0)
    if of_part and indices is not None and indices.shape[1:] == (1,) and target_probs is None:
        indices = indices.view(-1)  # the z of the only index is a number of the row
    many = indices is not None and indices.dim() == 2
    massive = target_probs is not None or probabilities is not None or not (indices is None or many)
    spread = massive and has_spread_mass(options, probabilities is not None)
    wanted = any(x is not None for x in (results.log_prob, results.hot_z, upstream.log_prob))
    if many and not wanted and not (weighs and target_probs is not None):
        indices, many = None, False
    kind = NONE
    if probabilities is not None:
        kind = PROBABILITIES
    elif indices is not None:
        kind = INDICES if many else INDEX

    layout = layout_of(self, dim)
    logits, x_walk = walkable(self, dim)
    walks = [x_walk]
    t_walk = grad_walk = Walk(0, 0, 0)
    target = indices
    if probabilities is not None:
        target, t_walk = walkable(probabilities, dim)
        walks.append(t_walk)
    if grad is not None:
        grad_walk = own_walk(grad, dim)
        walks.append(grad_walk)
    plan = make_plan(layout, walks, self.element_size(), row_losses=True)
    sizes, strides = units(layout, plan, [x_walk, t_walk, grad_walk])
    inner, outer, capped, uncap, slope = logit_numbers(options)
    z = (CAPPED if capped else SCALED) if transforms_logits(options) else SAME
    keep, share = mass_numbers(options, options.valid_classes)
    constants = {"DTYPE": triton_dtype(self.dtype), "Z": z.value}

    part = (first, options.valid_classes)
    hot_z = hot_mass = kept = None
    per_row, block_k = 0, 1
    if many:
        assert indices is not None
        per_row = indices.shape[1]
        block_k = min(power_of_two(per_row), max(1, HOT_BLOCK // plan.block_r))
        hot_z = results.hot_z
        if hot_z is None:
            hot_z = torch.empty(indices.shape, dtype=compute_dtype(self.dtype), device=self.device)
        hot_mass = torch.empty_like(hot_z)
        kept = hot_z.new_empty(layout.rows if grad is not None else 0, FIELDS.value)
        grid, hot_constants = _hot_launch(layout, plan, per_row)
        gather_kernel[grid](
            logits, indices, target_probs, weight, hot_z, hot_mass, *sizes, layout.rows, per_row,
            *part, *strides[:3], keep, inner, outer, **constants, **hot_constants,
            **launch_options(self.device),
        )  # fmt: skip
    given = (upstream.factor_on_device, *upstream[2:])
    numbers = (
        *strides, options.ignore_index, keep, share, inner, outer, uncap, slope, zeta_of(options),
        upstream.factor,
    )  # fmt: skip
    row_constants = {"KIND": kind.value, "SPREAD": spread, "BLOCK_K": block_k, **plan.constants()}
    if whole is None:
        correct = None if results.correct is None else results.correct.view(torch.uint8)
        parts = results.parts
        row_losses_kernel[(programs(layout, plan),)](
            logits, target, weight, row_weight, hot_z, hot_mass, *given, *results[:5], correct, parts, grad,
            kept, *sizes, layout.rows, per_row, *((None,) * 3 if parts is None else (*part, parts.stride(0))),
            *numbers, TERMS_BELOW=parts is not None and bool(options.outputs & OUTPUTS["entropy"]),
            **constants, **row_constants, **launch_options(self.device, plan.warps, plan.registers),
        )  # fmt: skip
        if results.hot_z is not None and not many:
            assert parts is not None
            results.hot_z.view(-1).copy_(parts[PART_HOT_Z.value])
    else:
        del row_constants["SINGLE"]
        width = min(-(-layout.classes // plan.block_c), MOST_PARTS)
        part_gradient_kernel[(programs(layout, plan), width)](
            logits, target, weight, row_weight, hot_mass, *given, whole, grad, kept, *sizes, layout.rows,
            per_row, *part, whole.stride(0), *numbers, **constants, **row_constants,
            **launch_options(self.device, plan.warps, plan.registers or most_registers(plan.warps)),
        )  # fmt: skip
    if many and grad is not None:
        scatter_kernel[grid](
            indices, weight, hot_z, hot_mass, upstream.log_prob, kept, grad, *sizes, layout.rows, per_row,
            *part, *strides[6:], share, uncap, slope, SPREAD=spread, ENTROPY=upstream.entropy is not None,
            **constants, **hot_constants, **launch_options(self.device),
        )  # fmt: skip
    ran(plan, [(0, 1)])


def _hot_launch(layout: Layout, plan: Plan, per_row: int) -> tuple[tuple[int, int], dict[str, int | bool]]:
    """The programs of gather_kernel and scatter_kernel, and their constants."""
    block_k = min(power_of_two(per_row), HOT_BLOCK)
    block_r = HOT_BLOCK // block_k
    constants = {name: plan.constants()[name] for name in ("BEHIND", "ALIGN_C", "ALIGN_R", "WIDE")}
    grid = -(-layout.rows // block_r), -(-per_row // block_k)
    return grid, {**constants, "BLOCK_R": block_r, "BLOCK_K": block_k}
