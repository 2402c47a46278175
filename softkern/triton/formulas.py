# SPDX-License-Identifier: Apache-2.0
"""The formulas of csrc/common/{stats,mass,loss,tanh,row_losses,parts}.h, which documents them, under the same
names. A change must be made in both places: a test compares names and values.

Numbers are row vectors (R, 1), or blocks (R, C) of classes. As in CUDA, a product and a sum are one fused
operation, and a division by d is a multiplication by its inverse. These functions return the values that C++
changes in place."""

from __future__ import annotations

import triton
import triton.language as tl

from softkern.options import CrossEntropyOptions, RowOptions
from softkern.triton import constants
from softkern.triton.elementary import divide, exp_times_power, log_one_plus, number, power_of_e

_DIRECT: tl.constexpr = tl.constexpr(constants.DIRECT)
_MOST_APART: tl.constexpr = tl.constexpr(constants.MOST_APART)
_TANH_32: tl.constexpr = tl.constexpr(constants.TANH_32)
_TANH_64: tl.constexpr = tl.constexpr(constants.TANH_64)
_TANH_SMALL: tl.constexpr = tl.constexpr(constants.TANH_SMALL)
_TANH_MOST_32: tl.constexpr = tl.constexpr(constants.TANH_MOST_32)
_TANH_MOST_64: tl.constexpr = tl.constexpr(constants.TANH_MOST_64)


@triton.jit
def is_finite(m):
    return tl.abs(m) < float("inf")


# stats.h


@triton.jit
def finite(m):
    return tl.where(is_finite(m), m, 0.0)


@triton.jit
def origin_of(m):
    return tl.where(tl.abs(m) < _DIRECT, 0.0, m)


@triton.jit
def power_of(m):
    return power_of_e(m - origin_of(m))


@triton.jit
def top_term(m):
    held = finite(m)
    return tl.where(is_finite(m), exp_times_power(held - origin_of(held), power_of(held)), float("nan"))


@triton.jit
def total(ties, top, rest):
    return tl.fma(ties, top, rest)


@triton.jit
def d_less_one(ties, top, rest):
    return (ties - 1) + divide(rest, top)


@triton.jit
def log_d(ties, top, rest):
    return log_one_plus(d_less_one(ties, top, rest))


@triton.jit
def unit_ratio(m_from, m_to):
    held_from = finite(m_from)
    held_to = finite(m_to)
    apart = tl.maximum(origin_of(held_from) - origin_of(held_to), number(-_MOST_APART, m_to.dtype))
    ratio = exp_times_power(apart, power_of(held_to) - power_of(held_from))
    return tl.where(is_finite(m_from), ratio, 0.0)


@triton.jit
def move_to(m_to, m, ties, rest):
    """Returns ties and rest, relative to m_to."""
    is_top = m == m_to
    every = tl.where(is_finite(m), total(ties, top_term(m), rest), rest)
    return tl.where(is_top, ties, 0.0), tl.where(is_top, rest, unit_ratio(m, m_to) * every)


# mass.h; the numbers are `keep` and `share`.


def mass_numbers(options: CrossEntropyOptions | RowOptions, classes: int) -> tuple[float, float]:
    s = options.label_smoothing
    return 1 - s, s / classes


def has_spread_mass(options: CrossEntropyOptions | RowOptions, probabilities: bool) -> bool:
    return probabilities or options.label_smoothing != 0


@triton.jit
def weighted(mass, weight):
    return mass * weight


@triton.jit
def hot_mass(keep, share):
    return keep


@triton.jit
def uniform_mass(keep, share):
    return share


@triton.jit
def probability_mass(keep, share, t):
    return tl.fma(t, keep, share)


@triton.jit
def below_moved(m_to, m, masses, below):
    return tl.fma(masses, finite(m_to) - finite(m), below)


# loss.h; inverse: inverse_of(total)


@triton.jit
def hot_loss(mass, below_x, log_of_d):
    return mass * (below_x + log_of_d)


@triton.jit
def spread_loss(masses, below, log_of_d):
    return tl.fma(masses, log_of_d, below)


@triton.jit
def gradient_scale(factor, mass, masses, inverse):
    return factor * (mass + masses) * inverse


@triton.jit
def hot_gradient(factor, mass, masses, x, e, m, ties, rest, inverse):
    p = e * inverse
    alone = (x == m) & (ties == 1)
    less_one = tl.where(alone, -(rest * inverse), p - 1)
    return factor * tl.fma(mass, less_one, masses * p)


@triton.jit
def less_mass(dx, mass, minus_factor):
    return tl.fma(mass, minus_factor, dx)


# tanh.h


