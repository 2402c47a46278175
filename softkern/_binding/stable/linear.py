# SPDX-License-Identifier: Apache-2.0
"""linear_cross_entropy above its kernels, as csrc/autograd/linear_cross_entropy.cpp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from softkern._binding.stable import keys, native
from softkern._binding.stable.checks import LinearTensors, linear_tensors, takes_linear_cross_entropy
from softkern._binding.stable.losses import scaled
from softkern._binding.stable.row_losses import DIFFERENTIABLE, RESULTS, upstream_of
from softkern._binding.stable.rows_in_aten import linear_gradients_in_aten, row_losses_in_aten, rows_of_layer
from softkern._binding.stable.tensors import (
    below_autograd,
    compute_dtype,
    has_hooks,
    in_backward,
    is_for_onnx,
    is_seen,
    is_traced_for_onnx,
    ops,
    requires_grad,
    wants_composite,
)
from softkern.options import OUTPUTS, PLANS, LinearOptions

_TENSORS = 8
_INPUTS = 3  # input, matrix and bias
_NONE = 0
_AUTO, _FAST, _LEAN = PLANS.index("auto"), PLANS.index("fast"), PLANS.index("lean")
_STATISTICS = OUTPUTS["log_prob"] | OUTPUTS["lse"] | OUTPUTS["entropy"]


def _arguments(given: tuple[Any, ...]) -> tuple[LinearTensors, LinearOptions]:
    """The dispatcher leaves out arguments at the end that equal their defaults."""
    tensors = (*given[:_TENSORS], *[None] * (_TENSORS - len(given)))
    return linear_tensors(*tensors), LinearOptions(*given[_TENSORS:])


def _in_aten(of: LinearTensors, options: LinearOptions) -> tuple[Tensor, ...]:
    return row_losses_in_aten(rows_of_layer(of, options), options)


def _of_logits(of: LinearTensors, options: LinearOptions) -> tuple[Tensor, ...]:
    """The plan "reference": ATen's linear layer, then row_losses through the dispatcher."""
    results: tuple[Tensor, ...] = ops.row_losses(*rows_of_layer(of, options), *options.of_rows)
    return results


def _with_plan(of: LinearTensors, options: LinearOptions, needs: int) -> LinearOptions:
    """The plan of a call. The op chooses the pieces, and with a limit of memory refuses what does not fit."""
    statistics = options.outputs & _STATISTICS
    wanted = options.plan == _FAST or (options.plan == _AUTO and not statistics)
    fast = (
        wanted
        and needs != 0
        and bool(options.outputs & OUTPUTS["loss"])
        and options.reduction != _NONE
        and of.input.dtype != torch.float16
    )
    if options.max_bytes >= 0:
        return options._replace(plan=_fitting_plan(of, options, needs))
    return options._replace(plan=_FAST if fast else _LEAN)


def _fitting_plan(of: LinearTensors, options: LinearOptions, needs: int) -> int:
    """Sizes decide: symbolic ones are specialized."""
    x = of.input
    classes = options.valid_classes if options.valid_classes >= 0 else of.matrix.shape[0]
    sizes = (int(x.shape[0]), int(classes), int(x.shape[1]))
    limits = (options.max_bytes, options.chunk_rows, needs)
    return native.chosen_plan(
        sizes,
        x.element_size(),
        x.device.type == "cpu",
        (options.plan, options.outputs, options.reduction, *limits),
        x.dtype == torch.float16,
    )


def _flat(of: LinearTensors) -> tuple[Tensor | None, ...]:
    return (of.input, of.matrix, of.bias, *of.rows[1:])


class SoftkernLinearCrossEntropy(torch.autograd.Function):
    """Keeps the gradients of the loss that the forward has computed, or else the numbers of the rows from
    which the backward computes them."""

    @staticmethod
    def forward(
        ctx: Any, of: LinearTensors, options: LinearOptions, needs: int, *inputs: Tensor | None
    ) -> tuple[Tensor, ...]:
        results = ops.linear_cross_entropy_forward(*_flat(of), *options, needs)
        # Gradients that the plan has not computed are empty.
        grads = [
            g if x is not None and needs & 1 << i and g.shape == x.shape else None
            for i, (g, x) in enumerate(zip(results[RESULTS : RESULTS + _INPUTS], inputs, strict=True))
        ]
        ctx.options = options
        ctx.has_grads = any(g is not None for g in grads)
        ctx.in_place, ctx.has_graph, ctx.may_be_alone = False, False, not has_hooks()
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*_flat(of), results[-1], *grads)
        ctx.mark_non_differentiable(*results[DIFFERENTIABLE:RESULTS])
        return tuple(results[:RESULTS])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        upstream = upstream_of(gradients, ctx.options.outputs)
        of_rows = any(g is not None for g in upstream[1:])
        needed = ctx.needs_input_grad[-_INPUTS:]
        needs = sum(1 << i for i, need in enumerate(needed) if need)
        nothing = (None, None, None)
        if needs == 0 or (not of_rows and upstream.loss is None):
            return *nothing, *nothing
        saved = ctx.saved_tensors  # raises if one of them was modified after the forward
        tensors, numbers = saved[:_TENSORS], saved[_TENSORS]
        if torch.is_grad_enabled():
            of = linear_tensors(*tensors)
            return *nothing, *linear_gradients_in_aten(upstream, of, ctx.options, needed)
        with in_backward():
            if ctx.has_grads and not of_rows:
                assert upstream.loss is not None
                places = range(_TENSORS + 1, len(saved))
                return *nothing, *(
                    _scaled(ctx, upstream.loss, saved, place) if need else None
                    for place, need in zip(places, needed, strict=True)
                )
            results = ops.linear_cross_entropy_backward(*upstream, numbers, *tensors, *ctx.options, needs)
        return *nothing, *(g if need else None for g, need in zip(results, needed, strict=True))


