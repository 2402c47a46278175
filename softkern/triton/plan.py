# SPDX-License-Identifier: Apache-2.0
"""Which program computes which rows: layouts, block sizes, warps. This module knows no kernel and launches
nothing.

A plan depends on the number of classes, the dtype, the sizes after the classes and the strides. It never
depends on the sizes before the classes, because the bits of a row must not depend on the batch. The number of
rows decides only whether one program computes all blocks of a long row, or one program computes each block.
Both add the blocks up in the same order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# The numbers of elements below are for float32 and 16-bit types. float64 has half as many in short rows and
# among positions.
#
# The largest row that a program holds in registers: with one tensor of this size, with more (class
# probabilities, the two factors of the gradient), for float64, and for float64 in row_losses. In larger rows
# the compiler spills registers to memory (docs/triton.md).
HELD, HELD_WITH_OTHERS, HELD_DOUBLE, HELD_DOUBLE_IN_ROW_LOSSES = 16384, 8192, 4096, 2048
# The block of a longer row: 8 elements for each of 512 threads, so that most kernels leave registers for two
# programs on a multiprocessor. The threads are its lanes (rows.py).
LONG_BLOCK, LONG_WARPS, CLASSES_OF_LANE = 4096, 16, 8
# Short rows share a program until it has SHARED_PROGRAM elements, or SHORT_PROGRAM if they have at most SHORT
# classes. The work per row takes every thread of the row the same time. So threads have few elements if rows
# have few threads.
SHORT, SHORT_PROGRAM, SHARED_PROGRAM = 64, 512, 2048
# For strided classes with contiguous positions: the number of positions that are read together (256 bytes of
# float32), and the elements of the block. Planes with fewer positions would leave most of a block empty. A
# block has many rows, so the work per row counts: threads have 8 elements each, at most 4 of them
# neighbouring positions.
POSITIONS, POSITIONS_BLOCK, POSITIONS_WARPS, POSITIONS_A_THREAD = 64, 2048, 8, 4
# The registers of a multiprocessor, and the most registers of a thread.
REGISTERS, MOST_REGISTERS = 65536, 255
# The registers for short rows of float64. The assembler spills some of them unless it is told this number.
SHORT_DOUBLE_REGISTERS = 128
# The elements of a thread (a warp has 32 threads). A program has at least LEAST_WARPS, to hide the latency of
# its loads, and at most MOST_WARPS.
PER_THREAD, LEAST_WARPS, MOST_WARPS = 16, 4, 32


class Walk(NamedTuple):
    """The strides by which the rows of a tensor are reached, in elements."""

    plane: int
    row: int
    cls: int


class Layout(NamedTuple):
    """The rows of tensors of one shape."""

    planes: int
    inner: int  # rows of a plane
    classes: int
    behind: bool  # whether sizes after the classes exceed 1; otherwise all rows are in one plane

    @property
    def rows(self) -> int:
        return self.planes * self.inner


@dataclass(frozen=True)
class Plan:
    """The constants of a kernel, and how it is launched."""

    path: str
    behind: bool
    flat: bool
    align_c: int
    align_r: int
    wide: bool
    single: bool
    block_r: int
    block_c: int
    warps: int
    # The most registers of a thread. Without this limit, NVIDIA's assembler may spill registers to make room
    # for another program on the multiprocessor. None sets no limit.
    registers: int | None

    @property
    def lanes(self) -> int:
        return self.block_c // CLASSES_OF_LANE if self.block_r == 1 else 1

    def constants(self) -> dict[str, int | bool]:
        return {
            "BEHIND": self.behind,
            "FLAT": self.flat,
            "ALIGN_C": self.align_c,
            "ALIGN_R": self.align_r,
            "WIDE": self.wide,
            "SINGLE": self.single,
            "BLOCK_R": self.block_r,
            "BLOCK_C": self.block_c,
        }


def layout_of(x: Tensor, dim: int) -> Layout:
    before, behind = x.shape[:dim].numel(), x.shape[dim + 1 :].numel()
    return (
        Layout(1, before, x.shape[dim], False) if behind == 1 else Layout(before, behind, x.shape[dim], True)
    )


def _step(sizes: tuple[int, ...], strides: tuple[int, ...]) -> int | None:
    """The stride from one element of these dimensions to the next; None if there is no single one."""
    step, expected = 0, None
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size == 1:
            continue
        if expected is None:
            step = stride
        elif stride != expected:
            return None
        expected = stride * size
    return step


def walk_of(x: Tensor, dim: int) -> Walk | None:
    """None if the dimensions before the classes, or those after them, can't be walked with one stride."""
    if x.numel() == 0:  # nothing to walk; a stride before a size of 0 is not a multiple of it
        return Walk(0, 0, x.stride(dim))
    before = _step(x.shape[:dim], x.stride()[:dim])
    behind = _step(x.shape[dim + 1 :], x.stride()[dim + 1 :])
    if before is None or behind is None:
        return None
    layout, cls = layout_of(x, dim), x.stride(dim)
    if x.shape[:dim].numel() == 1:
        # The stride is unused, but its divisibility decides how many elements a thread reads at once, and so
        # the order in which a row is summed. This order must be the same as in a batch.
        said = x.stride(dim - 1) if dim else 0
        before = max(said, layout.classes * cls, layout.inner * behind if layout.behind else 0)
    return Walk(before, behind, cls) if layout.behind else Walk(0, before, cls)


