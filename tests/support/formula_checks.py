# SPDX-License-Identifier: Apache-2.0
"""What Triton's formulas make of numbers, as tests/native/formulas.cpp prints it for those of C++.

As a script, in Triton's interpreter: formula_checks.py float|double, lines of numbers on the input."""

from __future__ import annotations

import sys

import torch
import triton
import triton.language as tl

from softkern.triton.elementary import inverse_of
from softkern.triton.formulas import (
    below_moved,
    d_less_one,
    finite,
    gradient_scale,
    hot_gradient,
    hot_loss,
    hot_mass,
    less_mass,
    log_d,
    move_to,
    origin_of,
    power_of,
    probability_mass,
    spread_loss,
    top_term,
    total,
    uniform_mass,
    unit_ratio,
    weighted,
)

NUMBERS = 12
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


def main() -> None:
    wide = sys.argv[1] == "double"
    dtype, kernel_dtype = (torch.float64, tl.float64) if wide else (torch.float32, tl.float32)
    lines = [[float(word) for word in line.split()] for line in sys.stdin]
    numbers = torch.tensor(lines, dtype=torch.float64).t().contiguous().to(dtype)
    results = torch.full((len(RESULTS), len(lines)), float("nan"), dtype=dtype)
    evaluate[(1,)](numbers, results, len(lines), CASES=len(lines), DTYPE=kernel_dtype)
    for line in results.t().double().tolist():
        print(*map(repr, line))


if __name__ == "__main__":
    main()
