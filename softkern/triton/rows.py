# SPDX-License-Identifier: Apache-2.0
"""Shared by the kernels of all ops: which rows a program has, and the statistics of a row.

m = max_c x_c and d = sum_c exp(x_c - m), in a form that keeps their digits (csrc/cpu/rows/stats.h):

1. x - m would be rounded, and exp turns this absolute error into a relative one. The terms are
   e_c = exp(x_c) 2^-N with N = round(m / ln 2). Blocks of a row with different N are merged with powers of
   two. If |m| is large, x - m is exact for every term that counts: `origin_of` m is then m, otherwise 0.
2. d = 1 + small, and log d of a confident row would vanish. The terms of the maximum are counted, not added:
   d = ties + rest / top.

Rows are numbered as in a contiguous tensor of the shape without the class dimension. One stride walks the
dimensions before the classes (planes), another one those after them (positions). A program has BLOCK_R
positions of one plane or, with FLAT (few positions in a plane), BLOCK_R rows of any planes. Without
dimensions after the classes (BEHIND), all rows are positions of one plane. Row vectors have shape (R, 1).

ALIGN_C and ALIGN_R tell the compiler about divisibility: strides and sizes are passed divided by them. One of
them is above 1 if every row, or every plane's run of positions, begins at a multiple of 16 bytes whenever the
tensor does."""

from __future__ import annotations

import triton
import triton.language as tl

from softkern.triton.elementary import exp_times_power, narrow, span, widen
from softkern.triton.formulas import finite, move_to, origin_of, power_of

# The stages of a kernel. WHOLE: one program computes the whole row. If rows are few and long, each of several
# programs computes one block of the row, in two launches: the statistics (PARTS), then the results (MERGED).
WHOLE: tl.constexpr = tl.constexpr(0)
PARTS: tl.constexpr = tl.constexpr(1)
MERGED: tl.constexpr = tl.constexpr(2)


@triton.jit
def place(rows, inner, BEHIND: tl.constexpr, FLAT: tl.constexpr, BLOCK_R: tl.constexpr):
    """This program's rows: their planes, their positions in the planes, their numbers, and whether they
    exist."""
    program = tl.program_id(0).to(tl.int64)
    local = tl.arange(0, BLOCK_R)[:, None]
    if not BEHIND:
        row = program * BLOCK_R + local
        exists = row < rows
        plane = tl.zeros_like(row)
        position = row
    elif FLAT:
        row = program * BLOCK_R + local
        exists = row < rows
        plane = row // inner
        position = row % inner
    else:
        tiles = tl.cdiv(inner, BLOCK_R)
        plane = program // tiles
        position = (program % tiles) * BLOCK_R + local
        row = plane * inner + position
        exists = position < inner
    return plane, position, row, exists


@triton.jit
def row_pointers(
    pointer, plane, position, plane_units, row_units, ALIGN_C: tl.constexpr, ALIGN_R: tl.constexpr
):
    return pointer + plane * (plane_units * (ALIGN_C * ALIGN_R)) + position * (row_units * ALIGN_C)


@triton.jit
def class_offsets(classes, class_units, ALIGN_R: tl.constexpr, WIDE: tl.constexpr):
    if WIDE:
        classes = classes.to(tl.int64)
    return classes * (class_units * ALIGN_R)


@triton.jit
def first_class(BLOCK_C: tl.constexpr, STAGE: tl.constexpr):
    return 0 if STAGE == WHOLE else tl.program_id(1) * BLOCK_C


@triton.jit
def end_class(classes, BLOCK_C: tl.constexpr, STAGE: tl.constexpr):
    return classes if STAGE == WHOLE else tl.minimum(tl.program_id(1) * BLOCK_C + BLOCK_C, classes)


@triton.jit
def terms(x, m):
    """The terms e_c of logits (R, C), for maxima (R, 1)."""
    held = finite(m)
    origin = origin_of(held)
    least = held - origin - span(x.dtype)
    shifted = x - origin
    return exp_times_power(tl.where(shifted < least, least, shifted), power_of(held))


@triton.jit
def block_statistics(x):
    """m, ties and rest of a block (R, C) that is padded with -inf."""
    # Adding 0 turns -0 into +0. Otherwise the sign of a maximum of zeros would depend on their order.
    m = tl.max(x, 1, keep_dims=True) + 0.0
    e = terms(x, m)
    at_top = x == m
    ties = tl.sum(at_top.to(x.dtype), 1, keep_dims=True)
    rest = tl.sum(tl.where(at_top, 0.0, e), 1, keep_dims=True)
    return m, ties, rest


