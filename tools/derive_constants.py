# SPDX-License-Identifier: Apache-2.0
"""Derive the constants of softkern's exp, log, tanh and row statistics; write softkern/triton/constants.py
and csrc/common/{exp,log,tanh,stats}_constants.h.

exp(x) = 2^n * p(r),  n = round(x / ln 2),  r = x - n ln 2,  |r| <= ln(2)/2,
p(r) = 1 + r + c2 r^2 + ... + ck r^k.

log(1 + f) = f - (f^2/2 - s (f^2/2 + R(s^2))),  s = f / (2 + f),  sqrt(1/2) <= 1 + f < sqrt(2),
R(z) = z (c0 + c1 z + ... + ck z^k),  the rest of log(1 + f) = 2 (s + s^3/3 + s^5/5 + ...).

tanh(u) = u + u z (c0 + c1 z + ... + ck z^k),  z = u^2,  |u| <= TANH_SMALL.

The c's minimise the largest *relative* error of the result (Lawson's iteration in 60 digits).  They are
rounded to the working precision one at a time, lowest power first, and the remaining ones are fitted again
after each rounding, so that a coefficient's rounding error is absorbed by those above it.

Some numbers are not derived but chosen, within the limits that `chosen_numbers_hold` checks.

    python tools/derive_constants.py           # print the files
    python tools/derive_constants.py --write   # write them
"""

from __future__ import annotations

import argparse
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path

from mpmath import mp, mpf

mp.dps = 60
ROOT = Path(__file__).resolve().parent.parent


def round_to(value: mpf, dtype: str) -> mpf:
    """Nearest value of the format. float32 is rounded from float64, which is harmless: 53 > 2 * 24 + 2."""
    fmt = {"float": "f", "double": "d"}[dtype]
    return mpf(struct.unpack(fmt, struct.pack(fmt, float(value)))[0])


def chebyshev(low: mpf, high: mpf, count: int) -> list[mpf]:
    middle, half = (low + high) / 2, (high - low) / 2
    return [middle - half * mp.cos(mp.pi * (2 * i + 1) / (2 * count)) for i in range(count)]


def fit(
    powers: list[int],
    fixed: dict[int, mpf],
    grid: list[mpf],
    function: Callable[[mpf], mpf],
    weight: Callable[[mpf], mpf],
) -> tuple[dict[int, mpf], mpf]:
    """Coefficients of `powers` that minimise the largest |function(x) - p(x)| weight(x) on the grid.

    This is Lawson's iteration: weighted least squares, where each weight is multiplied by the remaining
    error. A Remez exchange need not converge: once low coefficients are fixed, all free powers vanish at 0
    and are not a Haar system there.
    """
    scale = [weight(x) for x in grid]
    target = [
        s * (function(x) - sum(c * x**k for k, c in fixed.items())) for x, s in zip(grid, scale, strict=True)
    ]
    basis = [[s * x**k for k in powers] for x, s in zip(grid, scale, strict=True)]
    weights = [mpf(1)] * len(grid)
    best, level = {}, mp.inf
    for _ in range(40):
        normal = mp.matrix(len(powers))
        rhs = mp.matrix(len(powers), 1)
        for w, row, t in zip(weights, basis, target, strict=True):
            for i, u in enumerate(row):
                rhs[i] += w * u * t
                for j, v in enumerate(row):
                    normal[i, j] += w * u * v
        solution = list(mp.lu_solve(normal, rhs))
        error = [
            abs(t - sum(c * u for c, u in zip(solution, row, strict=True)))
            for t, row in zip(target, basis, strict=True)
        ]
        if max(error) < level:
            best, level = dict(zip(powers, solution, strict=True)), max(error)
        weights = [w * e for w, e in zip(weights, error, strict=True)]
        total = sum(weights)
        weights = [w / total for w in weights]
    return best, level


