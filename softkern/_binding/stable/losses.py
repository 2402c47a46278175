# SPDX-License-Identifier: Apache-2.0
"""cross_entropy above its kernels, as csrc/autograd/cross_entropy.cpp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from softkern._binding.stable import keys
from softkern._binding.stable.checks import has_simple_strides, takes_cross_entropy
from softkern._binding.stable.derivatives import Masses, by_row, probability_gradient, weight_gradient
from softkern._binding.stable.softmaxes import LOG_SOFTMAX, derivative, with_history
from softkern._binding.stable.tensors import (
    below_autograd,
    by_aten,
    class_dim,
    compute_dtype,
    has_hooks,
    in_backward,
    is_alone,
    is_for_onnx,
    is_plain,
    is_seen,
    is_traced_for_onnx,
    keeps_graph,
    ops,
    requires_grad,
    wants_composite,
)
from softkern.options import CrossEntropyOptions

_NONE = 0
_INDEX_DTYPES = (torch.int64, torch.int32, torch.uint8)


def torchs(x: Tensor, target: Tensor, weight: Tensor | None, options: CrossEntropyOptions) -> Tensor:
    """ATen's loss. Class indices are converted to int64 if the kernels take their dtype, since ATen does not
    take all of these dtypes on every device. A target with as many dims as the logits has no class indices.
    It keeps its dtype, because ATen's error message names it."""
    if target.dtype in _INDEX_DTYPES and target.dim() != x.dim():
        target = target.to(torch.int64)
    return torch._C._nn.cross_entropy_loss(x, target, weight, *options)  # type: ignore[arg-type]


def _by_aten(x: Tensor, target: Tensor, weight: Tensor | None = None, *given: Any) -> Tensor:
    return by_aten(torchs(x, target, weight, CrossEntropyOptions(*given)))


def check_in_place(x: Tensor) -> None:
    """As for torch's own in-place ops, the tensor must be neither a leaf that requires a gradient nor a view
    of one, and its elements must not share memory."""
    if x.is_leaf:
        raise RuntimeError("a leaf Variable that requires grad is being used in an in-place operation.")
    base = x._base if x._is_view() else None
    if base is not None and base.is_leaf and base.requires_grad:
        raise RuntimeError(
            "a view of a leaf Variable that requires grad is being used in an in-place operation."
        )
    if any(size > 1 and stride == 0 for size, stride in zip(x.shape, x.stride(), strict=True)):
        raise RuntimeError(
            "unsupported operation: more than one element of the written-to tensor refers to a single memory "
            "location. Please clone() the tensor before performing the operation."
        )


def link_to(x: Tensor) -> Tensor:
    """A tensor of the shape of x without its memory. As a second result of a Function, it stands for the
    logits in the graph of a gradient."""
    return x.new_empty(()).expand(x.shape)


def scaled(
    ctx: Any,
    g: Tensor,
    saved: tuple[Tensor | None, ...],
    scale: Tensor,
    y: Tensor,
    ignore_index: int,
    index: int = 0,
) -> Tensor:
    """The stored gradient, saved[index], times the upstream gradient: in place if nobody else can see it, or
    if the user allowed to overwrite it. The caller has no other reference to it."""
    traced = torch.compiler.is_dynamo_compiling()  # in compiled autograd
    free = not traced and not ctx.has_graph and not keeps_graph() and is_plain(g)
    alone = free and (ctx.in_place or (ctx.may_be_alone and is_alone(saved, index)))
    grad = saved[index]
    assert grad is not None
    if alone and is_plain(grad) and (ctx.in_place or grad.is_contiguous()):
        ops.cross_entropy_backward_(g, grad, scale, y, ignore_index)
        # Another tensor of the same memory, which torch need not copy into .grad.
        return grad.detach()
    result: Tensor = ops.cross_entropy_backward(g, grad, scale, y, ignore_index)
    return result


