# SPDX-License-Identifier: Apache-2.0
"""The compiler's output for the Triton kernels; it needs no GPU.

EVERY_KERNEL=1 compiles all ops, options, dtypes, shapes and architectures (minutes), EVERY_KERNEL=third a
third of the combinations, with each of these in some; else one op of each kind is compiled.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys

import pytest
import torch
from places import ROOT

triton = pytest.importorskip("triton", reason="the Triton backend needs Triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="where Triton interprets it does not compile"
)
EVERY = os.environ.get("EVERY_KERNEL", "")


def load_tool():
    name = "compile_triton"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


if os.environ.get("TRITON_INTERPRET") != "1":
    tool = load_tool()
    SHAPES = ((4096, 1000), (4096, 50257), (65536, 10)) if EVERY else ((4096, 1000),)
    DTYPES = tool.DTYPES if EVERY else (torch.float32, torch.bfloat16)
    CASES = [(c, sm) for c in tool.cases(DTYPES, SHAPES) for sm in tool.ARCHITECTURES]
    if EVERY:  # the other shapes differ in the plan, not in the architecture
        CASES += [(c, 90) for c in tool.cases((torch.float32, torch.bfloat16), tool.SHAPES)]
        CASES = list(dict.fromkeys(CASES))
    if EVERY == "third":  # every third but for a step after four, or a shape would be left out
        turns = [(i + i // 4) % len(tool.ARCHITECTURES) for i in range(len(CASES))]
        CASES = [case for case, turn in zip(CASES, turns, strict=True) if turn == 0]
    elif not EVERY:
        CASES = [(c, sm) for c, sm in CASES if sm == 90 and len(c.options) in (0, 1, 4)]
        CASES.append((tool.Case("cross_entropy", torch.bfloat16, (64, 1000, 4096)), 80))
    CASES = list(dict.fromkeys(CASES))
else:
    CASES = []


# Of a thread. A tile of positions keeps numbers of several rows in each. The gradient of several indices
# beside all statistics has more numbers of a row than any other kernel; at 168, three programs share a
# multiprocessor.
CEILING, CEILING_OF_POSITIONS, CEILING_OF_ROW_LOSSES = 128, 255, 168
WIDE = {"v4.b32", "v2.b64"}  # 16 bytes


@pytest.mark.parametrize(("case", "sm"), CASES, ids=[f"{c.name} sm_{sm}" for c, sm in CASES])
def test_nothing_is_spilled_and_aligned_rows_are_read_16_bytes_at_once(case, sm):
    launches = tool.launches_of(case)
    assert launches
    for launch in launches:
        made = tool.compile_for(launch, sm)
        assert (made.stack, made.local) == (0, 0)
        positions = launch.of_classes and launch.arguments["BLOCK_R"] == 64
        of_rows = CEILING_OF_ROW_LOSSES if case.op == "row_losses" else CEILING
        assert made.registers <= (CEILING_OF_POSITIONS if positions else of_rows)
        assert made.registers * 32 * launch.warps <= 65536
        together = 16 if len(case.shape) == 2 else min(16, 4 * case.dtype.itemsize)  # bytes; of 4 positions
        aligned = case.shape[-1] * case.dtype.itemsize % together == 0
        assert (launch.arguments["ALIGN_C"] * launch.arguments["ALIGN_R"] > 1) == aligned
        if aligned and launch.of_classes:
            # Four numbers of 16 bits: positions of a thread, or what a thread has of short rows.
            short = launch.arguments["ALIGN_R"] > 1 or launch.arguments["BLOCK_C"] <= 64
            wide = {"v2.b32", "b64"} if short and case.dtype.itemsize == 2 else WIDE
            merges_only = launch.arguments.get("STAGE") == 2 and launch.arguments.get("grad_ptr", 0) is None
            assert merges_only or wide & set(made.loads)
            if launch.arguments.get("STAGE") != 1 and launch.arguments.get("grad_ptr", 0) is not None:
                assert wide & set(made.stores)


@pytest.mark.parametrize("case", tool.MERGES if CASES else [], ids=lambda c: c.name)
def test_a_merge_spills_nothing(case):
    for sm in tool.ARCHITECTURES if EVERY else (90,):
        for launch in tool.launches_of(case):
            made = tool.compile_for(launch, sm)
            assert (made.stack, made.local) == (0, 0)
            assert made.registers <= CEILING_OF_ROW_LOSSES


def test_assertions_are_the_kernels_own():
    """Triton's, of integers that wrap, hold of no NaN's bits."""
    (launch,) = tool.launches_of(tool.Case("cross_entropy", torch.float32, (64, 10), ("gradient",)))
    asserted = re.findall(r'tt\.assert [^"]*"([^"]*)"', tool.binary_of(launch, 90).asm["ttir"])
    assert asserted and set(asserted) == {"softkern.cross_entropy: Target is out of bounds."}


def test_rows_that_are_not_aligned_are_not_read_as_if_they_were():
    case = tool.Case("softmax", torch.float32, (4096, 1001))
    (launch,) = tool.launches_of(case)
    assert tool.compile_for(launch, 90).loads == ["b32"]


def test_a_number_from_the_device_is_never_waited_for():
    """Tensors of the meta device have no numbers: whoever asks for one raises."""
    with pytest.raises(RuntimeError, match="meta"):
        torch.empty((), device="meta").item()
    for case in tool.cases(tool.DTYPES, ((5, 7), (1, 200000), (3, 40, 5))):
        assert tool.launches_of(case), case.name
    assert all(map(tool.launches_of, tool.MERGES))


@pytest.mark.parametrize("committed", [ROOT / "docs/triton.json"], ids=["triton.json"])
def test_the_page_shows_the_committed_reports(committed):
    found = json.loads(committed.read_text())
    page = (ROOT / "docs/triton.md").read_text()
    assert tool.with_table(page, found) == page
    assert {row["sm"] for row in found["rows"]} == set(tool.ARCHITECTURES)
    assert all(row["stack"] == row["local"] == 0 for row in found["rows"])