def minimax(powers: list[int], fixed: dict[int, mpf], half_width: mpf) -> tuple[dict[int, mpf], mpf]:
    """Coefficients of exp's polynomial: least maximal relative error on [-half_width, half_width]."""
    grid = chebyshev(-half_width, half_width, 16 * len(powers))
    return fit(powers, fixed, grid, mp.exp, lambda r: mp.exp(-r))


@cache
def derive_exp(dtype: str, degree: int) -> tuple[dict[int, mpf], mpf]:
    half_width = mp.log(2) / 2 * (1 + mpf(2) ** -20)  # a little wider, because n is rounded in floating point
    fixed = {0: mpf(1), 1: mpf(1)}
    for power in range(2, degree + 1):
        coefficients, level = minimax(list(range(power, degree + 1)), fixed, half_width)
        fixed[power] = round_to(coefficients[power], dtype)
    return fixed, level


@cache
def derive_log(dtype: str, degree: int) -> tuple[dict[int, mpf], mpf]:
    root = mp.sqrt(2)
    end = ((root - 1) / (root + 1)) ** 2 * (1 + mpf(2) ** -20)  # s^2 at both ends of the range of 1 + f

    def rest(z: mpf) -> mpf:  # R(z) / z
        s = mp.sqrt(z)
        return (2 * mp.atanh(s) / s - 2) / z

    def weight(z: mpf) -> mpf:  # of an error of R(z) / z in log(1 + f) = 2 atanh(s)
        s = mp.sqrt(z)
        return s * z / (2 * mp.atanh(s))

    fixed: dict[int, mpf] = {}
    for power in range(degree + 1):
        powers = list(range(power, degree + 1))
        coefficients, level = fit(powers, fixed, chebyshev(mpf(0), end, 16 * len(powers)), rest, weight)
        fixed[power] = round_to(coefficients[power], dtype)
    return fixed, level


# Below this |u|, tanh(u) is a polynomial; from it on, 1 - 2 / (exp(2 |u|) + 1), which has lost half a digit
# there. Up to TANH_MOST (float, double), exp is needed: beyond, tanh rounds to 1.
TANH_SMALL, TANH_MOST = mpf("0.5625"), (10, 20)


@cache
def derive_tanh(dtype: str, degree: int) -> tuple[dict[int, mpf], mpf]:
    end = TANH_SMALL**2 * (1 + mpf(2) ** -20)

    def rest(z: mpf) -> mpf:  # (tanh(u)/u - 1) / z
        u = mp.sqrt(z)
        return (mp.tanh(u) / u - 1) / z

    def weight(z: mpf) -> mpf:  # of an error of `rest` in tanh(u)
        u = mp.sqrt(z)
        return u * z / mp.tanh(u)

    fixed: dict[int, mpf] = {}
    for power in range(degree + 1):
        powers = list(range(power, degree + 1))
        coefficients, level = fit(powers, fixed, chebyshev(mpf(0), end, 16 * len(powers)), rest, weight)
        fixed[power] = round_to(coefficients[power], dtype)
    return fixed, level


DERIVE = {"exp": derive_exp, "log": derive_log, "tanh": derive_tanh}


def literal(value: mpf, dtype: str) -> str:
    return float(value).hex() + ("f" if dtype == "float" else "")


def split_ln2(dtype: str, spare_bits: int) -> tuple[mpf, mpf]:
    """ln 2 as a sum of two numbers; the first one ends in that many zero bits."""
    bits = {"float": 24, "double": 53}[dtype] - spare_bits
    high = mp.floor(mp.log(2) * mpf(2) ** bits) / mpf(2) ** bits if spare_bits else mp.log(2)
    high = round_to(high, dtype)
    return high, round_to(mp.log(2) - high, dtype)