class SoftkernCrossEntropy(torch.autograd.Function):
    """The results are the loss and link_to(x). The Function keeps the gradient, which the forward computes,
    and of the logits nothing."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        target: Tensor,
        weight: Tensor | None,
        options: CrossEntropyOptions,
        over: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        # With `over`, a tensor of the memory of the logits, the gradient is written over them.
        of_logits, *others = ctx.needs_input_grad[:3]
        of_others = any(others)
        # Before the logits are overwritten.
        log_p = ops.log_softmax(x, class_dim(x)) if of_others else None
        grad: Tensor | None
        if over is not None:
            loss, scale = ops.cross_entropy_forward_(x, target, weight, *options)
            # Ops that saved the logits must find them modified. The gradient shares the version counter of
            # the logits: if they are modified again before the backward, autograd raises.
            torch.autograd.graph.increment_version(x)
            grad = over
        else:
            loss, grad, scale = ops.cross_entropy_forward(x, target, weight, *options, of_logits)
        if not of_logits:
            grad = scale = None
        ctx.options, ctx.in_place, ctx.may_be_alone = options, over is not None, not has_hooks()
        # Weights are read by further derivatives alone, unless they have a gradient themselves. They may be
        # modified until then, as F allows.
        ctx.weight, ctx.weight_version = None, 0
        if weight is not None and not of_others:
            ctx.weight, ctx.weight_version = weight, 0 if weight.is_inference() else weight._version
        link = link_to(x)
        ctx.has_graph = False  # of the gradient, which then must not change
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad, scale, target, weight if of_others else None, log_p, link)
        return loss, link

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, of_link: Tensor | None) -> Any:
        if g is None:
            return of_link, None, None, None, None
        of_logits, of_target, of_weight = ctx.needs_input_grad[:3]
        graph = torch.is_grad_enabled()
        saved = ctx.saved_tensors
        scale, y, w, stored, link = saved[1:]  # no reference to the gradient
        options = ctx.options
        result: list[Tensor | None] = [None] * 5
        if stored is None:
            if graph:
                result[0] = _with_graph(ctx, g, saved)
            else:
                with in_backward():
                    result[0] = scaled(ctx, g, saved, scale, y, options.ignore_index)
        else:
            compute = compute_dtype(stored)
            log_p = stored.to(compute)
            masses = Masses(stored, y, w, options)
            row = by_row(g, masses, options, compute)
            if of_logits and graph:
                # The gradient of the logits is differentiable with respect to the others too.
                log_p = with_history(LOG_SOFTMAX, link, log_p, masses.dim)
                result[0] = (row * masses.gradient(log_p.exp())).to(stored.dtype)
            elif of_logits:
                with in_backward():
                    result[0] = scaled(ctx, g, saved, scale, y, options.ignore_index)
            if of_target:
                result[1] = probability_gradient(row, log_p, masses).to(y.dtype)
            if of_weight:
                result[2] = weight_gradient(row, log_p, Masses(stored, y, None, options)).to(w.dtype)
        if of_link is not None:
            result[0] = of_link if result[0] is None else result[0] + of_link
        return tuple(result)


def _with_graph(ctx: Any, g: Tensor, saved: tuple[Tensor, ...]) -> Tensor:
    grad, scale, y, _, _, link = saved
    weight = ctx.weight
    if weight is not None and not weight.is_inference() and weight._version != ctx.weight_version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            "the weight of softkern.cross_entropy, which second derivatives need"
        )
    ctx.has_graph = True
    result: Tensor
    if torch.compiler.is_dynamo_compiling() or not is_plain(g) or not is_plain(grad):
        # Transforms and tracers record the history themselves, and only ATen's ops are differentiable for
        # them.
        compute = scale.dtype
        masses = Masses(grad, y, weight, ctx.options)
        with torch.no_grad():
            p = masses.probabilities(grad.to(compute) * scale)
        p = with_history("softmax", link, p, masses.dim)
        return (by_row(g, masses, ctx.options, compute) * masses.gradient(p)).to(grad.dtype)
    result = SoftkernCrossEntropyBackward.apply(g, link, grad, scale, y, weight, ctx.options)
    return result


class SoftkernCrossEntropyBackward(torch.autograd.Function):
    """The gradient as a function of the upstream gradient and of the logits, which `link` stands for.
    Derivatives of it recover p; those of higher order go through ATen."""

    @staticmethod
    def forward(
        ctx: Any,
        g: Tensor,
        link: Tensor,
        grad: Tensor,
        scale: Tensor,
        target: Tensor,
        weight: Tensor | None,
        options: CrossEntropyOptions,
    ) -> Tensor:
        ctx.save_for_backward(g, link, grad, scale, target, weight)
        ctx.options = options
        with below_autograd():
            result: Tensor = ops.cross_entropy_backward(g, grad, scale, target, options.ignore_index)
        return result

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        g, link, stored, scale, target, weight = ctx.saved_tensors
        options, compute = ctx.options, scale.dtype
        masses = Masses(stored, target, weight, options)
        with torch.no_grad():
            gradient = stored.to(compute) * scale
            p = masses.probabilities(gradient.clone())
        dim = masses.dim
        if torch.is_grad_enabled():
            p = with_history("softmax", link, p, dim)
            gradient = masses.gradient(p)
        v = upstream.to(compute)
        of_upstream = of_logits = None
        if ctx.needs_input_grad[0]:
            products = v * gradient
            of_upstream = (products.sum(dim) if options.reduction == _NONE else products.sum()).to(g.dtype)
        if ctx.needs_input_grad[1]:
            row = by_row(g, masses, options, compute)
            of_p = masses.kept(v * masses.over_divisor(row * masses.total))
            if torch.is_grad_enabled():
                of_logits = derivative("softmax", of_p, p, dim).to(stored.dtype)
            else:
                with in_backward():
                    of_logits = ops.softmax_backward(of_p.expand(p.shape).contiguous(), p, dim).to(
                        stored.dtype
                    )
        return of_upstream, of_logits, None, None, None, None, None


def _with_history(
    x: Tensor, target: Tensor, weight: Tensor | None, options: CrossEntropyOptions, in_place: bool
) -> Tensor:
    if wants_composite(x, target, weight) or not takes_cross_entropy(x, target, weight, options):
        return by_aten(torchs(x, target, weight, options))
    loss: Tensor
    # Shares the version counter, as tensors made below autograd don't.
    over = x.detach() if in_place and x.requires_grad else None
    with below_autograd():
        if not requires_grad(x, target, weight):
            if is_seen(x, target, weight):
                loss = ops.cross_entropy(x, target, weight, *options)
                return loss
            loss, _, _ = ops.cross_entropy_forward(x, target, weight, *options, False)
            return loss
        loss, _ = SoftkernCrossEntropy.apply(x, target, weight, options, over)
        return loss


def _at_autograd(x: Tensor, target: Tensor, weight: Tensor | None = None, *given: Any) -> Tensor:
    options = CrossEntropyOptions(*given)
    if is_for_onnx(x):
        return torchs(x, target, weight, options)
    return _with_history(x, target, weight, options, False)


def _at_autograd_(x: Tensor, target: Tensor, weight: Tensor | None = None, *given: Any) -> Tensor:
    options = CrossEntropyOptions(*given)
    if is_for_onnx(x):
        return torchs(x, target, weight, options)
    in_place = requires_grad(x) and is_plain(x) and not wants_composite(x)
    if in_place:
        check_in_place(x)
    return _with_history(x, target, weight, options, in_place and has_simple_strides(x))


def _below_autograd(x: Tensor, target: Tensor, weight: Tensor | None = None, *given: Any) -> Tensor:
    options = CrossEntropyOptions(*given)
    if not takes_cross_entropy(x, target, weight, options):
        return by_aten(torchs(x, target, weight, options))
    loss: Tensor = ops.cross_entropy_forward(x, target, weight, *options, False)[0]
    return loss


def _in_float32(name: str) -> Callable[..., Tensor]:
    """As torch's own autocast rule on all devices. A copy may be needed by others, so only logits that are
    float32 already are overwritten."""

    def call(cast: Callable[..., Any], x: Tensor, *given: Any) -> Tensor:
        op = getattr(ops, name if x.dtype == torch.float32 else "cross_entropy")
        tensors, options = given[:2], given[2:]
        result: Tensor = op(cast(x, torch.float32), *(cast(t, torch.float32) for t in tensors), *options)
        return result

    return call


def _backward_batched(g: Tensor, grad: Tensor, scale: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """For vmap over upstream gradients (is_grads_batched, vectorised Jacobians)."""
    dim = class_dim(grad)
    factor = g.to(scale.dtype) * scale
    if factor.dim() > 0:
        factor = factor.unsqueeze(dim)
    product = (grad.to(scale.dtype) * factor).to(grad.dtype)
    if target.dim() == grad.dim():
        return product
    return product.masked_fill((target.to(torch.int64) == ignore_index).unsqueeze(dim), 0)


def register() -> None:
    keys.at("Autograd", "cross_entropy", _at_autograd)
    keys.at("Autograd", "cross_entropy_", _at_autograd_)
    for name in ("cross_entropy", "cross_entropy_"):
        keys.at("CompositeExplicitAutograd", name, _below_autograd)
        for key in ("CompositeImplicitAutogradNestedTensor", "FuncTorchBatched"):
            keys.at(key, name, _by_aten)
        keys.at_autocast(name, _in_float32(name))
    # A write in place would change the current value of the functional tensor.
    keys.at("Functionalize", "cross_entropy_", lambda *given: ops.cross_entropy(*given))
    for name in ("forward", "forward_", "backward", "backward_"):
        keys.without_derivative(f"cross_entropy_{name}")
    for key in ("FuncTorchBatched", "Batched"):
        keys.at(key, "cross_entropy_backward", _backward_batched)


def _entry(x: Tensor, target: Tensor, weight: Tensor | None, /, *given: Any) -> Tensor:
    *numbers, in_place = given
    options = CrossEntropyOptions(*numbers)
    if is_traced_for_onnx(x):
        return torchs(x, target, weight, options)
    op = ops.cross_entropy_ if in_place else ops.cross_entropy
    result: Tensor = op(x, target, weight, *options)
    return result


def _takes(x: Tensor, target: Tensor, weight: Tensor | None, /, *given: Any) -> bool:
    return takes_cross_entropy(x, target, weight, CrossEntropyOptions(*given))


def entries() -> dict[str, Callable[..., Any]]:
    return {"cross_entropy": _entry, "takes_cross_entropy": _takes}
