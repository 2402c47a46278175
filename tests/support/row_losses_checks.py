# SPDX-License-Identifier: Apache-2.0
"""Checks results and gradients of the op row_losses against the float64 oracle."""

from __future__ import annotations

from typing import Any

import torch
from cases import upstream
from compare import assert_close, assert_gradient
from row_losses_scales import scales
from tolerances import TABLE
from torch import Tensor

from softkern import reference
from softkern.reference_rows import RowLosses
from softkern.verify.inputs import REDUCTIONS

OUTPUTS = RowLosses._fields  # in the order of their bits
DIFFERENTIABLE = OUTPUTS[:4]
# Which of the results get an upstream gradient: the loss alone scales a stored gradient, others recompute it.
MIXES = (("loss",), DIFFERENTIABLE, DIFFERENTIABLE[1:], ("loss", "entropy"), ("lse",))


def row_losses(x: Tensor, outputs: tuple[str, ...], *, inplace: bool = False, **options: Any) -> RowLosses:
    """The op, with the options of the reference; None for each result that is not wanted."""
    op = torch.ops.softkern.row_losses_ if inplace else torch.ops.softkern.row_losses
    found = op(x, *arguments(x, outputs, **options))
    assert all(t.shape == (0,) for t, n in zip(found, OUTPUTS, strict=True) if n not in outputs)
    return RowLosses(*(t if n in outputs else None for t, n in zip(found, OUTPUTS, strict=True)))


def arguments(x: Tensor, outputs: tuple[str, ...], **options: Any) -> tuple:
    """Those of the op behind the logits."""
    given = {"reduction": "mean", **options}
    items = given.get("num_items")
    if items is not None and not isinstance(items, Tensor):
        items = torch.tensor(items, dtype=torch.float64)
    return (
        *(given.get(name) for name in ("target", "weight", "row_weight")),
        items,
        given.get("target_probs"),
        REDUCTIONS.index(given["reduction"]),
        given.get("ignore_index", -100),
        given.get("label_smoothing", 0.0),
        given.get("valid_classes") or -1,
        given.get("logit_scale", 1.0),
        given.get("softcap") or 0.0,
        given.get("temperature", 1.0),
        given.get("z_loss", 0.0),
        sum(1 << OUTPUTS.index(name) for name in outputs),
    )


def possible(x: Tensor, target: Tensor | None = None, target_probs: Tensor | None = None, **_: Any):
    """The results that a target allows."""
    if target is None:
        return ("lse", "entropy", "argmax")
    if target.is_floating_point():
        return ("loss", "lse", "entropy", "argmax")
    if target.dim() < x.dim():
        return OUTPUTS
    return tuple(n for n in OUTPUTS[:5] if n != "loss" or target_probs is not None)


def in_float64(x: Tensor, options: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    wide = {
        k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in options.items()
    }
    return x.detach().double(), wide


def compute(dtype: torch.dtype) -> torch.dtype:
    return TABLE[dtype].compute


def check_values(found: RowLosses, x: Tensor, **options: Any) -> None:
    """Those results that are not None."""
    wide, kwargs = in_float64(x, options)
    expected = reference.row_losses(wide, **kwargs)
    scale, _ = scales(wide, {}, **kwargs)
    for name in DIFFERENTIABLE:
        got, want = getattr(found, name), getattr(expected, name)
        if got is not None:
            dtype = x.dtype if name == "loss" else compute(x.dtype)
            assert_close(got, want, dtype, scale=getattr(scale, name), what=name)
    for name in OUTPUTS[4:]:
        got, want = getattr(found, name), getattr(expected, name)
        if got is not None:
            assert got.dtype == want.dtype and got.shape == want.shape, name
            assert torch.equal(got, want), f"{name}: {got} is not {want}"


def check(
    x: Tensor,
    outputs: tuple[str, ...] | None = None,
    mixes: tuple[tuple[str, ...], ...] = MIXES,
    kind: str = "random",
    **options: Any,
) -> Tensor:
    """Values and gradients of all results that the target allows; returns the last gradient.

    `mixes`: which results get an upstream gradient, one backward for each; `kind`: as in cases.upstream, or
    "zero".
    """
    outputs = possible(x, **options) if outputs is None else outputs
    leaf = x.detach().requires_grad_()
    found = row_losses(leaf, outputs, **options)
    check_values(found, x, **options)
    dx = None
    for mix in {tuple(n for n in m if n in outputs): None for m in mixes}:
        if mix:
            grads = {n: upstream(getattr(found, n).detach(), kind) for n in mix}
            if kind == "zero":
                grads = {n: torch.zeros_like(g) for n, g in grads.items()}
            dx = check_gradient(found, leaf, grads, **options)
    return dx


def check_gradient(found: RowLosses, leaf: Tensor, grads: dict[str, Tensor], **options: Any) -> Tensor:
    """Of the graph of `found`, which is kept, for the upstream gradients `grads`."""
    results = [getattr(found, name) for name in grads]
    (dx,) = torch.autograd.grad(results, leaf, list(grads.values()), retain_graph=True)
    assert_is_gradient(dx, leaf, grads, **options)
    return dx


def assert_is_gradient(dx: Tensor, x: Tensor, grads: dict[str, Tensor], **options: Any) -> None:
    wide, kwargs = in_float64(x, options)
    g = {name: t.double() for name, t in grads.items()}
    expected = reference.row_losses_backward(*map(g.get, DIFFERENTIABLE), wide, **kwargs)
    _, scale = scales(wide, g, **kwargs)
    dim = min(1, x.dim() - 1)
    assert_gradient(dx, expected, x.dtype, dim=dim, scale=scale, roundings=2, what=f"dx of {list(g)}")
