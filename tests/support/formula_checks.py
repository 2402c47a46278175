# SPDX-License-Identifier: Apache-2.0
"""What Triton's formulas make of numbers, as tests/native/formulas.cpp prints it for those of C++.

As a script, in Triton's interpreter: formula_checks.py float|double, lines of numbers on the input."""

from __future__ import annotations

import sys

import torch
import triton
import triton.language as tl

from softkern.options import RowOptions
from softkern.triton.elementary import inverse_of
from softkern.triton.formulas import (
    below_moved,
    common_pull,
    d_less_one,
    entropy_of,
    finite,
    gradient_scale,
    hot_gradient,
    hot_loss,
    hot_mass,
    is_finite,
    less_mass,
    log_d,
    log_prob_of,
    logit_numbers,
    logit_slope,
    lse_of,
    mass_below_moved,
    merge_part,
    move_to,
    origin_of,
    power_of,
    probability_mass,
    spread_loss,
    squared_lse,
    tanh,
    tanh_small,
    term_below,
    term_pull,
    terms_below_moved,
    top_term,
    total,
    transformed,
    transforms_logits,
    uniform_mass,
    unit_ratio,
    weighted,
)

RESULTS = (
    "finite",
    "origin_of",
    "power_of",
    "top_term",
    "total",
    "d_less_one",
    "log_d",
    "unit_ratio",
    "move_to: ties",
    "move_to: rest",
    "weighted",
    "hot_mass",
    "uniform_mass",
    "probability_mass",
    "below_moved",
    "hot_loss",
    "spread_loss",
    "gradient_scale",
    "hot_gradient",
    "less_mass",
    "tanh_small",
    "tanh",
    "tanh of a maximum",
    "logit_numbers, scaled: outer",
    "logit_numbers, scaled: slope",
    "logit_numbers, capped: inner",
    "logit_numbers, capped: outer",
    "logit_numbers, capped: inverse",
    "logit_numbers, capped: slope",
    "logit_numbers: capped",
    "transforms_logits",
    "transformed, scaled",
    "transformed, capped: a maximum",
    "transformed, capped",
    "logit_slope, scaled",
    "logit_slope, capped: a maximum",
    "logit_slope, capped",
    "term_below",
    "terms_below_moved",
    "lse_of",
    "log_prob_of",
    "entropy_of",
    "squared_lse",
    "common_pull",
    "term_pull",
    "mass_below_moved",
    "merge_part: m",
    "merge_part: ties",
    "merge_part: rest",
    "merge_part: terms below",
    "merge_part: mass",
    "merge_part: mass below",
    "merge_part: hot z",
)


@triton.jit
def number_at(numbers, field, cases, case):
    return tl.load(numbers + field * cases + case)


