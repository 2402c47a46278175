# SPDX-License-Identifier: Apache-2.0
"""How far a result may be from the float64 answer: one table, with a reason for every number.

There are two bounds. A result has to keep both where both apply:

    stated = STATED ulp of the answer, for the plain calls that the documentation names
    bound = roundings * u * |expected| + (arithmetic * eps + k * torch) * scale

`u` is half a unit in the last place of the result's dtype, `eps` a unit of the dtype of the computation.
`scale` is the magnitude of the terms that form the result; the caller knows it. For a gradient A p - a it is
A p + a: a small difference of large terms is not held to the ulp of the difference, but a large cancellation
in the wrong precision is still found. `torch` is torch's own error on the same input, in the same unit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Tolerance(NamedTuple):
    compute: torch.dtype  # the dtype of the computation
    roundings: int  # how often the result is rounded to its own dtype, half an ulp each time
    arithmetic: float  # error of the computation in eps of `compute`, relative to the scale of the terms
    k: float  # how many times torch's own error is allowed in addition


TABLE = {
    # exp (1 ulp), a division or product (1/2 each), a sum over 64 partial sums (1 to 2 for a few
    # thousand terms of one sign) and a log: 4. The rounding of x - m adds |x - m| / 2 ulp to any exp;
    # the scale includes that term. k: long rows have larger errors, in torch as well.
    torch.float32: Tolerance(torch.float32, 0, 4, 2),
    # Twice the above: the oracle is float64 as well, and rounds as often as the result.
    torch.float64: Tolerance(torch.float64, 0, 8, 2),
    # Computed in float32 and rounded once, so the dtype's half ulp is relative to the result, not
    # to its terms. k = 0: torch rounds intermediate results to 16 bits. Its error (an overflowed
    # fp16 sum is infinite) would allow any formula.
    torch.bfloat16: Tolerance(torch.float32, 1, 4, 0),
    torch.float16: Tolerance(torch.float32, 1, 4, 0),
}

# No bound may exceed this share of the scale. 1e-4 is 800 float32 ulp, less than the error of any wrong
# formula or forgotten term. A case that needs more has the wrong scale.
WIDEST = 1e-4

DTYPES = tuple(TABLE)

# The bounds of docs/accuracy.md for finite logits, in ulp of a float32 answer: for values of the softmaxes,
# and for the unscaled loss and gradient of one row with a class index. Other results have no bound in ulp.
STATED = {"softmax": 6.0, "log_softmax": 6.0, "cross_entropy": 6.0, "cross_entropy gradient": 8.0}
STATED_16_BIT = 1.0
# The same for calls with softkern's own options, in ulp of the scale of a float32 result (row_oracle.py). The
# part for the arithmetic below is at most 8 of them.
STATED_OPTIONS = {"value": 6.0, "gradient": 8.0}


def stated(quantity: str, dtype: torch.dtype) -> float | None:
    """The stated bound in ulp of the answer; None where no bound is stated, as for float64."""
    if quantity not in STATED or dtype == torch.float64:
        return None
    return STATED[quantity] if dtype == torch.float32 else STATED_16_BIT


def of_a_sum(terms: int, dtype: torch.dtype) -> float:
    """The part of a scale for a sum of that many products, in units of the sum of their magnitudes.

    Each addition rounds a partial sum by half a unit, and no partial sum is larger than that sum: at most
    terms / 2 units, in whatever order a library adds. Products are fused with additions, or exact, as those
    of 16-bit numbers are in float32.
    """
    return terms / 2 / TABLE[dtype].arithmetic


def of_narrowing(dtype: torch.dtype) -> float:
    """The part of a scale for a term that is rounded to 16 bits before a product, in units of the term."""
    t = TABLE[dtype]
    if not t.roundings:
        return 0.0
    return torch.finfo(dtype).eps / 2 / (t.arithmetic * torch.finfo(t.compute).eps)


def ulp(answer: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbouring numbers of `dtype` at a finite float64 answer.

    Answers below the smallest normal number count as that number.
    """
    limits = torch.finfo(dtype)
    return torch.exp2(torch.floor(torch.log2(answer.abs().clamp_min(limits.tiny)))) * limits.eps


def ulp_error(result: Tensor, answer: Tensor) -> float:
    """The largest error of a finite result, in ulp of its dtype at the float64 answer."""
    return float(((result.double() - answer).abs() / ulp(answer, result.dtype)).max())


def allowed(
    expected: Tensor,
    dtype: torch.dtype,
    scale: Tensor | None = None,
    torch_result: Tensor | None = None,
    roundings: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The two parts of the second bound: for rounding the result, and for computing its terms.

    Args:
        expected: the float64 answer.
        dtype: of the result.
        scale: magnitude of the terms, by default of the answer.
        torch_result: torch's result in `dtype`; without it the bound has no part for torch's error.
        roundings: how often the result was rounded to its dtype, if that differs from the table.

    Raises:
        AssertionError: the bound is wider than `WIDEST`.
    """
    t, info = TABLE[dtype], torch.finfo(dtype)
    compute = torch.finfo(t.compute)
    scale = (expected.abs() if scale is None else scale.expand_as(expected)).nan_to_num(0, 0, 0)
    scale = scale.clamp_min(compute.tiny)  # below the smallest normal number an ulp is constant
    n = (t.roundings if roundings is None else roundings) if t.roundings else 0
    rounding = n * info.eps / 2 * expected.abs().clamp_min(info.tiny)
    share = t.arithmetic * compute.eps
    if torch_result is not None and t.k:
        lost = ((torch_result.detach().double() - expected).abs() / scale)[expected.isfinite()]
        share += t.k * float(lost.nan_to_num(0, 0, 0).max()) if lost.numel() else 0
    if not share <= WIDEST:
        raise AssertionError(f"a bound of {share:.1e} of the scale would hide a wrong formula")
    return rounding, share * scale


def same_bits(a: Tensor, b: Tensor) -> Tensor:
    """Where two tensors of one dtype and shape have the same bits.

    -0.0 differs from 0.0. A NaN equals any NaN, because its payload has no meaning.
    """
    return (as_words(a) == as_words(b)) | (a.detach().isnan() & b.detach().isnan())


def as_words(a: Tensor) -> Tensor:
    """The bits of each element as an integer."""
    word = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.detach().contiguous().view(word)