@triton.jit
def merge(m_1, ties_1, rest_1, m_2, ties_2, rest_2):
    """Merges the statistics of two parts. A fixed order of the parts gives fixed bits."""
    m = tl.maximum(m_1, m_2)
    ties_1, rest_1 = move_to(m, m_1, ties_1, rest_1)
    ties_2, rest_2 = move_to(m, m_2, ties_2, rest_2)
    return m, ties_1 + ties_2, rest_1 + rest_2


@triton.jit
def no_statistics(like):
    """The statistics of an empty part, for rows `like` (R, 1)."""
    nothing = tl.zeros_like(like)
    return nothing - float("inf"), nothing, nothing


@triton.jit
def load_classes(rows_at, first, end, class_units, exists, ALIGN_R: tl.constexpr, WIDE: tl.constexpr,
                 BLOCK_C: tl.constexpr, other: tl.constexpr):  # fmt: skip
    """Classes [first, first + BLOCK_C) of the rows in the compute dtype, and `other` from `end` on."""
    classes = first + tl.arange(0, BLOCK_C)[None, :]
    at = rows_at + class_offsets(classes, class_units, ALIGN_R, WIDE)
    return widen(tl.load(at, mask=exists & (classes < end), other=other))


@triton.jit
def store_classes(rows_at, values, first, end, class_units, exists, ALIGN_R: tl.constexpr, WIDE: tl.constexpr,
                  BLOCK_C: tl.constexpr):  # fmt: skip
    classes = first + tl.arange(0, BLOCK_C)[None, :]
    at = rows_at + class_offsets(classes, class_units, ALIGN_R, WIDE)
    tl.store(at, narrow(values, rows_at.dtype.element_ty), mask=exists & (classes < end))


@triton.jit
def part_at(parts_ptr, field, part, parts, row, rows):
    """The pointer to a number of a part of a row: (field, part, row)."""
    return parts_ptr + (field * parts + part).to(tl.int64) * rows + row


@triton.jit
def load_statistics(parts_ptr, part, parts, row, rows, exists):
    m = tl.load(part_at(parts_ptr, 0, part, parts, row, rows), mask=exists, other=0)
    ties = tl.load(part_at(parts_ptr, 1, part, parts, row, rows), mask=exists, other=0)
    rest = tl.load(part_at(parts_ptr, 2, part, parts, row, rows), mask=exists, other=0)
    return m, ties, rest


@triton.jit
def store_statistics(parts_ptr, part, parts, row, rows, exists, m, ties, rest):
    tl.store(part_at(parts_ptr, 0, part, parts, row, rows), m, mask=exists)
    tl.store(part_at(parts_ptr, 1, part, parts, row, rows), ties, mask=exists)
    tl.store(part_at(parts_ptr, 2, part, parts, row, rows), rest, mask=exists)


@triton.jit
def row_statistics(rows_at, like, classes, class_units, row, rows, exists, parts_ptr, parts,
                   ALIGN_R: tl.constexpr, WIDE: tl.constexpr, BLOCK_C: tl.constexpr,
                   STAGE: tl.constexpr):  # fmt: skip
    """Steps 1 max and 2 sum-exp in one read. PARTS stores the statistics, MERGED loads and merges them."""
    m, ties, rest = no_statistics(like)
    if STAGE == MERGED:
        for part in range(parts):
            m_part, ties_part, rest_part = load_statistics(parts_ptr, part, parts, row, rows, exists)
            m, ties, rest = merge(m, ties, rest, m_part, ties_part, rest_part)
    else:
        end = end_class(classes, BLOCK_C, STAGE)
        for first in range(first_class(BLOCK_C, STAGE), end, BLOCK_C):
            x = load_classes(rows_at, first, end, class_units, exists, ALIGN_R, WIDE, BLOCK_C, float("-inf"))
            m_block, ties_block, rest_block = block_statistics(x)
            m, ties, rest = merge(m, ties, rest, m_block, ties_block, rest_block)
        if STAGE == PARTS:
            store_statistics(parts_ptr, tl.program_id(1), parts, row, rows, exists, m, ties, rest)
    return m, ties, rest