@triton.jit
def evaluate(numbers, results, cases, CASES: tl.constexpr, DTYPE: tl.constexpr):
    case = tl.arange(0, CASES)
    m_from = number_at(numbers, 0, cases, case)
    m_to = number_at(numbers, 1, cases, case)
    ties = number_at(numbers, 2, cases, case)
    rest = number_at(numbers, 3, cases, case)
    x = number_at(numbers, 4, cases, case)
    e = number_at(numbers, 5, cases, case)
    t = number_at(numbers, 6, cases, case)
    weight = number_at(numbers, 7, cases, case)
    smoothing = number_at(numbers, 8, cases, case)
    factor = number_at(numbers, 9, cases, case)
    masses = number_at(numbers, 10, cases, case)
    below = number_at(numbers, 11, cases, case)
    # As the launch makes them of the options, in double.
    keep = (1 - smoothing.to(tl.float64)).to(DTYPE)
    share = (smoothing.to(tl.float64) / 7).to(DTYPE)
    top = top_term(m_from)
    log_of_d = log_d(ties, top, rest)
    inverse = inverse_of(total(ties, top, rest))
    mass = weighted(hot_mass(keep, share), weight)
    moved_ties, moved_rest = move_to(m_to, m_from, ties, rest)
    tl.store(results + 0 * cases + case, finite(m_from))
    tl.store(results + 1 * cases + case, origin_of(m_from))
    tl.store(results + 2 * cases + case, power_of(m_from))
    tl.store(results + 3 * cases + case, top)
    tl.store(results + 4 * cases + case, total(ties, top, rest))
    tl.store(results + 5 * cases + case, d_less_one(ties, top, rest))
    tl.store(results + 6 * cases + case, log_of_d)
    tl.store(results + 7 * cases + case, unit_ratio(m_from, m_to))
    tl.store(results + 8 * cases + case, moved_ties)
    tl.store(results + 9 * cases + case, moved_rest)
    tl.store(results + 10 * cases + case, weighted(t, weight))
    tl.store(results + 11 * cases + case, hot_mass(keep, share))
    tl.store(results + 12 * cases + case, uniform_mass(keep, share))
    tl.store(results + 13 * cases + case, probability_mass(keep, share, t))
    tl.store(results + 14 * cases + case, below_moved(m_to, m_from, masses, below))
    tl.store(results + 15 * cases + case, hot_loss(mass, m_from - x, log_of_d))
    tl.store(results + 16 * cases + case, spread_loss(masses, below, log_of_d))
    tl.store(results + 17 * cases + case, gradient_scale(factor, mass, masses, inverse))
    tl.store(
        results + 18 * cases + case,
        hot_gradient(factor, mass, masses, x, e, m_from, ties, rest, inverse),
    )
    tl.store(results + 19 * cases + case, less_mass(e, mass, -factor))
    u = below - 4
    all = tl.where(is_finite(m_from), total(ties, top, rest), rest)
    scaled_slope = number_at(numbers, 13, cases, case)
    scaled_outer = number_at(numbers, 12, cases, case)
    inner = number_at(numbers, 14, cases, case)
    outer = number_at(numbers, 15, cases, case)
    inverse_outer = number_at(numbers, 16, cases, case)
    slope = number_at(numbers, 17, cases, case)
    capped = transformed(inner, outer, u, True)
    capped_maximum = transformed(inner, outer, m_from, True)
    tl.store(results + 20 * cases + case, tanh_small(t - 0.5))
    tl.store(results + 21 * cases + case, tanh(u))
    tl.store(results + 22 * cases + case, tanh(m_from))
    for k in tl.static_range(8):
        tl.store(results + (23 + k) * cases + case, number_at(numbers, 12 + k, cases, case))
    tl.store(results + 31 * cases + case, transformed(scaled_outer, scaled_outer, m_from, False))
    tl.store(results + 32 * cases + case, capped_maximum)
    tl.store(results + 33 * cases + case, capped)
    tl.store(results + 34 * cases + case, logit_slope(scaled_outer, scaled_slope, m_from, False))
    tl.store(results + 35 * cases + case, logit_slope(inverse_outer, slope, capped_maximum, True))
    tl.store(results + 36 * cases + case, logit_slope(inverse_outer, slope, capped, True))
    tl.store(results + 37 * cases + case, term_below(smoothing, m_from))
    tl.store(
        results + 38 * cases + case, terms_below_moved(m_to, m_from, all, unit_ratio(m_from, m_to), below)
    )
    tl.store(results + 39 * cases + case, lse_of(m_from, log_of_d))
    tl.store(results + 40 * cases + case, log_prob_of(m_from - x, log_of_d))
    tl.store(results + 41 * cases + case, entropy_of(log_of_d, below))
    tl.store(results + 42 * cases + case, squared_lse(smoothing, weight, x))
    tl.store(results + 43 * cases + case, common_pull(factor, masses, smoothing, weight, x, t))
    tl.store(results + 44 * cases + case, term_pull(factor, t, e, below))
    tl.store(results + 45 * cases + case, mass_below_moved(m_to, m_from, masses, below))
    one, nothing = ties * 0 + 1, ties * 0
    larger = (m_to, one, t, smoothing, weight, e, nothing)
    part = merge_part(m_from, ties, rest, e, masses, below, x, *larger)
    for k in tl.static_range(7):
        tl.store(results + (46 + k) * cases + case, part[k])


def host_numbers(line: list[float]) -> list[float]:
    """Those that the host makes of options."""
    ties, e, t, weight = line[2], line[5], line[6], line[7]
    options = RowOptions(logit_scale=weight, temperature=e + 0.5)
    _, scaled_outer, _, _, scaled_slope = logit_numbers(options)
    inner, outer, _, inverse, slope = logit_numbers(options._replace(softcap=5 * t + 0.5))
    capped = logit_numbers(RowOptions(softcap=ties - 1))[2]
    transforms = transforms_logits(RowOptions(temperature=ties))
    return [scaled_outer, scaled_slope, inner, outer, inverse, slope, float(capped), float(transforms)]


def main() -> None:
    wide = sys.argv[1] == "double"
    dtype, kernel_dtype = (torch.float64, tl.float64) if wide else (torch.float32, tl.float32)
    lines = [[float(word) for word in line.split()] for line in sys.stdin]
    lines = [line + host_numbers(line) for line in lines]
    numbers = torch.tensor(lines, dtype=torch.float64).t().contiguous().to(dtype)
    results = torch.full((len(RESULTS), len(lines)), float("nan"), dtype=dtype)
    evaluate[(1,)](numbers, results, len(lines), CASES=len(lines), DTYPE=kernel_dtype)
    for line in results.t().double().tolist():
        print(*map(repr, line))


if __name__ == "__main__":
    main()
