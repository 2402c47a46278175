# SPDX-License-Identifier: Apache-2.0
"""Checks a call of torch's material: softkern returns or raises the same as F.

A result is right if it is no further from the float64 answer than F's own, or than some units in the last
place: of a softmax's value by itself; of a logarithm, a loss or a gradient, whose terms of order 1 may
cancel, at least of 1. In float64 the answer is F's, which has that error too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from messages import text
from torch import Tensor
from torch_material import Call, everywhere

# Units in the last place: of a value, of a gradient. 16: an exponential of logits that differ by 2 x has the
# rounding of their difference magnified x times, and torch's samples differ by up to 18. In 16 bits one
# rounding, and of a gradient one more.
ULPS = {torch.float32: (16, 16), torch.float64: (16, 16), torch.bfloat16: (1, 2), torch.float16: (1, 2)}


class Outcome(NamedTuple):
    error: Exception | None
    value: Tensor | None
    gradients: list[Tensor]


def wide(value):
    """In float64 and complex128, all the way down."""

    def f(t: Tensor) -> Tensor:
        if t.is_floating_point() or t.is_complex():
            kind = torch.complex128 if t.is_complex() else torch.float64
            return t.detach().to(kind).requires_grad_(t.requires_grad)
        return t

    if isinstance(value, dict):
        return {k: torch.float64 if isinstance(v, torch.dtype) else wide(v) for k, v in value.items()}
    return everywhere(f, value)


def _leaves(value) -> list[Tensor]:
    found: list[Tensor] = []

    def f(t):
        if t.requires_grad:
            found.append(t)
        return t

    everywhere(f, value)
    return found


def outcome(f: Callable, call: Call, gradients: bool) -> Outcome:
    """What f makes of a call: a value and the gradients in all tensors that want one, or an error."""
    kwargs = (
        dict(call.kwargs) if call.constructor is None else {**call.kwargs, "constructor": call.constructor}
    )
    with warnings.catch_warnings(), torch.set_grad_enabled(gradients):
        warnings.simplefilter("ignore")  # of complex numbers made real; tests of messages look at warnings
        try:
            y = f(*call.args, **kwargs)
        except Exception as error:
            return Outcome(error, None, [])
        leaves = _leaves((call.args, call.kwargs)) if gradients else []
        # From -1 to 1, exact in 16 bits: the terms of a gradient are of order 1.
        grad = ((torch.arange(y.numel()) * 7 % 9 - 4).reshape(y.shape) / 4).to(y.dtype)
        return Outcome(None, y, list(torch.autograd.grad(y, leaves, grad)) if leaves else [])


def check(
    ours: Callable, theirs: Callable, call: Call, *, gradients: bool = False, relative: bool = False
) -> Outcome:
    """Raises an AssertionError unless both come to the same; returns F's outcome.

    `relative`: every value is judged by its own size, however small, as a softmax's.
    """
    got, want = outcome(ours, call, gradients), outcome(theirs, call, gradients)
    if got.error is not None or want.error is not None:
        a, b = ((type(o.error), text(o.error)) if o.error else "no error" for o in (got, want))
        assert a == b, f"softkern: {a}, torch: {b}"
        return want
    exact = outcome(theirs, Call(*(wide(part) for part in call)), gradients)
    if exact.error is not None:
        raise exact.error
    assert got.value.requires_grad == want.value.requires_grad
    assert len(got.gradients) == len(want.gradients)
    _near(got.value, want.value, exact.value, 0.0 if relative else 1.0, 0)
    for triple in zip(got.gradients, want.gradients, exact.gradients, strict=True):
        _near(*triple, 1.0, 1)
    return want


def _near(got: Tensor, want: Tensor, exact: Tensor, least: float, is_gradient: int) -> None:
    a, b = ((t.dtype, t.shape, t.layout, t.device) for t in (got, want))
    assert a == b, f"softkern: {a}, torch: {b}"
    if not got.numel():
        return
    g, w, e = (torch.view_as_real(t) if t.is_complex() else t for t in (got, want, exact))
    dtype = g.dtype
    g, w, e = (t.detach().double() for t in (g, w, e))
    scale = e.abs().nan_to_num(0, 0, 0).clamp_min(max(least, torch.finfo(dtype).tiny))
    floor = ULPS[dtype][is_gradient] * torch.finfo(dtype).eps * scale
    same = (g == w) | (g.isnan() & w.isnan()) | (g == e.to(dtype).double()) | (g.isnan() & e.isnan())
    near = (g - e).abs() <= torch.maximum((w - e).abs().nan_to_num(0, 0, 0), floor)
    bad = ~(same | near)
    if bool(bad.any()):
        worst = int(torch.where(bad, (g - e).abs().nan_to_num(torch.inf), -1).argmax())
        values = ", ".join(
            f"{who} {t.reshape(-1)[worst].item()!r}" for who, t in (("got", g), ("torch", w), ("exact", e))
        )
        what = "gradient" if is_gradient else "value"
        raise AssertionError(f"{what}: {int(bad.sum())} of {bad.numel()} elements too far, worst: {values}")
