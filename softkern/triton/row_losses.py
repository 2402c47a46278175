# SPDX-License-Identifier: Apache-2.0
"""The step row_losses on tensors, as csrc/ops/row_losses/call.h defines it."""

from __future__ import annotations

from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softkern.options import RowOptions
from softkern.triton.cross_entropy import class_dim, own_walk
from softkern.triton.formulas import has_spread_mass, logit_numbers, mass_numbers, transforms_logits
from softkern.triton.launch import launch_options, on_device_of, programs, ran, triton_dtype, units
from softkern.triton.plan import (
    Layout,
    Plan,
    Walk,
    compute_dtype,
    layout_of,
    make_plan,
    power_of_two,
    walkable,
)
from softkern.triton.row_losses_blocks import CAPPED, INDEX, INDICES, NONE, PROBABILITIES, SAME, SCALED
from softkern.triton.row_losses_hot_kernels import FIELDS, gather_kernel, scatter_kernel
from softkern.triton.row_losses_kernels import row_losses_kernel

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


class Upstream(NamedTuple):
    """The gradient of a row's loss is factor * factor_on_device * loss[row], without the last two if they are
    None. The gradients of the other results may be None too."""

    factor: float
    factor_on_device: Tensor | None
    loss: Tensor | None
    log_prob: Tensor | None
    lse: Tensor | None
    entropy: Tensor | None


def row_losses(self: Tensor, *given: Any) -> None:
    """Writes the results that are given and, if `grad` is given, the gradient of the logits for the upstream
    gradients. `grad` may be the logits. `given`: the targets, the options, the upstream gradients, the
    results, grad."""
    rest = iter(given)
    targets = Targets(*islice(rest, len(Targets._fields)))
    options = RowOptions(*islice(rest, len(RowOptions._fields)))
    upstream = Upstream(*islice(rest, len(Upstream._fields)))
    results = Results(*islice(rest, len(Results._fields)))
    grad: Tensor | None = next(rest)
    if self.numel() == 0:
        return
    dim = class_dim(self)
    valid = options.valid_classes
    padding = self.shape[dim] - valid
    if padding:
        self = self.narrow(dim, 0, valid)
        if grad is not None:
            grad.narrow(dim, valid, padding).zero_()
            grad = grad.narrow(dim, 0, valid)
        if targets.probabilities is not None:
            targets = targets._replace(probabilities=targets.probabilities.narrow(dim, 0, valid))
    with on_device_of(self):
        _launch(self, dim, targets, options, upstream, results, grad)


def _launch(
    self: Tensor,
    dim: int,
    targets: Targets,
    options: RowOptions,
    upstream: Upstream,
    results: Results,
    grad: Tensor | None,
) -> None:
    indices, target_probs, probabilities, weight, row_weight = targets
    pulled = grad is not None and not (upstream.factor == 0 and upstream.factor_on_device is None)
    if results.loss is None and not pulled:
        # No mass counts, and a factor of 0 would make infinite weights NaN.
        target_probs = probabilities = weight = row_weight = None
        options = options._replace(label_smoothing=0.0, z_loss=0.0)
    many = indices is not None and indices.dim() == 2
    if many and target_probs is None and results.log_prob is None and upstream.log_prob is None:
        indices, many = None, False
    kind = NONE
    if probabilities is not None:
        kind = PROBABILITIES
    elif indices is not None:
        kind = INDICES if many else INDEX
    massive = target_probs is not None or kind is INDEX or kind is PROBABILITIES
    spread = massive and has_spread_mass(options, kind is PROBABILITIES)

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
    keep, share = mass_numbers(options, layout.classes)
    constants = {"DTYPE": triton_dtype(self.dtype), "Z": z.value}

    hot_z = hot_mass = kept = None
    per_row, block_k = 0, 1
    if many:
        assert indices is not None
        per_row = indices.shape[1]
        block_k = min(power_of_two(per_row), max(1, HOT_BLOCK // plan.block_r))
        hot_z = torch.empty(indices.shape, dtype=compute_dtype(self.dtype), device=self.device)
        hot_mass = torch.empty_like(hot_z)
        kept = hot_z.new_empty(layout.rows if grad is not None else 0, FIELDS.value)
        grid, hot_constants = _hot_launch(layout, plan, per_row)
        gather_kernel[grid](
            logits, indices, target_probs, weight, hot_z, hot_mass, *sizes, layout.rows, per_row,
            *strides[:3], keep, inner, outer, **constants, **hot_constants, **launch_options(self.device),
        )  # fmt: skip
    correct = None if results.correct is None else results.correct.view(torch.uint8)
    row_losses_kernel[(programs(layout, plan),)](
        logits, target, weight, row_weight, hot_z, hot_mass, upstream.factor_on_device, *upstream[2:],
        *results[:-1], correct, grad, kept, *sizes, layout.rows, per_row, *strides, options.ignore_index,
        keep, share, inner, outer, uncap, slope, options.z_loss, upstream.factor, KIND=kind.value,
        SPREAD=spread, BLOCK_K=block_k, **constants, **plan.constants(),
        **launch_options(self.device, plan.warps, plan.registers),
    )  # fmt: skip
    if many and grad is not None:
        scatter_kernel[grid](
            indices, weight, hot_z, hot_mass, upstream.log_prob, kept, grad, *sizes, layout.rows, per_row,
            *strides[6:], share, uncap, slope, SPREAD=spread, ENTROPY=upstream.entropy is not None,
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