# Whole numbers: exp rounds to 0 below their negatives, in float and double.
SPANS = (105, 746)
# Where |m| is this or more, logits are shifted by the maximum m before exp: x - m is exact for x from m/2 on,
# and the terms of logits below that do not count.
DIRECT = 1024
# The largest distance between the shifts of two parts of a row that is told from larger ones where terms of
# one part become terms of the other: beyond it, they do not count there.
MOST_APART = 1400


def chosen_numbers_hold() -> bool:
    # Half of the smallest number rounds to 0. Beside a maximum's terms, which are above 1/2, nothing below
    # twice the digits of a number counts.
    round_to_0, counts = (mpf(2) ** -150, mpf(2) ** -1075), mpf(2) ** -107
    spans = all(mp.exp(-span) < least for span, least in zip(SPANS, round_to_0, strict=True))
    digits = zip(TANH_MOST, (24, 53), strict=True)
    ones = all(mp.tanh(most) > 1 - mpf(2) ** -(bits + 1) for most, bits in digits)
    return spans and ones and mp.exp(-mpf(DIRECT) / 2) < counts and mp.exp(DIRECT - MOST_APART) < counts


def half_root(dtype: str) -> int:
    """The bits of sqrt(1/2)."""
    formats = {"float": ("f", "I"), "double": ("d", "Q")}[dtype]
    root = float(mp.sqrt(mpf(1) / 2))
    return int(struct.unpack(formats[1], struct.pack(formats[0], root))[0])


def section(dtype: str, degree: int, function: str = "exp") -> list[str]:
    exp, tanh = function == "exp", function == "tanh"
    fixed, level = DERIVE[function](dtype, degree)
    # k ln2High is exact for the k of sums of up to 2^8 (double 2^20) classes; exp's fma needs no such room.
    high, low = split_ln2(dtype, 0 if exp else {"float": 4, "double": 6}[dtype])
    bits = {"float": 24, "double": 53}[dtype]
    lines = [
        "template <>",
        f"struct {function.capitalize()}Constants<{dtype}> {{",
        f"  // Largest relative error of the polynomial: {mp.nstr(level * mpf(2) ** bits, 3)} ulp.",
        f"  static constexpr int kDegree = {degree};",
    ]
    if tanh:
        suffix, most = "f" if dtype == "float" else "", TANH_MOST[("float", "double").index(dtype)]
        limits = f"kSmall = {float(TANH_SMALL)}{suffix}, kMost = {most}.0{suffix}"
        lines.append(f"  static constexpr {dtype} {limits};")
    elif not exp:
        unsigned, root = {"float": "uint32_t", "double": "uint64_t"}[dtype], half_root(dtype)
        lines.append(f"  static constexpr {unsigned} kHalfRoot = {root:#x};  // the bits of sqrt(1/2)")
    if exp:
        suffix = "f" if dtype == "float" else ""
        span = SPANS[("float", "double").index(dtype)]
        lines.append(
            f"  static constexpr {dtype} kSpan = {span}.0{suffix};  // exp(x) rounds to 0 below -kSpan"
        )
        lines.append(f"  static constexpr {dtype} kLog2E = {literal(round_to(1 / mp.log(2), dtype), dtype)};")
    variable = "r" if exp else "z"
    numbers = [literal(fixed[k], dtype) + "," for k in range(degree + 1)]
    width = max(len(number) for number in numbers)
    if not tanh:
        lines.append(f"  static constexpr {dtype} kLn2High = {literal(high, dtype)};")
        lines.append(f"  static constexpr {dtype} kLn2Low = {literal(low, dtype)};")
    lines += [
        "  // A function, and its table its own: code of a GPU can't read a class's array.",
        f"  static SK_INLINE constexpr {dtype} c(int k) {{",
        f"    constexpr {dtype} all[{degree + 1}] = {{",
        *(f"        {number:<{width}}  // {variable}^{k}" for k, number in enumerate(numbers)),
        "    };",
        "    return all[k];",
        "  }",
        "};",
    ]
    return lines