def walkable(x: Tensor, dim: int) -> tuple[Tensor, Walk]:
    """The tensor, or a contiguous copy if its rows can't be walked."""
    walk = walk_of(x, dim)
    if walk is None:
        x = x.contiguous()
        walk = walk_of(x, dim)
        assert walk is not None
    return x, walk


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def _aligned(numbers: list[int], unit: int) -> int:
    return unit if all(n % unit == 0 for n in numbers) else 1


def most_registers(warps: int) -> int:
    """Of a thread, if one program with so many warps fills a multiprocessor."""
    return min(MOST_REGISTERS, REGISTERS // (32 * warps))


def make_plan(
    layout: Layout, walks: list[Walk], itemsize: int, others: bool = False, row_losses: bool = False
) -> Plan:
    """The plan for tensors of one layout.

    Args:
        layout: of all tensors.
        walks: of each tensor.
        itemsize: bytes of an element.
        others: whether a program holds more than one tensor of its block's size.
        row_losses: whether the plan is for row_losses, which always holds more than one.
    """
    unit = 16 // itemsize
    strided = any(w.cls != 1 and w.row == 1 for w in walks)
    flat = layout.behind and (not strided or layout.inner < POSITIONS)
    align_c = align_r = 1
    if not flat and all(w.cls == 1 for w in walks):
        align_c = _aligned([layout.classes, *(n for w in walks for n in (w.plane, w.row))], unit)
    elif not flat and all(w.row == 1 for w in walks):
        numbers = [layout.inner, *(n for w in walks for n in (w.plane, w.cls))]
        align_r = _aligned(numbers, min(unit, POSITIONS_A_THREAD))
    wide = any((layout.classes - 1) * abs(w.cls) >= 2**31 for w in walks)
    weight = 2 if itemsize == 8 else 1
    whole_row = power_of_two(layout.classes)
    if strided:
        block_r = POSITIONS
        block_c = min(whole_row, POSITIONS_BLOCK // weight // block_r)
        warps = POSITIONS_WARPS
    else:
        held = HELD_WITH_OTHERS if others or row_losses else HELD
        if itemsize == 8:
            held = HELD_DOUBLE_IN_ROW_LOSSES if row_losses else HELD_DOUBLE
        block_c = whole_row if whole_row <= held else min(LONG_BLOCK, held)
        block_r = max(1, (SHORT_PROGRAM if block_c <= SHORT else SHARED_PROGRAM // weight) // block_c)
        warps = max(LEAST_WARPS, min(MOST_WARPS, weight * block_r * block_c // (32 * PER_THREAD)))
        warps = warps if whole_row <= held else LONG_WARPS
    single = block_c >= layout.classes
    registers = None
    if strided or not single:
        registers = most_registers(warps)
    elif itemsize == 8 and block_c <= SHORT:
        registers = SHORT_DOUBLE_REGISTERS
    path = f"{'flat' if flat else 'positions' if strided else 'rows'}, {'held' if single else 'in blocks'}"
    return Plan(
        path,
        layout.behind,
        flat,
        align_c,
        align_r,
        wide,
        single,
        block_r,
        block_c,
        warps,
        registers,
    )


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