@triton.jit
def tanh_small(u):
    square = u * u
    if u.dtype == tl.float64:
        p = number(_TANH_64[10], tl.float64)
        for k in tl.static_range(10):
            p = tl.fma(p, square, number(_TANH_64[9 - k], tl.float64))
    else:
        p = number(_TANH_32[4], tl.float32)
        for k in tl.static_range(4):
            p = tl.fma(p, square, number(_TANH_32[3 - k], tl.float32))
    return tl.fma(u * square, p, u)


@triton.jit
def tanh(u):
    if u.dtype == tl.float64:
        most = number(_TANH_MOST_64, tl.float64)
    else:
        most = number(_TANH_MOST_32, tl.float32)
    size = tl.abs(u)
    held = tl.where(size > most, most, size)
    two = number(2.0, u.dtype)
    large = 1 - divide(two, exp_times_power(held + held, number(0.0, u.dtype)) + 1)
    signed_large = tl.where(u < 0, -large, large)
    return tl.where(size < number(_TANH_SMALL, u.dtype), tanh_small(u), signed_large)


# row_losses.h; the numbers are `inner`, `outer`, CAPPED, `inverse` and `slope`.


def logit_numbers(options: RowOptions) -> tuple[float, float, bool, float, float]:
    slope = options.logit_scale / options.temperature
    if options.softcap == 0:
        return 1.0, slope, False, 1.0, slope
    inner = options.logit_scale / options.softcap
    return inner, options.softcap / options.temperature, True, options.temperature / options.softcap, slope


def transforms_logits(options: RowOptions) -> bool:
    return options.softcap != 0 or options.logit_scale != options.temperature


@triton.jit
def transformed(inner, outer, x, CAPPED: tl.constexpr):
    if CAPPED:
        z = outer * tanh(inner * x)
    else:
        z = outer * x
    return tl.where(x == float("-inf"), x, z)


@triton.jit
def logit_slope(inverse, slope, z, CAPPED: tl.constexpr):
    result = tl.zeros_like(z) + slope
    if CAPPED:
        t = z * inverse
        result = tl.where(z == float("-inf"), 0.0, slope * ((1 - t) * (1 + t)))
    return result


@triton.jit
def term_below(e, below):
    return tl.where(e == 0, 0.0, e * below)


@triton.jit
def terms_below_moved(m_to, m, all, ratio, below):
    return ratio * tl.fma(all, finite(m_to) - finite(m), below)


@triton.jit
def lse_of(m, log_of_d):
    return m + log_of_d


@triton.jit
def log_prob_of(below_z, log_of_d):
    return -(below_z + log_of_d)


@triton.jit
def entropy_of(log_of_d, mean_below):
    return log_of_d + mean_below


@triton.jit
def squared_lse(zeta, weight, lse):
    return zeta * weight * lse * lse


@triton.jit
def common_pull(g, masses, zeta, weight, lse, g_lse):
    of_lse = 2 * (zeta * weight) * lse
    return g * (masses + of_lse) + g_lse


@triton.jit
def term_pull(scale, slope, e, below):
    return tl.fma(e, scale, slope * term_below(e, below))


# parts.h; the numbers of a part in the order of PartNumber.


@triton.jit
def mass_below_moved(m_to, m, mass, below):
    infinite = tl.where(mass == 0, below, mass * float("inf"))
    return tl.where(is_finite(m), below_moved(m_to, m, mass, below), infinite)


@triton.jit
def move_part(m_to, m, ties, rest, terms_below, mass, below):
    """Returns ties, rest, terms_below and below, relative to m_to."""
    is_top = m == m_to
    all = tl.where(is_finite(m), total(ties, top_term(m), rest), rest)
    moved_terms = terms_below_moved(m_to, m, all, unit_ratio(m, m_to), terms_below)
    moved_below = mass_below_moved(m_to, m, mass, below)
    terms_below = tl.where(is_top, terms_below, moved_terms)
    below = tl.where(is_top, below, moved_below)
    ties, rest = move_to(m_to, m, ties, rest)
    return ties, rest, terms_below, below


@triton.jit
def merge_part(m_1, ties_1, rest_1, terms_1, mass_1, below_1, hot_z_1, m_2, ties_2, rest_2, terms_2, mass_2,
               below_2, hot_z_2):  # fmt: skip
    """Returns the numbers of the classes of both parts."""
    m = tl.where(m_1 < m_2, m_2, m_1)
    ties_1, rest_1, terms_1, below_1 = move_part(m, m_1, ties_1, rest_1, terms_1, mass_1, below_1)
    ties_2, rest_2, terms_2, below_2 = move_part(m, m_2, ties_2, rest_2, terms_2, mass_2, below_2)
    return (m, ties_1 + ties_2, rest_1 + rest_2, terms_1 + terms_2, mass_1 + mass_2, below_1 + below_2,
            hot_z_1 + hot_z_2)  # fmt: skip
