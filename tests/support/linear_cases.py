# SPDX-License-Identifier: Apache-2.0
"""Problems for linear_cross_entropy, and checks of its results and gradients against the float64 oracle."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from cases import upstream
from compare import assert_close
from row_losses_cases import row_problem
from row_losses_checks import DIFFERENTIABLE, OUTPUTS, compute, in_float64, possible
from row_losses_scales import scales
from tolerances import TABLE
from torch import Tensor

import softkern
from softkern import reference
from softkern.reference_rows import RowLosses

__all__ = [
    "FUSED",
    "Layer",
    "check",
    "linear",
    "linear_problem",
    "needed_bytes",
    "over_fused",
    "plan",
    "relative_error",
]

FUSED = ("fast", "lean")
over_fused = pytest.mark.parametrize("name", FUSED)


class Layer(NamedTuple):
    x: Tensor  #         (N, H)
    w: Tensor  #         (C, H)
    b: Tensor | None  #  (C)

    def leaves(self) -> Layer:
        return Layer(*(t if t is None else t.detach().clone().requires_grad_() for t in self))

    def double(self) -> Layer:
        """Padding and ignored rows have NaN, which the oracle must not multiply."""
        return Layer(
            *(t if t is None else t.detach().double().nan_to_num(0, math.inf, -math.inf) for t in self)
        )


def plan(name: str, **kwargs: Any) -> softkern.LinearCrossEntropyOptions:
    return softkern.LinearCrossEntropyOptions(plan=name, **kwargs)


def linear_problem(
    n: int, h: int, c: int, dtype: torch.dtype = torch.float32, *, bias: bool = True, **kind: Any
) -> tuple[Layer, dict[str, Any]]:
    """A layer, and its other arguments as those of reference.row_losses; `kind`: as for row_problem.

    What must not be read is NaN: hidden states of ignored rows, weights and biases of padding.
    """
    logits, options = row_problem((n, c), dtype, **kind)
    ignored = logits[:, 0].isnan() if n else torch.zeros(0, dtype=torch.bool)
    g = torch.Generator().manual_seed(n + 17 * h + 101 * c)
    x = torch.randn(n, h, generator=g).masked_fill(ignored.unsqueeze(1), torch.nan)
    w, b = 2 * torch.randn(c, h, generator=g) / h**0.5, torch.randn(c, generator=g)
    for t in (w, b):
        t[options.get("valid_classes", c) :] = torch.nan
    return Layer(*(t.to(dtype) for t in (x, w)), b.to(dtype) if bias else None), options


def linear(layer: Layer, outputs: tuple[str, ...] = ("loss",), **options: Any) -> RowLosses:
    """softkern.linear_cross_entropy; None for each result that is not wanted."""
    x, w, b = layer
    found = softkern.linear_cross_entropy(
        x, w, linear_bias=b, stats=tuple(n for n in outputs if n != "loss"), **options
    )
    loss, stats = found if isinstance(found, tuple) else (found, softkern.RowStats())
    return RowLosses(loss, *stats)


def _terms_of_logits(layer: Layer) -> Tensor:
    """The magnitude of the terms of each logit: it is rounded relative to that."""
    terms = layer.x.abs() @ layer.w.abs().T  # (N, C)
    return terms if layer.b is None else terms + layer.b.abs().nan_to_num(0, 0, 0)  # (N, C)


def _effect(result: Callable[[Tensor], Tensor], z: Tensor, terms: Tensor) -> Tensor:
    """What errors of the logits, relative to their terms, make of a result (N), (N, K) or ()."""
    z = z.detach().requires_grad_()
    found = result(z)
    columns = found.unbind(1) if found.dim() == 2 else (found,)
    grads = [torch.autograd.grad(t.sum(), z, retain_graph=True)[0].nan_to_num(0) for t in columns]
    effects = [(g.abs() * terms).sum(1) for g in grads]
    return torch.stack(effects, 1) if found.dim() == 2 else effects[0] if found.dim() else effects[0].sum()


def check_values(found: RowLosses, layer: Layer, **options: Any) -> None:
    """Those results that are not None."""
    wide = layer.double()
    z, kwargs = in_float64(_logits(wide), options)
    expected = reference.linear_cross_entropy(wide.x, wide.w, linear_bias=wide.b, **kwargs)
    scale, _ = scales(z, {}, **kwargs)
    terms = _terms_of_logits(wide)
    for name in DIFFERENTIABLE:
        got, want, of = (getattr(r, name) for r in (found, expected, scale))
        if got is not None:
            of = of + _effect(lambda z, n=name: getattr(reference.row_losses(z, **kwargs), n), z, terms)
            dtype = layer.x.dtype if name == "loss" else compute(layer.x.dtype)
            assert_close(got, want, dtype, scale=of, what=name)
    for name in OUTPUTS[4:]:
        got, want = getattr(found, name), getattr(expected, name)
        if got is not None:
            assert torch.equal(got, want), f"{name}: {got} is not {want}"


def _logits(layer: Layer) -> Tensor:
    z = layer.x @ layer.w.T  # (N, C)
    return z if layer.b is None else z + layer.b  # (N, C)


def check_gradients(grads: Layer, layer: Layer, upstream: dict[str, Tensor], **options: Any) -> None:
    """Of those of input, weight and bias that are not None.

    An error of the logits moves log p, and p and 1 - p relative to themselves, by that of the class and of
    all. dz is rounded to bfloat16 once; such errors are independent, and are held to 4 standard deviations of
    their sum. Nothing else is relative to dz alone.
    """
    dtype = layer.x.dtype
    wide = layer.double()
    z, kwargs = in_float64(_logits(wide), options)
    g = {name: t.double() for name, t in upstream.items()}
    given = map(g.get, DIFFERENTIABLE)
    expected = reference.linear_cross_entropy_backward(*given, *wide[:2], linear_bias=wide.b, **kwargs)
    _, of_dz = scales(z, g, **kwargs)  # (N, C)
    dz = reference.row_losses_backward(*map(g.get, DIFFERENTIABLE), z, **kwargs)  # (N, C)
    slope = abs(options.get("logit_scale", 1.0)) / options.get("temperature", 1.0)
    slope *= 1 + 2 / (options.get("softcap") or torch.inf)
    terms = _terms_of_logits(wide)  # (N, C)
    of_dz = of_dz * (1 + slope * (terms + terms.amax(1, keepdim=True)))  # (N, C)
    arithmetic = TABLE[dtype].arithmetic * torch.finfo(compute(dtype)).eps
    narrow = torch.finfo(dtype).eps / 2 / arithmetic if dtype == torch.bfloat16 else 0
    products = (
        ("input", lambda a, power: a @ wide.w.abs() ** power),
        ("linear_weight", lambda a, power: a.T @ wide.x.abs() ** power),
        ("linear_bias", lambda a, power: a.sum(0)),
    )
    for got, want, (name, product) in zip(grads, expected, products, strict=True):
        if got is None:
            continue
        scale = product(of_dz, 1)
        if name != "linear_bias":  # summed before dz is rounded
            scale = scale + 4 * narrow * product(dz.square(), 2).sqrt()
        # A gradient that the forward has rounded is multiplied by the upstream gradient, and rounded again.
        assert_close(got, want, dtype, scale=scale, roundings=2, what=f"gradient of {name} by {list(g)}")


def check(
    layer: Layer,
    outputs: tuple[str, ...] | None = None,
    mixes: tuple[tuple[str, ...], ...] = (("loss",),),
    kind: str = "random",
    **options: Any,
) -> None:
    """Values, and gradients of all three for each of `mixes`: results that get an upstream gradient."""
    problem = {name: t for name, t in options.items() if name != "options"}
    names = possible(layer.x.new_empty(layer.x.shape[0], layer.w.shape[0]), **problem)
    if "correct" not in names:  # log_prob as a statistic is that of one class
        names = tuple(n for n in names if n != "log_prob")
    outputs = names if outputs is None else outputs
    leaves = layer.leaves()
    found = linear(leaves, tuple(n for n in outputs if n in names), **options)
    check_values(found, layer, **problem)
    given = [t for t in leaves if t is not None]
    for mix in mixes:
        results = {n: t for n in mix if (t := getattr(found, n)) is not None}
        grads = {n: upstream(t.detach(), kind) for n, t in results.items()}
        if kind == "zero":
            grads = {n: torch.zeros_like(t) for n, t in grads.items()}
        of = torch.autograd.grad(list(results.values()), given, list(grads.values()), retain_graph=True)
        check_gradients(Layer(*of, *[None] * (3 - len(of))), layer, grads, **problem)


def needed_bytes(call: Callable[[int], object]) -> int:
    """The smallest max_bytes that `call(max_bytes)` takes, from the error for 1."""
    with pytest.raises(ValueError, match=r"max_bytes = 1 is too small: .* need \d+ bytes") as error:
        call(1)
    return int(str(error.value).rpartition("need ")[2].split()[0])


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())
