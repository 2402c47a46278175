# SPDX-License-Identifier: Apache-2.0
"""Which program computes what: layouts, block sizes, warps. Knows no kernel, launches nothing.

A plan depends on the number of classes, the dtype and the strides, never on the number of rows: the bits of a
row must not. The one thing that the number of rows decides is whether the blocks of a long row are computed by
one program or by one each, and both add them up in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# Largest block of one program that holds a row in registers, for each number of tensors it holds, in elements of
# 4 bytes; beyond it registers are spilled to memory (docs/triton.md, which is made of the compiler's own reports).
IN_REGISTERS = 16384
# Block of a row that is longer: 16 elements a thread, which leaves room for two programs on a multiprocessor.
LONG_BLOCK = 8192
# Rows of fewer elements share a program until it has so many: 16 for each of 128 threads.
SHARED_PROGRAM = 2048
# Positions (rows one element apart) read together where classes are not: 256 bytes of float32, and classes for
# them until the block has so many elements.
POSITIONS, STRIDED_BLOCK = 64, 4096
# Planes of fewer positions leave most of such a block empty.
FEW_POSITIONS = 16
# Elements of a thread; a warp has 32 threads. Between 4 warps, enough to hide a load's latency, and the 32 that a
# program may have.
PER_THREAD = 16
MOST_WARPS = 32


class Walk(NamedTuple):
    """How the rows of a tensor are reached, in elements."""

    plane: int
    row: int
    cls: int


class Layout(NamedTuple):
    """The rows of tensors of one shape."""

    planes: int
    inner: int  # rows of a plane
    classes: int

    @property
    def rows(self) -> int:
        return self.planes * self.inner


@dataclass(frozen=True)
class Plan:
    """What is constant in a kernel, and how it is launched."""

    path: str
    flat: bool
    align_c: int
    align_r: int
    wide: bool
    single: bool
    block_r: int
    block_c: int
    warps: int

    def constants(self) -> dict[str, int | bool]:
        return {
            "FLAT": self.flat,
            "ALIGN_C": self.align_c,
            "ALIGN_R": self.align_r,
            "WIDE": self.wide,
            "SINGLE": self.single,
            "BLOCK_R": self.block_r,
            "BLOCK_C": self.block_c,
        }


def layout_of(x: Tensor, dim: int) -> Layout:
    planes, inner = 1, 1
    for i, size in enumerate(x.shape):
        planes *= size if i < dim else 1
        inner *= size if i > dim else 1
    # Rows of whole planes are one run of positions, as they are without dimensions behind the classes.
    return Layout(1, planes, x.shape[dim]) if inner == 1 else Layout(planes, inner, x.shape[dim])


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
    """None where dimensions before or behind the classes don't lie one stride apart."""
    before = _step(x.shape[:dim], x.stride()[:dim])
    behind = _step(x.shape[dim + 1 :], x.stride()[dim + 1 :])
    if before is None or behind is None:
        return None
    cls = x.stride(dim)
    if layout_of(x, dim).planes == 1 and x.shape[dim + 1 :].numel() == 1:
        return Walk(0, before, cls)
    return Walk(before, behind, cls)


def walkable(x: Tensor, dim: int) -> tuple[Tensor, Walk]:
    """The tensor, or a contiguous copy of one whose rows can't be walked."""
    walk = walk_of(x, dim)
    if walk is not None:
        return x, walk
    x = x.contiguous()
    walk = walk_of(x, dim)
    assert walk is not None
    return x, walk


def _power_of_two(n: int) -> int:
    """The next one that is not below n."""
    return 1 << max(0, n - 1).bit_length()


def _aligned(numbers: list[int], unit: int) -> int:
    return unit if unit > 1 and all(n % unit == 0 for n in numbers) else 1


def make_plan(layout: Layout, walks: list[Walk], itemsize: int, held: int = 1) -> Plan:
    """The plan for tensors of one layout.

    Args:
        layout: of all tensors.
        walks: of each tensor.
        itemsize: bytes of an element.
        held: how many tensors of the block's size a program holds at once.
    """
    unit = 16 // itemsize
    strided = any(w.cls != 1 for w in walks) and any(w.row == 1 for w in walks) and layout.inner > 1
    flat = layout.planes > 1 and layout.inner < FEW_POSITIONS
    align_c = align_r = 1
    if not flat and all(w.cls == 1 for w in walks):
        align_c = _aligned([layout.classes, *(n for w in walks for n in (w.plane, w.row))], unit)
    elif not flat and all(w.row == 1 for w in walks):
        align_r = _aligned([layout.inner, *(n for w in walks for n in (w.plane, w.cls))], unit)
    wide = any((layout.classes - 1) * abs(w.cls) >= 2**31 for w in walks)
    whole_row = _power_of_two(layout.classes)
    heavy = 2 if itemsize == 8 else 1
    if strided and not flat:
        block_r = (
            min(POSITIONS, max(FEW_POSITIONS, _power_of_two(layout.inner)))
            if layout.planes > 1
            else POSITIONS
        )
        block_c = min(whole_row, STRIDED_BLOCK // heavy // block_r)
    else:
        limit = IN_REGISTERS // heavy
        block_c = whole_row if whole_row <= limit else LONG_BLOCK // heavy
        block_r = max(1, SHARED_PROGRAM // heavy // block_c)
    single = block_c >= layout.classes
    warps = max(4, min(MOST_WARPS, heavy * block_r * block_c // (32 * PER_THREAD)))
    shape = "strided" if strided else "flat" if flat else "rows"
    path = f"{shape}, {'held' if single else 'in blocks'}"
    return Plan(path, flat, align_c, align_r, wide, single, block_r, block_c, warps)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
