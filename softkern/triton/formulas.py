# SPDX-License-Identifier: Apache-2.0
"""The formulas of csrc/common/{stats,mass,loss}.h, which documents them, under the same names. A change must
be made in both places: a test compares names and values.

Numbers are row vectors (R, 1), or blocks (R, C) of classes. As in CUDA, a product and a sum are one fused
operation, and a division by d is a multiplication by its inverse. These functions return the values that C++
changes in place."""

from __future__ import annotations

import triton
import triton.language as tl

from softkern.options import CrossEntropyOptions
from softkern.triton import constants
from softkern.triton.elementary import divide, exp_times_power, log_one_plus, number, power_of_e

_DIRECT: tl.constexpr = tl.constexpr(constants.DIRECT)
_MOST_APART: tl.constexpr = tl.constexpr(constants.MOST_APART)


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


def mass_numbers(options: CrossEntropyOptions, classes: int) -> tuple[float, float]:
    s = options.label_smoothing
    return 1 - s, s / classes


def has_spread_mass(options: CrossEntropyOptions, probabilities: bool) -> bool:
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