# Degrees of the float and the double polynomial.
DEGREES = {"exp": (6, 11), "log": (3, 6), "tanh": (4, 10)}


def header(function: str) -> str:
    in_float, in_double = DEGREES[function]
    lines = [
        "// SPDX-License-Identifier: Apache-2.0",
        "// Generated by tools/derive_constants.py, which says what the numbers are and how they were found.",
        "#pragma once",
        "",
        *(["#include <cstdint>", ""] if function == "log" else []),
        '#include "inline.h"',
        "",
        "namespace softkern {",
        "namespace {",
        "",
        "template <class A>",
        f"struct {function.capitalize()}Constants;",
        "",
        *section("float", in_float, function),
        "",
        *section("double", in_double, function),
        "",
        "}  // namespace",
        "}  // namespace softkern",
    ]
    return "\n".join(lines) + "\n"


def stats_header() -> str:
    lines = [
        "// SPDX-License-Identifier: Apache-2.0",
        "// Generated by tools/derive_constants.py, which says what the numbers are.",
        "#pragma once",
        "",
        "namespace softkern {",
        "namespace {",
        "",
        f"constexpr int kDirect = {DIRECT};",
        f"constexpr int kMostApart = {MOST_APART};",
        "",
        "}  // namespace",
        "}  // namespace softkern",
    ]
    return "\n".join(lines) + "\n"


# Zero bits at the end of the first part of ln 2, in float and double. Its products with the n of exp (below
# 2^11) and the k of log (below 2^6) are then exact even without fused multiply-adds.
TRITON_SPARE = {"exp": (12, 12), "log": (6, 6)}


def triton_numbers(function: str, dtype: str) -> list[str]:
    i = ("float", "double").index(dtype)
    bits, degree = (32, 64)[i], DEGREES[function][i]
    fixed, _ = DERIVE[function](dtype, degree)
    name = f"{function.upper()}_{bits}"
    lines = [f"{name} = (", *(f"    {float(fixed[k])!r}," for k in range(degree + 1)), ")"]
    if function in TRITON_SPARE:
        parts = ", ".join(repr(float(part)) for part in split_ln2(dtype, TRITON_SPARE[function][i]))
        lines.append(f"{function.upper()}_LN2_{bits} = ({parts})")
    return lines


def triton_module() -> str:
    lines = [
        "# SPDX-License-Identifier: Apache-2.0",
        '"""Generated by tools/derive_constants.py, which says what the numbers are and how they were found.',
        "",
        "Coefficients from the lowest power on; ln 2 as the sum of two numbers, the first with few digits.",
        '"""',
        "",
        f"LOG2E = {float(1 / mp.log(2))!r}",
        f"SPAN_32, SPAN_64 = {float(SPANS[0])!r}, {float(SPANS[1])!r}",
        "# The bits of sqrt(1/2).",
        f"HALF_ROOT_32, HALF_ROOT_64 = 0x{half_root('float'):X}, 0x{half_root('double'):X}",
        f"DIRECT, MOST_APART = {float(DIRECT)!r}, {float(MOST_APART)!r}",
        f"TANH_SMALL, TANH_MOST_32, TANH_MOST_64 = {float(TANH_SMALL)}, {TANH_MOST[0]}.0, {TANH_MOST[1]}.0",
    ]
    for function in DEGREES:
        for dtype in ("float", "double"):
            lines += ["", *triton_numbers(function, dtype)]
    return "\n".join(lines) + "\n"


def files() -> dict[Path, str]:
    common = ROOT / "csrc/common"
    return {
        **{common / f"{function}_constants.h": header(function) for function in DEGREES},
        common / "stats_constants.h": stats_header(),
        ROOT / "softkern/triton/constants.py": triton_module(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the files")
    write = parser.parse_args().write
    assert chosen_numbers_hold()
    for path, text in files().items():
        if write:
            path.write_text(text)
        else:
            print(text, end="")


if __name__ == "__main__":
    main()
