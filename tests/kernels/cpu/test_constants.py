# SPDX-License-Identifier: Apache-2.0
"""The committed constants of exp and log are those that the script derives."""

from __future__ import annotations

import importlib.util
import itertools
from types import ModuleType

import pytest
from places import ROOT


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    pytest.importorskip("mpmath", reason="the derivation needs mpmath")
    spec = importlib.util.spec_from_file_location("derive_constants", ROOT / "tools" / "derive_constants.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("function", ("exp", "log", "tanh"))
def test_float_constants_are_derived(tool: ModuleType, function: str) -> None:
    header = (ROOT / f"csrc/common/{function}_constants.h").read_text()
    assert "\n".join(tool.section("float", tool.DEGREES[function][0], function)) in header


@pytest.mark.parametrize("function", ("exp", "log", "tanh"))
def test_the_triton_kernels_have_the_same_coefficients(tool: ModuleType, function: str) -> None:
    text = (ROOT / "softkern/triton/constants.py").read_text()
    assert "\n".join(tool.triton_numbers(function, "float")) in text
    # tanh has no ln 2.
    for dtype, spare in zip(("float", "double"), tool.TRITON_SPARE.get(function, ()), strict=False):
        high, low = tool.split_ln2(dtype, spare)
        assert f"({float(high)!r}, {float(low)!r})" in text
        for k in (1, 2**spare - 1):  # exact products, without a fused multiply-add too
            assert tool.round_to(k * high, dtype) == k * high


def test_chosen_numbers_are_written_and_within_their_limits(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (ROOT / "csrc/common/stats_constants.h").read_text() == tool.stats_header()
    text = (ROOT / "softkern/triton/constants.py").read_text()
    assert f"DIRECT, MOST_APART = {float(tool.DIRECT)}, {float(tool.MOST_APART)}\n" in text
    assert "SPAN_32, SPAN_64 = {}, {}\n".format(*map(float, tool.SPANS)) in text
    assert f"0x{tool.half_root('float'):X}, 0x{tool.half_root('double'):X}\n" in text
    assert tool.chosen_numbers_hold()
    for name, wrong in (("SPANS", (103, 746)), ("SPANS", (105, 745)), ("DIRECT", 128), ("MOST_APART", 1090)):
        with monkeypatch.context() as patch:
            patch.setattr(tool, name, wrong)
            assert not tool.chosen_numbers_hold(), name


def test_the_parts_of_ln2_add_up(tool: ModuleType) -> None:
    for dtype, spare in (("float", 4), ("double", 6)):
        high, low = tool.split_ln2(dtype, spare)
        # The sum is known to twice the digits of a number, less the spare ones.
        digits = {"float": 48, "double": 106}[dtype] - spare
        assert abs(tool.mp.log(2) - (high + low)) < tool.mpf(2) ** -digits
        for k in (1, 2**spare - 1):
            assert tool.round_to(k * high, dtype) == k * high


def test_a_fit_levels_its_error(tool: ModuleType) -> None:
    # A minimax polynomial's error has one extremum more than it has coefficients, all of the same size.
    half_width = tool.mpf("0.35")
    coefficients, level = tool.minimax([0, 1, 2], {}, half_width)

    def error(r: float) -> float:
        return float(1 - sum(c * r**k for k, c in coefficients.items()) * tool.mp.exp(-r))

    grid = [float(half_width) * (i / 500 - 1) for i in range(1001)]
    signs = [error(r) > 0 for r in grid]
    assert sum(a != b for a, b in itertools.pairwise(signs)) == 3
    assert max(abs(error(r)) for r in grid) == pytest.approx(float(level), rel=0.02)
