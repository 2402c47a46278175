# SPDX-License-Identifier: Apache-2.0
"""A linear layer whose classes ranks share, and the losses of its rows, without all logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softkern.options import OUTPUTS, LinearOptions
from softkern.parallel import _collectives as collectives
from softkern.parallel._rows import Shard, first_derivative, gathered_parts, statistics_of
from softkern.row_losses import Given

_ops = torch.ops.softkern


class InputGradient(NamedTuple):
    """How the ranks' parts of the input's gradient become that of the input."""

    reduced: bool  # their sum; otherwise each rank keeps its part
    scattered: bool  # each rank has some rows of the input, and gets the sum of theirs


def linear_row_losses(
    layer: tuple[Tensor, Tensor, Tensor | None],
    given: Given,
    options: LinearOptions,
    shard: Shard,
    input_gradient: InputGradient,
) -> tuple[Tensor, ...]:
    """As `row_losses`, for the logits ``F.linear(*layer)``.

    Weight and bias are those of this rank's classes.
    """
    apply: Callable[..., tuple[Tensor, ...]] = _LinearRowLosses.apply
    return apply(*layer, *given, options, shard, input_gradient)


def by_row(t: Any, many: bool) -> Any:
    """(rows), or with `many` (rows, K), for a tensor of any leading dims; other values stay."""
    if not isinstance(t, Tensor):
        return t
    return t.reshape(t.shape[:-1].numel(), t.shape[-1]) if many and t.dim() else t.reshape(-1)


def of_any_lead(
    layer: tuple[Tensor, Tensor, Tensor | None], given: Given, options: LinearOptions, shard: Shard
) -> tuple[Tensor, ...]:
    """The same for an input (..., H), with the gradient of all ranks. Results have its leading shape."""
    input, linear_weight, linear_bias = layer
    lead = input.shape[:-1]
    target, weight, row_weight, num_items, target_probs = given
    several = target is not None and target.dim() == input.dim()
    flat = (by_row(target, several), weight, by_row(row_weight, False), num_items, by_row(target_probs, True))
    x = input.reshape(lead.numel(), input.shape[-1])
    how = InputGradient(reduced=True, scattered=False)
    results = linear_row_losses((x, linear_weight, linear_bias), flat, options, shard, how)

    def shaped(i: int, bit: int, t: Tensor) -> Tensor:
        if not options.outputs & bit or (i == 0 and options.reduction != 0):
            return t
        return t.reshape(*lead, *t.shape[1:])

    return tuple(shaped(i, bit, t) for i, (bit, t) in enumerate(zip(OUTPUTS.values(), results, strict=True)))


class _LinearRowLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        target: Tensor | None,
        weight: Tensor | None,
        row_weight: Tensor | None,
        num_items: Tensor | None,
        target_probs: Tensor | None,
        options: LinearOptions,
        shard: Shard,
        input_gradient: InputGradient,
    ) -> tuple[Tensor, ...]:
        given = (target, weight, row_weight, num_items, target_probs)
        x = _all_rows(input, shard) if input_gradient.scattered else input
        compute = torch.float64 if input.dtype == torch.float64 else torch.float32
        # In place of the logits: shape, dtype and device without memory.
        logits = input.new_empty((), dtype=compute).expand(x.shape[0], linear_weight.shape[0])

        def own_parts(rows: slice, of_rows: list[Tensor | None], wanted: Any) -> tuple[Tensor, ...]:
            own = options._replace(outputs=wanted.outputs)
            place = (shard.first, shard.vocabulary.tile)
            found: tuple[Tensor, ...] = _ops.linear_row_parts(
                x[rows], linear_weight, linear_bias, *of_rows, *own, *place
            )
            return found

        parts, hot_z, argmax = gathered_parts(logits, given, options.of_rows, shard, own_parts)
        wide = tuple(
            t.to(compute) if t is not None and t.is_floating_point() and i != 3 else t
            for i, t in enumerate(given)
        )
        loss, log_prob, lse, entropy, whole = _ops.row_parts_results(
            logits, parts, hot_z, *wide, *options.of_rows
        )
        largest, correct = statistics_of(argmax, target, options.outputs)
        ctx.mark_non_differentiable(largest, correct)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, linear_weight, linear_bias, whole, *given)
        ctx.options, ctx.shard, ctx.input_gradient = options, shard, input_gradient
        return loss.to(input.dtype), log_prob, lse, entropy, largest, correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        input, linear_weight, linear_bias, whole, *given = ctx.saved_tensors
        if all(g is None for g in grads[:4]):
            return (None,) * 11
        shard, how = ctx.shard, ctx.input_gradient
        needs = sum(1 << i for i in range(3) if ctx.needs_input_grad[i])
        with torch.no_grad():
            x = _all_rows(input, shard) if how.scattered else input
            dx, dw, db = _ops.linear_row_parts_backward(
                *grads[:4], whole, x, linear_weight, linear_bias, *given, *ctx.options, shard.first, needs
            )
            if needs & 1:
                # In the dtype that is computed in, and rounded once.
                if how.scattered:
                    dx = collectives.reduce_scatter(dx, shard.group)
                elif how.reduced:
                    dx = collectives.all_reduce(dx, shard.group)
                dx = dx.to(input.dtype)
        found = [g if needs & 1 << i else None for i, g in enumerate((dx, dw, db))]
        return *(first_derivative(g, input) for g in found), *[None] * 8


def _all_rows(input: Tensor, shard: Shard) -> Tensor:
    return collectives.begin_all_gather(input, shard.group)()
