# SPDX-License-Identifier: Apache-2.0
"""exp and log for the kernels, with an error of at most 1 ulp in float32 and float64, including gradual
underflow.

The methods and polynomials are those of the CPU (csrc/common/{exp,log}.h). Triton's own exp and log of
float32 are the hardware's approximations: exp(x) loses |x| / 2 ulp, and log(x) near 1 loses all digits.

Multiplications and additions are fused only where tl.fma is written, so that the bits of a row do not depend
on the code around an expression. The error bound does not depend on fusion: Triton's interpreter rounds
between the two operations."""

from __future__ import annotations

import triton
import triton.language as tl

from softkern.triton import constants
from softkern.triton.settings import INTERPRETED

# Triton's interpreter truncates to bfloat16, so it needs rounding by hand.
_ROUND_BY_HAND: tl.constexpr = tl.constexpr(INTERPRETED)

_EXP_32: tl.constexpr = tl.constexpr(constants.EXP_32)
_EXP_64: tl.constexpr = tl.constexpr(constants.EXP_64)
_LOG_32: tl.constexpr = tl.constexpr(constants.LOG_32)
_LOG_64: tl.constexpr = tl.constexpr(constants.LOG_64)
_LOG2E: tl.constexpr = tl.constexpr(constants.LOG2E)
_EXP_LN2_32: tl.constexpr = tl.constexpr(constants.EXP_LN2_32)
_EXP_LN2_64: tl.constexpr = tl.constexpr(constants.EXP_LN2_64)
_LOG_LN2_32: tl.constexpr = tl.constexpr(constants.LOG_LN2_32)
_LOG_LN2_64: tl.constexpr = tl.constexpr(constants.LOG_LN2_64)

# At -span exp underflows to 0. Smaller arguments are raised to it.
_SPAN_32: tl.constexpr = tl.constexpr(constants.SPAN_32)
_SPAN_64: tl.constexpr = tl.constexpr(constants.SPAN_64)
# The difference between the bits of 1 and those of sqrt(1/2).
_TO_ONE_32: tl.constexpr = tl.constexpr((127 << 23) - constants.HALF_ROOT_32)
_TO_ONE_64: tl.constexpr = tl.constexpr((1023 << 52) - constants.HALF_ROOT_64)


@triton.jit
def number(value: tl.constexpr, dtype: tl.constexpr):
    """A constant in full precision. A plain constant in an expression with float64 may have been rounded to
    float32."""
    return tl.full([], value, dtype)


@triton.jit
def argument(value, dtype: tl.constexpr):
    """A kernel's float argument in the compute dtype. In Triton's interpreter it is a plain float."""
    return tl.full([], value, dtype)


@triton.jit
def span(dtype: tl.constexpr):
    """The distance below the maximum from which on a logit's term is 0."""
    if dtype == tl.float64:
        result = number(_SPAN_64, dtype)
    else:
        result = number(_SPAN_32, dtype)
    return result


@triton.jit
def power_of_e(x):
    """round(x / ln 2) for |x| < 2^20, a whole number in the dtype of x; NaN for NaN."""
    if x.dtype == tl.float64:
        # Adding and subtracting 1.5 * 2^(bits - 1) rounds to an integer.
        rounder = number(6755399441055744.0, tl.float64)
    else:
        rounder = number(12582912.0, tl.float32)
    return x * number(_LOG2E, x.dtype) + rounder - rounder


@triton.jit
def scale_by_power(p, n):
    """p 2^n for p near 1 and whole numbers n > -2100 (float32: > -250); rounded once if the result is
    subnormal."""
    whole = n.to(tl.int32)
    half = whole >> 1
    if p.dtype == tl.float64:
        first = ((half + 1023).to(tl.int64) << 52).to(tl.float64, bitcast=True)
        second = ((whole - half + 1023).to(tl.int64) << 52).to(tl.float64, bitcast=True)
    else:
        first = ((half + 127) << 23).to(tl.float32, bitcast=True)
        second = ((whole - half + 127) << 23).to(tl.float32, bitcast=True)
    return p * first * second


