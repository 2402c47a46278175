# SPDX-License-Identifier: Apache-2.0
"""The formulas of csrc/common/{stats,mass,loss,tanh,row_losses,parts}.h and of softkern/triton/formulas.py
are the same: their names, and what they make of the same numbers."""

from __future__ import annotations

import math
import os
import random
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT, SUPPORT
from programs import compiled

HEADERS = ("stats", "mass", "loss", "tanh", "row_losses", "parts")
HELPERS = {"is_finite"}  # of Triton's, which C++ has in the trait that computes
# These are compared by themselves: they may be as small as any number.
RELATIVE = {"unit_ratio", "top_term", "d_less_one", "log_d", "tanh_small", "tanh"}

pytestmark = pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="no C++ sources beside these tests")


def functions_of(header: str) -> list[str]:
    text = (ROOT / f"csrc/common/{header}.h").read_text()
    result = r"SK_INLINE (?:typename S::Reg|void)|inline (?:MassNumbers<A>|LogitNumbers<A>|bool)"
    return re.findall(rf"^(?:{result}) (\w+)\(", text, flags=re.M)


def test_every_formula_has_its_namesake_in_the_same_order() -> None:
    text = (ROOT / "softkern/triton/formulas.py").read_text()
    ours = [name for name in re.findall(r"^def (\w+)\(", text, flags=re.M) if name not in HELPERS]
    formulas = [name for header in HEADERS for name in functions_of(header)]
    assert len(formulas) > 30
    assert ours == formulas


def problems() -> list[list[float]]:
    """For formulas.cpp: from, to, ties, rest, x, e, t, weight, smoothing, factor, masses, below."""
    generator = random.Random(1)
    offsets = (0.0, 5.0, 700.0, 1023.5, 1025.0, -1500.0, 1e4, 1e6)
    found = []
    for case in range(256):
        m = generator.choice(offsets) + generator.uniform(-3, 3)
        m_from = (-math.inf, math.inf, -math.inf, m)[min(case, 3)]
        m_to = max(m_from, m + generator.choice((0.0, 0.5, 20.0, 80.0, 400.0, 1500.0)))
        ties = float(generator.choice((1, 1, 2, 7)))
        hits = generator.random() < 0.5 and math.isfinite(m_from)
        x = m_from if hits else m - generator.uniform(0, 9)
        row = [m_from, m_to, ties, generator.random() * 3, x, generator.random(), generator.random()]
        others = [generator.uniform(0.5, 2), generator.choice((0.0, 0.1)), generator.uniform(-2, 2)]
        masses = 0.0 if case == 2 else generator.random()
        found.append([*row, *others, masses, generator.uniform(0, 9)])
    # As floats, which doubles are too.
    return [list(struct.unpack(f"{len(row)}f", struct.pack(f"{len(row)}f", *row))) for row in found]


def values(command: list[str], text: str, **env: str) -> list[list[float]]:
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, env={**os.environ, **env}, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [[float(word) for word in line.split()] for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    flags = ("-O1", "-w", "-ffp-contract=off", "-DSOFTKERN_EMULATED")
    return compiled(tmp_path_factory.mktemp("formulas") / "formulas", *flags, "tests/native/formulas.cpp")


@pytest.mark.parametrize(("dtype", "ulp"), (("float", 2.0**-23), ("double", 2.0**-52)))
def test_both_make_the_same_of_the_same_numbers(program: Path, dtype: str, ulp: float) -> None:
    """Within some units in the last place of the largest number that goes into a sum: Triton's interpreter
    rounds products before it adds them."""
    pytest.importorskip("triton", reason="the Triton backend needs Triton")
    checks = SUPPORT / "formula_checks.py"
    text = "\n".join(" ".join(map(repr, row)) for row in problems()) + "\n"
    names = re.findall(r'^    "([^"]+)",$', checks.read_text(), flags=re.M)
    ours = values([str(program), dtype], text)
    theirs = values([sys.executable, str(checks), dtype], text, TRITON_INTERPRET="1")
    assert len(ours) == len(theirs) == 256
    seen: dict[str, set[float]] = {name: set() for name in names}
    for problem, mine, other in zip(problems(), ours, theirs, strict=True):
        size = max(1.0, *(abs(v) for v in problem[2:] if math.isfinite(v)))
        for name, a, b in zip(names, mine, other, strict=True):
            seen[name].add(a)
            if math.isnan(a) or math.isinf(a) or a == b:
                assert repr(a) == repr(b) or a == b, (name, problem, a, b)
                continue
            scale = abs(a) if name in RELATIVE else max(abs(a), size)
            assert abs(a - b) <= 8 * ulp * scale, (name, problem, a, b)
    assert not [name for name, found in seen.items() if len(found) < 2]