def _scaled(ctx: Any, upstream: Tensor, saved: tuple[Tensor, ...], index: int) -> Tensor:
    dims, device = saved[index].dim(), saved[index].device
    compute = compute_dtype(saved[index])
    one = torch.ones((), dtype=compute, device=device)
    g = upstream.to(compute)
    # A target of the gradient's shape says that no row is ignored.
    if dims == 1:
        rows = saved[index].unsqueeze(0)
        of_bias: Tensor = ops.cross_entropy_backward(g, rows, one, rows, 0)
        return of_bias.squeeze(0)
    return scaled(ctx, g, saved, one, one.expand(saved[index].shape), 0, index)


def _with_history(of: LinearTensors, options: LinearOptions) -> tuple[Tensor, ...]:
    rows = of.rows
    if (
        wants_composite(of.input, of.matrix, of.bias, *rows)
        or not takes_linear_cross_entropy(of, options)
        or requires_grad(*rows[1:])
    ):
        return _of_logits(of, options)
    inputs = (of.input, of.matrix, of.bias)
    needs = sum(1 << i for i, x in enumerate(inputs) if requires_grad(x))
    with below_autograd():
        if not needs and is_seen(*_flat(of)):
            seen: tuple[Tensor, ...] = ops.linear_cross_entropy(*_flat(of), *options)
            return seen
        with_plan = _with_plan(of, options, needs)
        if needs:
            tracked: tuple[Tensor, ...] = SoftkernLinearCrossEntropy.apply(of, with_plan, needs, *inputs)
            return tracked
        return tuple(ops.linear_cross_entropy_forward(*_flat(of), *with_plan, 0)[:RESULTS])


def _at_autograd(*given: Any) -> tuple[Tensor, ...]:
    of, options = _arguments(given)
    return _in_aten(of, options) if is_for_onnx(of.input) else _with_history(of, options)


def _below_autograd(*given: Any) -> tuple[Tensor, ...]:
    of, options = _arguments(given)
    if not takes_linear_cross_entropy(of, options):
        return _of_logits(of, options)
    with_plan = _with_plan(of, options, 0)
    return tuple(ops.linear_cross_entropy_forward(*_flat(of), *with_plan, 0)[:RESULTS])


def _by_logits(*given: Any) -> tuple[Tensor, ...]:
    return _of_logits(*_arguments(given))


def _in_autocasts_dtype(cast: Callable[..., Any], *given: Any) -> tuple[Tensor, ...]:
    """As F.linear, in autocast's dtype, and as cross_entropy, with a loss in float32."""
    tensors = [*given[:_TENSORS], *[None] * (_TENSORS - len(given))]
    options = LinearOptions(*given[_TENSORS:])._replace(wide_loss=1)
    layer, (target, weight, row_weight, num_items, probs) = tensors[:_INPUTS], tensors[_INPUTS:]
    target, weight, row_weight, probs = (cast(t, torch.float32) for t in (target, weight, row_weight, probs))
    results: tuple[Tensor, ...] = ops.linear_cross_entropy(
        *map(cast, layer), target, weight, row_weight, num_items, probs, *options
    )
    return results


def register() -> None:
    keys.at("Autograd", "linear_cross_entropy", _at_autograd)
    keys.at("CompositeExplicitAutograd", "linear_cross_entropy", _below_autograd)
    keys.at("FuncTorchBatched", "linear_cross_entropy", _by_logits)
    keys.at_autocast("linear_cross_entropy", _in_autocasts_dtype)
    for name in ("forward", "backward"):
        keys.without_derivative(f"linear_cross_entropy_{name}")


def _entry(*given: Any) -> tuple[Tensor, ...]:
    if is_traced_for_onnx(given[0]):
        return _in_aten(*_arguments(given))
    results: tuple[Tensor, ...] = ops.linear_cross_entropy(*given)
    return results


def entries() -> dict[str, Callable[..., Any]]:
    return {
        "linear_cross_entropy": _entry,
        "takes_linear_cross_entropy": lambda *given: takes_linear_cross_entropy(*_arguments(given)),
        "linear_cross_entropy_in_aten": lambda *given: _in_aten(*_arguments(given)),
    }