@triton.jit
def exp_times_power(x, power):
    """exp(x) 2^-power for -1500 < x < 1500 and whole numbers `power`, result at most about 1; NaN for NaN.

    exp(x) = 2^n p(r), n = round(x / ln 2), r = x - n ln 2.
    """
    n = power_of_e(x)
    # The first part of ln 2 has so few digits that its products are exact, even without fusion.
    if x.dtype == tl.float64:
        r = tl.fma(n, number(-_EXP_LN2_64[0], tl.float64), x)
        r = tl.fma(n, number(-_EXP_LN2_64[1], tl.float64), r)
        p = number(_EXP_64[11], tl.float64)
        for k in tl.static_range(11):
            p = tl.fma(p, r, number(_EXP_64[10 - k], tl.float64))
        lowest = number(-1200.0, tl.float64)
    else:
        r = tl.fma(n, number(-_EXP_LN2_32[0], tl.float32), x)
        r = tl.fma(n, number(-_EXP_LN2_32[1], tl.float32), r)
        p = number(_EXP_32[6], tl.float32)
        for k in tl.static_range(6):
            p = tl.fma(p, r, number(_EXP_32[5 - k], tl.float32))
        lowest = number(-200.0, tl.float32)
    n -= power
    return scale_by_power(p, tl.where(n < lowest, lowest, n))


@triton.jit
def exp(x):
    """exp(x) for x <= 0, -inf included; NaN for NaN."""
    least = -span(x.dtype)
    return exp_times_power(tl.where(x < least, least, x), number(0.0, x.dtype))


@triton.jit
def inverse_of(b):
    """1 / b for b between 2^-100 and 2^100, within an ulp; NaN for NaN.

    A correctly rounded division calls a function for numbers outside this range, which costs registers."""
    if b.dtype == tl.float64:
        inverse = (1.0 / b.to(tl.float32)).to(tl.float64)
        inverse = tl.fma(tl.fma(-b, inverse, number(1.0, tl.float64)), inverse, inverse)
    else:
        inverse = 1.0 / b
    return tl.fma(tl.fma(-b, inverse, number(1.0, b.dtype)), inverse, inverse)


@triton.jit
def divide(a, b):
    """a / b for b in the range of inverse_of, within an ulp."""
    inverse = inverse_of(b)
    q = a * inverse
    return tl.fma(tl.fma(-q, b, a), inverse, q)


@triton.jit
def log_one_plus(q):
    """log(1 + q) for finite q >= 0, small q included; NaN for NaN.

    With u + c = 1 + q exactly, u = 2^k (1 + f), s = f / (2 + f): k ln 2 + f - (f^2/2 - s (f^2/2 + R(s^2))) +
    c/u."""
    one = number(1.0, q.dtype)
    half = number(0.5, q.dtype)
    u = one + q
    of_q = u - one
    c = (one - (u - of_q)) + (q - of_q)  # the rounding error of u (Knuth's two-sum)
    # sqrt(1/2) <= 1 + f < sqrt(2)
    if q.dtype == tl.float64:
        bits = u.to(tl.int64, bitcast=True)
        k = ((bits + _TO_ONE_64) >> 52) - 1023
        f = (bits - (k << 52)).to(tl.float64, bitcast=True) - one
    else:
        bits = u.to(tl.int32, bitcast=True)
        k = ((bits + _TO_ONE_32) >> 23) - 127
        f = (bits - (k << 23)).to(tl.float32, bitcast=True) - one
    k = k.to(q.dtype)
    s = divide(f, f + 2.0)
    z = s * s
    if q.dtype == tl.float64:
        r = number(_LOG_64[6], tl.float64)
        for i in tl.static_range(6):
            r = tl.fma(r, z, number(_LOG_64[5 - i], tl.float64))
        high = number(_LOG_LN2_64[0], tl.float64)
        low = number(_LOG_LN2_64[1], tl.float64)
    else:
        r = number(_LOG_32[3], tl.float32)
        for i in tl.static_range(3):
            r = tl.fma(r, z, number(_LOG_32[2 - i], tl.float32))
        high = number(_LOG_LN2_32[0], tl.float32)
        low = number(_LOG_LN2_32[1], tl.float32)
    correction = divide(c, u)
    square = half * f * f
    rest = square - tl.fma(s, tl.fma(z, r, square), tl.fma(k, low, correction))
    return tl.where(q != q, q, tl.fma(k, high, f - rest))


@triton.jit
def widen(x):
    """Converts to the compute dtype."""
    if x.dtype != tl.float64:
        x = x.to(tl.float32)
    return x


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """Rounds to nearest, ties to even."""
    if _ROUND_BY_HAND and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(x != x, 0x7FC0, rounded)
        result = rounded.to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        result = x.to(dtype)
    return result
