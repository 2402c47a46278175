# SPDX-License-Identifier: Apache-2.0
"""The kernels that softmax and log_softmax share. Parameters say what is computed in a row."""

from __future__ import annotations

import triton
import triton.language as tl

from softkern.triton.rows import (
    CLASSES_OF_LANE,
    MERGED,
    PARTS,
    block_statistics,
    end_class,
    first_class,
    load_classes,
    part_at,
    place,
    row_pointers,
    row_statistics,
    store_classes,
    sum_of_lanes,
)

# These arguments depend on the number of rows. They must not decide how the compiler lays out a block, so the
# kernels are not specialized for them.
NOT_OF_ROWS = ("inner_units", "rows", "parts")


@triton.jit(do_not_specialize=NOT_OF_ROWS)
def forward_kernel(x_ptr, y_ptr, parts_ptr, class_count_units, inner_units, rows, parts, x_plane, x_row,
                   x_class, y_plane, y_row, y_class, ROW_NUMBER: tl.constexpr, VALUE: tl.constexpr,
                   DTYPE: tl.constexpr, BEHIND: tl.constexpr, FLAT: tl.constexpr, ALIGN_C: tl.constexpr,
                   ALIGN_R: tl.constexpr, WIDE: tl.constexpr, SINGLE: tl.constexpr, STAGE: tl.constexpr,
                   BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):  # fmt: skip
    classes = class_count_units * ALIGN_C
    plane, position, row, exists = place(rows, inner_units * ALIGN_R, BEHIND, FLAT, BLOCK_R)
    x_rows = row_pointers(x_ptr, plane, position, x_plane, x_row, ALIGN_C, ALIGN_R)
    y_rows = row_pointers(y_ptr, plane, position, y_plane, y_row, ALIGN_C, ALIGN_R)
    lowest: tl.constexpr = float("-inf")
    if SINGLE:
        x = load_classes(x_rows, 0, classes, x_class, exists, ALIGN_R, WIDE, BLOCK_C, lowest)
        m, ties, rest = block_statistics(x)  # 1 max, 2 sum-exp
        y = VALUE(x, m, ROW_NUMBER(m, ties, rest))
        store_classes(y_rows, y, 0, classes, y_class, exists, ALIGN_R, WIDE, BLOCK_C)  # 3 write
    else:
        m, ties, rest = row_statistics(x_rows, classes, x_class, row, rows, exists, parts_ptr, parts, DTYPE,
                                       ALIGN_C, ALIGN_R, WIDE, BLOCK_R, BLOCK_C, STAGE)  # fmt: skip
        if STAGE != PARTS:
            of_row = ROW_NUMBER(m, ties, rest)
            end = end_class(classes, BLOCK_C, STAGE)
            for first in range(first_class(BLOCK_C, STAGE), end, BLOCK_C):
                x = load_classes(x_rows, first, end, x_class, exists, ALIGN_R, WIDE, BLOCK_C, lowest)
                y = VALUE(x, m, of_row)
                store_classes(y_rows, y, first, end, y_class, exists, ALIGN_R, WIDE, BLOCK_C)


@triton.jit(do_not_specialize=NOT_OF_ROWS)
def backward_kernel(g_ptr, y_ptr, dx_ptr, parts_ptr, class_count_units, inner_units, rows, parts, g_plane,
                    g_row, g_class, y_plane, y_row, y_class, dx_plane, dx_row, dx_class,
                    SUMMAND: tl.constexpr, GRADIENT: tl.constexpr, DTYPE: tl.constexpr, BEHIND: tl.constexpr,
                    FLAT: tl.constexpr, ALIGN_C: tl.constexpr, ALIGN_R: tl.constexpr, WIDE: tl.constexpr,
                    SINGLE: tl.constexpr, STAGE: tl.constexpr, BLOCK_R: tl.constexpr,
                    BLOCK_C: tl.constexpr):  # fmt: skip
    classes = class_count_units * ALIGN_C
    plane, position, row, exists = place(rows, inner_units * ALIGN_R, BEHIND, FLAT, BLOCK_R)
    g_rows = row_pointers(g_ptr, plane, position, g_plane, g_row, ALIGN_C, ALIGN_R)
    y_rows = row_pointers(y_ptr, plane, position, y_plane, y_row, ALIGN_C, ALIGN_R)
    dx_rows = row_pointers(dx_ptr, plane, position, dx_plane, dx_row, ALIGN_C, ALIGN_R)
    if SINGLE:
        g = load_classes(g_rows, 0, classes, g_class, exists, ALIGN_R, WIDE, BLOCK_C, 0.0)
        y = load_classes(y_rows, 0, classes, y_class, exists, ALIGN_R, WIDE, BLOCK_C, 0.0)
        total = tl.sum(SUMMAND(g, y), 1, keep_dims=True)
        dx = GRADIENT(g, y, total)
        store_classes(dx_rows, dx, 0, classes, dx_class, exists, ALIGN_R, WIDE, BLOCK_C)
    else:
        LANES: tl.constexpr = BLOCK_C // CLASSES_OF_LANE if BLOCK_R == 1 else 1
        total = tl.zeros([BLOCK_R, LANES], DTYPE)
        end = end_class(classes, BLOCK_C, STAGE)
        if STAGE == MERGED:
            for part in range(parts):
                total += tl.load(part_at(parts_ptr, 0, part, parts, row, rows, LANES), mask=exists, other=0)
        else:
            for first in range(first_class(BLOCK_C, STAGE), end, BLOCK_C):
                g = load_classes(g_rows, first, end, g_class, exists, ALIGN_R, WIDE, BLOCK_C, 0.0)
                y = load_classes(y_rows, first, end, y_class, exists, ALIGN_R, WIDE, BLOCK_C, 0.0)
                total += sum_of_lanes(SUMMAND(g, y), LANES, ALIGN_C)
        if STAGE == PARTS:
            tl.store(part_at(parts_ptr, 0, tl.program_id(1), parts, row, rows, LANES), total, mask=exists)
        else:
            total = tl.sum(total, 1, keep_dims=True)
            for first in range(first_class(BLOCK_C, STAGE), end, BLOCK_C):
                g = load_classes(g_rows, first, end, g_class, exists, ALIGN_R, WIDE, BLOCK_C, 0.0)
                y = load_classes(y_rows, first, end, y_class, exists, ALIGN_R, WIDE, BLOCK_C, 0.0)
                dx = GRADIENT(g, y, total)
                store_classes(dx_rows, dx, first, end, dx_class, exists, ALIGN_R, WIDE, BLOCK_C)
