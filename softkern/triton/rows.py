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

A row that does not fit into a program is computed in blocks of BLOCK_C classes. A sum over a block would take
barriers of the whole program. So the statistics of LANES, each of which has classes at the same places of
every block, are kept apart until the end of the row, in row vectors of the shape (1, LANES). The lanes are
the program's threads: each loads ALIGN_C neighbouring classes at a time, and sums over a lane's classes stay
in a thread.

ALIGN_C and ALIGN_R tell the compiler about divisibility: strides and sizes are passed divided by them. One of
them is above 1 if every row, or every plane's run of positions, begins at a multiple of 16 bytes whenever the
tensor does."""

from __future__ import annotations

import triton
import triton.language as tl

from softkern.triton import plan
from softkern.triton.elementary import exp_times_power, narrow, span, widen
from softkern.triton.formulas import finite, move_to, origin_of, power_of

# The stages of a kernel. WHOLE: one program computes the whole row. If rows are few and long, each of several
# programs computes one block of the row, in two launches: the statistics (PARTS), then the results (MERGED).
WHOLE: tl.constexpr = tl.constexpr(0)
PARTS: tl.constexpr = tl.constexpr(1)
MERGED: tl.constexpr = tl.constexpr(2)
CLASSES_OF_LANE: tl.constexpr = tl.constexpr(plan.CLASSES_OF_LANE)


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
def split(x, LANES: tl.constexpr, ALIGN_C: tl.constexpr):
    """A block (1, C) of one row, with its lanes as the dimension in the middle."""
    return tl.reshape(x, (x.shape[1] // (LANES * ALIGN_C), LANES, ALIGN_C))


@triton.jit
def max_of_lanes(x, LANES: tl.constexpr, ALIGN_C: tl.constexpr):
    """The maxima of a block: of its rows, or of the lanes of its row."""
    if LANES == 1:
        return tl.max(x, 1, keep_dims=True)
    else:
        return tl.max(tl.max(split(x, LANES, ALIGN_C), 2), 0)[None, :]


@triton.jit
def sum_of_lanes(x, LANES: tl.constexpr, ALIGN_C: tl.constexpr):
    if LANES == 1:
        return tl.sum(x, 1, keep_dims=True)
    else:
        return tl.sum(tl.sum(split(x, LANES, ALIGN_C), 2), 0)[None, :]


@triton.jit
def to_classes(of_lanes, BLOCK_C: tl.constexpr, LANES: tl.constexpr, ALIGN_C: tl.constexpr):
    """The number of each class's lane (1, C), for numbers of lanes. Numbers of rows stay as they are."""
    if LANES == 1:
        return of_lanes
    else:
        shape: tl.constexpr = (BLOCK_C // (LANES * ALIGN_C), LANES, ALIGN_C)
        return tl.reshape(tl.broadcast_to(of_lanes[:, :, None], shape), (1, BLOCK_C))


@triton.jit
def block_statistics(x, LANES: tl.constexpr = 1, ALIGN_C: tl.constexpr = 1):
    """m, ties and rest of a block (R, C) that is padded with -inf, or of its lanes."""
    # Adding 0 turns -0 into +0. Otherwise the sign of a maximum of zeros would depend on their order.
    m = max_of_lanes(x, LANES, ALIGN_C) + 0.0
    m_of_class = to_classes(m, x.shape[1], LANES, ALIGN_C)
    e = terms(x, m_of_class)
    at_top = x == m_of_class
    ties = sum_of_lanes(at_top.to(x.dtype), LANES, ALIGN_C)
    rest = sum_of_lanes(tl.where(at_top, 0.0, e), LANES, ALIGN_C)
    return m, ties, rest


@triton.jit
def merge_lanes(m, ties, rest, LANES: tl.constexpr):
    """The statistics of rows from those of their lanes."""
    if LANES > 1:
        m_row = tl.max(m, 1, keep_dims=True)
        ties, rest = move_to(m_row, m, ties, rest)
        m, ties, rest = m_row, tl.sum(ties, 1, keep_dims=True), tl.sum(rest, 1, keep_dims=True)
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
def first_lane_at(parts_ptr, field, part, parts, row, rows, LANES: tl.constexpr):
    """The pointer to a number of the first lane of a part of a row: (field, part, row, lane)."""
    return parts_ptr + ((field * parts + part).to(tl.int64) * rows + row) * LANES


@triton.jit
def part_at(parts_ptr, field, part, parts, row, rows, LANES: tl.constexpr):
    """The pointers to those of all lanes."""
    first = first_lane_at(parts_ptr, field, part, parts, row, rows, LANES)
    return first + tl.arange(0, LANES)[None, :]


@triton.jit
def load_statistics(parts_ptr, part, parts, row, rows, exists, LANES: tl.constexpr):
    m = tl.load(part_at(parts_ptr, 0, part, parts, row, rows, LANES), mask=exists, other=0)
    ties = tl.load(part_at(parts_ptr, 1, part, parts, row, rows, LANES), mask=exists, other=0)
    rest = tl.load(part_at(parts_ptr, 2, part, parts, row, rows, LANES), mask=exists, other=0)
    return m, ties, rest


@triton.jit
def store_statistics(parts_ptr, part, parts, row, rows, exists, m, ties, rest, LANES: tl.constexpr):
    tl.store(part_at(parts_ptr, 0, part, parts, row, rows, LANES), m, mask=exists)
    tl.store(part_at(parts_ptr, 1, part, parts, row, rows, LANES), ties, mask=exists)
    tl.store(part_at(parts_ptr, 2, part, parts, row, rows, LANES), rest, mask=exists)


@triton.jit
def row_statistics(rows_at, classes, class_units, row, rows, exists, parts_ptr, parts, DTYPE: tl.constexpr,
                   ALIGN_C: tl.constexpr, ALIGN_R: tl.constexpr, WIDE: tl.constexpr, BLOCK_R: tl.constexpr,
                   BLOCK_C: tl.constexpr, STAGE: tl.constexpr):  # fmt: skip
    """Steps 1 max and 2 sum-exp in one read. PARTS stores the statistics, MERGED loads and merges them."""
    LANES: tl.constexpr = BLOCK_C // CLASSES_OF_LANE if BLOCK_R == 1 else 1
    m, ties, rest = no_statistics(tl.zeros([BLOCK_R, LANES], DTYPE))
    if STAGE == MERGED:
        for part in range(parts):
            m_part, ties_part, rest_part = load_statistics(parts_ptr, part, parts, row, rows, exists, LANES)
            m, ties, rest = merge(m, ties, rest, m_part, ties_part, rest_part)
    else:
        end = end_class(classes, BLOCK_C, STAGE)
        for first in range(first_class(BLOCK_C, STAGE), end, BLOCK_C):
            x = load_classes(rows_at, first, end, class_units, exists, ALIGN_R, WIDE, BLOCK_C, float("-inf"))
            m_block, ties_block, rest_block = block_statistics(x, LANES, ALIGN_C)
            m, ties, rest = merge(m, ties, rest, m_block, ties_block, rest_block)
        if STAGE == PARTS:
            store_statistics(parts_ptr, tl.program_id(1), parts, row, rows, exists, m, ties, rest, LANES)
    return merge_lanes(m, ties, rest, LANES)
