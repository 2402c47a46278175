# SPDX-License-Identifier: Apache-2.0
"""row_losses above its kernels, as csrc/autograd/row_losses.cpp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from softkern._binding.stable import keys
from softkern._binding.stable.checks import RowTensors, has_simple_strides, takes_row_losses
from softkern._binding.stable.losses import check_in_place, scaled
from softkern._binding.stable.rows_in_aten import Upstream, row_losses_gradient_in_aten, row_losses_in_aten
from softkern._binding.stable.tensors import (
    below_autograd,
    by_aten,
    compute_dtype,
    has_hooks,
    in_backward,
    is_for_onnx,
    is_plain,
    is_seen,
    is_traced_for_onnx,
    keeps_graph,
    kept,
    ops,
    requires_grad,
    unpacked,
    wants_composite,
)
from softkern.options import OUTPUTS, RowOptions

TENSORS = 5  # behind the logits
RESULTS = 6
DIFFERENTIABLE = 4
_LOSS = OUTPUTS["loss"]
_STATISTICS = OUTPUTS["log_prob"] | OUTPUTS["lse"] | OUTPUTS["entropy"]


def tensors_of(x: Tensor, given: tuple[Any, ...]) -> tuple[RowTensors, RowOptions]:
    """The arguments of the op; the dispatcher leaves out those at the end that equal their defaults."""
    tensors = (*given[:TENSORS], *[None] * (TENSORS - len(given)))
    return RowTensors(x, *tensors), RowOptions(*given[TENSORS:])


def upstream_of(gradients: tuple[Tensor | None, ...], outputs: int) -> Upstream:
    """Those of results that are wanted."""
    bits = tuple(OUTPUTS.values())[:DIFFERENTIABLE]
    return Upstream(*(g if outputs & bit else None for g, bit in zip(gradients, bits, strict=False)))


class SoftkernRowLosses(torch.autograd.Function):
    """Keeps the logits, which the gradients of the statistics and further derivatives need."""

    @staticmethod
    def forward(
        ctx: Any, of: RowTensors, options: RowOptions, over: Tensor | None, x: Tensor
    ) -> tuple[Tensor, ...]:
        """over: a tensor of the memory of the logits, if the gradient may be written over them."""
        statistics = bool(options.outputs & _STATISTICS)
        # float16 gradients are stored only after the upstream gradient is known: the 1/N of a mean would make
        # them subnormal.
        has_grad = bool(options.outputs & _LOSS) and x.dtype != torch.float16
        # The statistics' gradients need the logits.
        over_logits = over is not None and has_grad and not statistics
        if over is not None and not over_logits:
            has_grad = False  # no second tensor of the logits' size
        grad: Tensor | None
        # The version of the logits before they are overwritten: whoever needs them later gets torch's error.
        if over_logits:
            ctx.kept = kept(*of)
            results = ops.row_losses_forward_(x, *of[1:], *options)
            # As in cross_entropy: the gradient shares the version counter of the logits.
            torch.autograd.graph.increment_version(x)
            grad = over
        else:
            *results, grad = ops.row_losses_forward(x, *of[1:], *options, has_grad)
        ctx.options, ctx.has_grad, ctx.in_place = options, has_grad, over is not None
        ctx.may_be_alone, ctx.has_graph = not has_hooks(), False
        ctx.set_materialize_grads(False)
        # The gradient of the loss alone needs the target, for the ignored rows: logits and weights may have
        # been modified. Gradients of statistics need the logits, and not the stored gradient.
        ctx.apart = "logits" if has_grad and not statistics else "gradient"
        if ctx.apart == "logits":
            if not over_logits:
                ctx.kept = kept(*of)
            ctx.save_for_backward(grad, of.target)
        else:
            ctx.kept = kept(grad, of.target) if has_grad else None
            ctx.save_for_backward(*of)
        ctx.mark_non_differentiable(*results[DIFFERENTIABLE:])
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        options = ctx.options
        upstream = upstream_of(gradients, options.outputs)
        of_rows = any(g is not None for g in upstream[1:])
        nothing = (None, None, None)
        if not of_rows and upstream.loss is None:
            return *nothing, None
        own = ctx.saved_tensors
        of_logits = ctx.kept if ctx.apart == "logits" else None
        if torch.is_grad_enabled():
            of = RowTensors(*(own if of_logits is None else unpacked(of_logits)))
            return *nothing, row_losses_gradient_in_aten(upstream, of, options)
        with in_backward():
            if not ctx.has_grad or of_rows:
                of = RowTensors(*(own if of_logits is None else unpacked(of_logits)))
                if not torch.compiler.is_dynamo_compiling() and not keeps_graph():
                    ctx.kept = None  # its memory, before the result's
                return *nothing, _recomputed(ctx, upstream, of)
            assert upstream.loss is not None
            saved = own if of_logits is not None else unpacked(ctx.kept)
            grad_scale = torch.ones((), dtype=compute_dtype(saved[0]), device=saved[0].device)
            # Only one class index a row can be ignored. A target of the gradient's shape says that no row is.
            y = saved[1]
            if y is None or y.dim() != saved[0].dim() - 1:
                y = grad_scale.expand(saved[0].shape)
            result = scaled(ctx, upstream.loss, saved, grad_scale, y, options.ignore_index)
            if not torch.compiler.is_dynamo_compiling() and not keeps_graph():
                ctx.kept = None
            return *nothing, result


def _recomputed(ctx: Any, upstream: Upstream, of: RowTensors) -> Tensor:
    if ctx.in_place and not torch.compiler.is_dynamo_compiling() and not keeps_graph() and is_plain(of.self):
        x = of.self.detach()
        ops.row_losses_backward_(*upstream, x, *of[1:], *ctx.options)
        # Ops that saved the logits must find them modified.
        torch.autograd.graph.increment_version(of.self)
        return x
    result: Tensor = ops.row_losses_backward(*upstream, *of, *ctx.options)
    return result


def _by_aten(x: Tensor, *given: Any) -> tuple[Tensor, ...]:
    return by_aten(row_losses_in_aten(*tensors_of(x, given)))


def _with_history(of: RowTensors, options: RowOptions, in_place: bool) -> tuple[Tensor, ...]:
    if wants_composite(*of) or not takes_row_losses(of, options) or requires_grad(*of[1:]):
        return by_aten(row_losses_in_aten(of, options))
    # Shares the version counter, as tensors made below autograd don't.
    over = of.self.detach() if in_place else None
    with below_autograd():
        if requires_grad(of.self):
            tracked: tuple[Tensor, ...] = SoftkernRowLosses.apply(of, options, over, of.self)
            return tracked
        if is_seen(*of):
            seen: tuple[Tensor, ...] = ops.row_losses(*of, *options)
            return seen
        return tuple(ops.row_losses_forward(*of, *options, False)[:RESULTS])


def _at_autograd(x: Tensor, *given: Any) -> tuple[Tensor, ...]:
    of, options = tensors_of(x, given)
    if is_for_onnx(x):
        return row_losses_in_aten(of, options)
    return _with_history(of, options, False)


def _at_autograd_(x: Tensor, *given: Any) -> tuple[Tensor, ...]:
    of, options = tensors_of(x, given)
    if is_for_onnx(x):
        return row_losses_in_aten(of, options)
    in_place = requires_grad(x) and is_plain(x) and not wants_composite(x)
    if in_place:
        check_in_place(x)
    return _with_history(of, options, in_place and has_simple_strides(x))


def _below_autograd(x: Tensor, *given: Any) -> tuple[Tensor, ...]:
    of, options = tensors_of(x, given)
    if not takes_row_losses(of, options):
        return by_aten(row_losses_in_aten(of, options))
    return tuple(ops.row_losses_forward(*of, *options, False)[:RESULTS])


def _in_float32(name: str) -> Callable[..., tuple[Tensor, ...]]:
    def call(cast: Callable[..., Any], x: Tensor, *given: Any) -> tuple[Tensor, ...]:
        op = getattr(ops, name if x.dtype == torch.float32 else "row_losses")
        of, options = tensors_of(x, given)
        tensors = [t if t is of.num_items else cast(t, torch.float32) for t in of]
        results: tuple[Tensor, ...] = op(*tensors, *options)
        return results

    return call


def _backward_batched(*given: Any) -> Tensor:
    """For vmap over upstream gradients."""
    of, options = tensors_of(given[DIFFERENTIABLE], given[DIFFERENTIABLE + 1 :])
    return row_losses_gradient_in_aten(Upstream(*given[:DIFFERENTIABLE]), of, options)


def register() -> None:
    keys.at("Autograd", "row_losses", _at_autograd)
    keys.at("Autograd", "row_losses_", _at_autograd_)
    for name in ("row_losses", "row_losses_"):
        keys.at("CompositeExplicitAutograd", name, _below_autograd)
        keys.at("FuncTorchBatched", name, _by_aten)
        keys.at_autocast(name, _in_float32(name))
    # A write in place would change the current value of the functional tensor.
    keys.at("Functionalize", "row_losses_", lambda *given: ops.row_losses(*given))
    for name in ("forward", "forward_", "backward", "backward_"):
        keys.without_derivative(f"row_losses_{name}")
    for key in ("FuncTorchBatched", "Batched"):
        keys.at(key, "row_losses_backward", _backward_batched)


def _entry(x: Tensor, /, *given: Any) -> tuple[Tensor, ...]:
    *numbers, in_place = given
    if is_traced_for_onnx(x):
        return row_losses_in_aten(*tensors_of(x, tuple(numbers)))
    results: tuple[Tensor, ...] = (ops.row_losses_ if in_place else ops.row_losses)(x, *numbers)
    return results


def entries() -> dict[str, Callable[..., Any]]:
    return {
        "row_losses": _entry,
        "takes_row_losses": lambda x, /, *given: takes_row_losses(*tensors_of(x, given)),
        "row_losses_in_aten": lambda x, /, *given: row_losses_in_aten(*tensors_of(x, given)),
    }
