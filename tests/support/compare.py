# SPDX-License-Identifier: Apache-2.0
"""Comparisons. They raise and return nothing, so that no test can forget to check a result."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from softkern.verify.bounds import allowed, same_bits, ulp


def assert_same_bits(actual: Tensor, expected: Tensor, what: str = "") -> None:
    """Same dtype, shape and bits. -0.0 is not 0.0; a NaN equals any NaN, its payload is noise."""
    _assert_like(actual, expected.dtype, expected.shape, what)
    same = same_bits(actual, expected)
    if not bool(same.all()):
        _fail(what, "bits differ", ~same, actual, expected)


def assert_close(
    actual: Tensor,
    expected: Tensor,
    dtype: torch.dtype,
    *,
    scale: Tensor | None = None,
    torch_result: Tensor | None = None,
    roundings: int | None = None,
    what: str = "",
) -> None:
    """`actual`, of `dtype`, is within the table's bound of the float64 tensor `expected`.

    NaN and infinities must be in the same places, with the same signs. `scale` is the magnitude of
    the terms (default: of the result), `torch_result` what torch computed in the same dtype,
    `roundings` how often the result was rounded to its dtype if not as often as the table says.
    """
    assert expected.dtype == torch.float64, "the oracle must be float64"
    _assert_like(actual, dtype, expected.shape, what)
    got = actual.detach().double()
    _assert_same_special(got, expected, dtype, actual, what)
    bound = sum(allowed(expected, dtype, scale, torch_result, roundings))
    finite = expected.isfinite() & got.isfinite()
    err = (got - expected).abs()
    # Written so that a NaN that got this far is an error and not a pass.
    bad = finite & ~(err <= bound)
    if bool(bad.any()):
        worst = torch.where(bad, (err / bound).nan_to_num(math.inf, math.inf), -1)
        _fail(what, "too far from the float64 answer", bad, actual, expected, worst, bound)


def assert_gradient(actual: Tensor, expected: Tensor, dtype: torch.dtype, **options) -> None:
    """As assert_close, and the errors must not add up: a bias of every element trains wrongly.

    Rounding errors of one row may share a sign (they share 1/d), those of different rows do not.
    So the sum of all errors may be 4 standard deviations, with one row's bound taken as one, on
    top of what it is for the correctly rounded answer. `dim` is the class dimension.
    """
    dim = options.pop("dim", -1)
    assert_close(actual, expected, dtype, **options)
    options.pop("what", None)
    if expected.dim() == 0 or expected.numel() == 0:
        return
    got = actual.detach().double()
    finite = expected.isfinite() & got.isfinite()
    rounding, terms = (torch.where(finite, b, 0) for b in allowed(expected, dtype, **options))
    total, best = (torch.where(finite, a - expected, 0).sum() for a in (got, expected.to(dtype).double()))
    limit = best.abs() + 4 * (terms.sum(dim).square().sum() + rounding.square().sum()).sqrt()
    if not bool(total.abs() <= limit):
        raise AssertionError(f"biased: the errors add up to {total:.3e}, at most {limit:.3e}")


def _assert_like(actual: Tensor, dtype: torch.dtype, shape: torch.Size, what: str) -> None:
    if not isinstance(actual, Tensor):
        raise AssertionError(f"{what}: expected a tensor, got {type(actual).__name__}")
    if actual.dtype != dtype:
        raise AssertionError(f"{what}: expected {dtype}, got {actual.dtype}")
    if actual.shape != shape:
        raise AssertionError(f"{what}: expected shape {tuple(shape)}, got {tuple(actual.shape)}")


def _assert_same_special(got: Tensor, expected: Tensor, dtype, actual, what: str) -> None:
    if bool((got.isnan() != expected.isnan()).any()):
        _fail(what, "NaN in other places", got.isnan() != expected.isnan(), actual, expected)
    # What overflows the dtype is infinite after rounding, so it is looked for after rounding.
    rounded = expected.to(dtype).double()
    differ = (got.isinf() | rounded.isinf()) & (got != rounded)
    if bool(differ.any()):
        _fail(what, "infinities in other places or signs", differ, actual, expected)


def _fail(what, why, bad, actual, expected, badness=None, bound=None):
    """Raises with the worst element: where, what was there, what should be, how many ulp apart."""
    worst = int((bad.double() if badness is None else badness).argmax())
    where = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), bad.shape))
    a, e = actual.detach().reshape(-1)[worst].item(), expected.reshape(-1)[worst].item()
    text = f"{what}: {why}; {int(bad.sum())} of {bad.numel()} elements, worst at {where}: "
    text += f"got {a!r}, expected {e!r}"
    if math.isfinite(a) and math.isfinite(e):
        unit = float(ulp(torch.tensor(e, dtype=torch.float64), actual.dtype))
        text += f", {abs(a - e) / unit:.2f} ulp apart"
    if bound is not None:
        text += f", allowed {bound.reshape(-1)[worst].item():.3e}"
    raise AssertionError(text)
