# SPDX-License-Identifier: Apache-2.0
"""How long rows are divided among blocks (csrc/cuda/plan.h): the numbers that the predictions of docs/cuda.md
rest on. The plans are those of the kernels, compiled for the emulator's device."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Container, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from programs import compiled

CLASSES = (16384, 32000, 50257, 65536, 128256, 151936, 262144)
SIZES = {"float": 4, "softkern::BFloat16": 2}
CONTIGUOUS = ("aligned", "unaligned")
# Of compute capability 9.0: shared memory of a multiprocessor, what each block takes of it besides its own,
# registers, and those of a thread of a kernel with rows in shared memory.
SHARED, RESERVED, REGISTERS, OF_A_THREAD = 228 << 10, 1 << 10, 65536, 80


class Plan(NamedTuple):
    kind: str
    tensors: int
    classes: int
    blocks: int
    threads: int
    shared: int
    rows: int  # of a block
    way: str

    def on_a_multiprocessor(self) -> int:
        return min(SHARED // (self.shared + RESERVED), REGISTERS // (self.threads * OF_A_THREAD))


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plans")

    def plans_of(element: str) -> Path:
        target = folder / element.rpartition(":")[2]
        if not target.exists():
            flags = ("-DSOFTKERN_EMULATED", f"-DSOFTKERN_ELEMENT={element}")
            compiled(target, *flags, "tests/native/plans.cpp", "csrc/cuda/device.cpp")
        return target

    return plans_of


def plans(
    program: Path, classes: Sequence[int] = CLASSES, kinds: Container[str] = CONTIGUOUS, **device: str
) -> list[Plan]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("SIMT_")}
    command = [program, *map(str, classes)]
    lines = subprocess.check_output(command, text=True, env={**env, **device}).splitlines()
    assert len(lines) == 6 * len(classes)
    found = []
    for line in lines:
        name, *numbers, way = line.split(" ", 7)
        if name in kinds:
            found.append(Plan(name, *map(int, numbers), way))
    return found


def is_shared(plan: Plan) -> bool:
    return plan.way.endswith("in shared memory")


@pytest.mark.parametrize("element", SIZES)
def test_long_rows_are_in_three_blocks_of_a_multiprocessor(program, element):
    """While one of them computes, the others' copies are under way: at least 36 KiB hide the memory's
    latency at the speed of an H200."""
    size = SIZES[element]
    forward = [plan for plan in plans(program(element)) if plan.tensors == 1]
    for plan in forward:
        assert is_shared(plan) == (plan.classes * size > 64 << 10), plan
        if is_shared(plan):
            assert plan.on_a_multiprocessor() >= 3, plan
            assert plan.on_a_multiprocessor() * plan.shared >= 110 << 10, plan
            assert plan.blocks * plan.shared >= plan.classes * size, plan
    assert {plan.kind for plan in forward if is_shared(plan)} == set(CONTIGUOUS)


@pytest.mark.parametrize("element", SIZES)
def test_a_backward_reads_no_row_twice(program, element):
    backward = [plan for plan in plans(program(element)) if plan.tensors == 2]
    assert all("twice" not in plan.way for plan in backward)
    long = [plan for plan in backward if plan.classes > 131072]
    assert all(is_shared(plan) and plan.on_a_multiprocessor() >= 1 for plan in long)
    if element != "float":
        assert all(plan.on_a_multiprocessor() >= 3 for plan in long)


@pytest.mark.parametrize("element", SIZES)
def test_rows_whose_classes_are_apart_are_read_once(program, element):
    """By whole sectors of memory, and with as many bytes under way."""
    size = SIZES[element]
    for plan in plans(program(element), (33, 64, 100, 256, 1000, 1700, 3400), ("columns",)):
        if plan.tensors * plan.classes > 3400:
            continue
        assert plan.way == "columns, in shared memory", plan
        assert plan.rows * size == 64, plan
        assert plan.shared >= plan.tensors * plan.classes * plan.rows * size, plan
        together = plan.on_a_multiprocessor()
        assert together * plan.shared >= 36 << 10, plan
        if plan.tensors * plan.classes <= 1000:
            assert together >= 3, plan


def test_without_clusters_a_block_has_what_a_device_gives_it(program):
    """Compute capability 8.0: 163 KiB; 8.6: 99 KiB."""
    for kib in (163, 99):
        device = {"SIMT_CLUSTERS": "0", "SIMT_SHARED_KIB": str(kib)}
        for plan in plans(program("float"), **device):
            if plan.tensors == 1 and plan.classes * 4 > 64 << 10:
                assert (plan.blocks, is_shared(plan)) == (1, plan.classes * 4 < (kib - 1) << 10), plan
                assert plan.shared <= kib << 10, plan
