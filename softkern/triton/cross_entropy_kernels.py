# SPDX-License-Identifier: Apache-2.0
"""The loss and the gradient of cross_entropy. formulas.py has the formulas."""

from __future__ import annotations

import triton
import triton.language as tl

from softkern.triton.elementary import argument, inverse_of, narrow, widen
from softkern.triton.formulas import (
    below_moved,
    finite,
    gradient_scale,
    hot_gradient,
    hot_loss,
    hot_mass,
    less_mass,
    log_d,
    probability_mass,
    spread_loss,
    top_term,
    total,
    uniform_mass,
    weighted,
)
from softkern.triton.rows import (
    CLASSES_OF_LANE,
    MERGED,
    PARTS,
    block_statistics,
    class_offsets,
    end_class,
    first_class,
    first_lane_at,
    load_classes,
    load_statistics,
    merge,
    merge_lanes,
    no_statistics,
    part_at,
    place,
    row_pointers,
    store_classes,
    store_statistics,
    terms,
)


@triton.jit
def load_mass(t_rows, weight_ptr, first, end, t_class, exists, keep, share, like, PROBABILITIES: tl.constexpr,
              WEIGHTED: tl.constexpr, ALIGN_R: tl.constexpr, WIDE: tl.constexpr,
              BLOCK_C: tl.constexpr):  # fmt: skip
    """The spread mass (R or 1, C) of a block of classes; 0 after the end of the row."""
    if PROBABILITIES:
        t = load_classes(t_rows, first, end, t_class, exists, ALIGN_R, WIDE, BLOCK_C, 0.0)
        mass = probability_mass(keep, share, t)
    else:
        mass = tl.zeros([1, BLOCK_C], like.dtype) + uniform_mass(keep, share)
    classes = first + tl.arange(0, BLOCK_C)[None, :]
    if WEIGHTED:
        mass = weighted(mass, widen(tl.load(weight_ptr + classes, mask=classes < end, other=0)))
    return tl.where(classes < end, mass, 0.0)


@triton.jit
def spread_sums(x, mass, m, first, end, BLOCK_C: tl.constexpr):
    """The sums of a_c and of a_c (m - x_c) over a block. An infinite m counts as 0."""
    classes = first + tl.arange(0, BLOCK_C)[None, :]
    # After the end x is -inf, and 0 * inf would be NaN.
    below = tl.where(classes < end, finite(m) - x, 0.0)
    masses = tl.sum(mass + tl.zeros_like(x), 1, keep_dims=True)
    return masses, tl.sum(mass * below, 1, keep_dims=True)


@triton.jit
def merge_spread(masses_1, below_1, m_1, masses_2, below_2, m_2):
    """Merges the sums of two parts, relative to the larger maximum."""
    m = tl.maximum(m_1, m_2)
    below_1 = below_moved(m, m_1, masses_1, below_1)
    below_2 = below_moved(m, m_2, masses_2, below_2)
    return masses_1 + masses_2, below_1 + below_2


@triton.jit
def row_loss(m, ties, rest, masses, below, mass_of_hot, hot_x, is_hot, SPREAD: tl.constexpr):
    log_of_d = log_d(ties, top_term(m), rest)
    loss = tl.where(is_hot, hot_loss(mass_of_hot, m - hot_x, log_of_d), 0.0)
    if SPREAD:
        loss += spread_loss(masses, below, log_of_d)
    return loss


@triton.jit
def row_gradient(m, ties, rest, masses, mass_of_hot, hot_x, factor):
    """The factor of the terms, and the gradient of the hot class without its spread mass."""
    inverse = inverse_of(total(ties, top_term(m), rest))
    scale = gradient_scale(factor, mass_of_hot, masses, inverse)
    e = terms(hot_x, m)
    return scale, hot_gradient(factor, mass_of_hot, masses, hot_x, e, m, ties, rest, inverse)


@triton.jit
def store_gradient(grad_rows, x, mass, m, scale, hot_dx, hot, state, factor, first, end, grad_class,
                   exists, SPREAD: tl.constexpr, ALIGN_R: tl.constexpr, WIDE: tl.constexpr,
                   BLOCK_C: tl.constexpr):  # fmt: skip
    """3 write. state: 0 for an ignored row, 1 for a row with a hot class, 2 for a row with class
    probabilities, and NaN for a row whose target is out of range."""
    classes = first + tl.arange(0, BLOCK_C)[None, :]
    dx = terms(x, m) * scale
    dx = tl.where((classes == hot) & (state == 1), hot_dx, dx)
    if SPREAD:
        dx = less_mass(dx, mass, -factor)
    dx = tl.where(state == 0, 0.0, tl.where(state == state, dx, state))
    store_classes(grad_rows, dx, first, end, grad_class, exists, ALIGN_R, WIDE, BLOCK_C)


@triton.jit
def hot_class(target_ptr, weight_ptr, x_rows, x_class, row, exists, classes, ignore_index, keep, share, like,
              ALIGN_R: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """Loads the class index, its mass and its logit, and the row's state (see store_gradient). Nothing is
    read for a target that is out of range. The assertion stops the device, as torch's does. If assertions are
    not compiled, the row's loss and gradient are NaN."""
    y = tl.load(target_ptr + row, mask=exists, other=ignore_index).to(tl.int64)
    # A row that does not exist gets ignore_index converted to the targets' dtype. uint8 can't hold -100, so
    # `exists` is checked too.
    counts = exists & (y != ignore_index)
    inside = (y >= 0) & (y < classes)
    tl.device_assert(inside | ~counts, "softkern.cross_entropy: Target is out of bounds.")
    is_hot = counts & inside
    hot = tl.where(is_hot, y, 0)
    hot_x = widen(tl.load(x_rows + class_offsets(hot, x_class, ALIGN_R, WIDE), mask=is_hot, other=0))
    mass = tl.zeros_like(like) + hot_mass(keep, share)
    if weight_ptr is not None:
        mass = weighted(mass, widen(tl.load(weight_ptr + hot, mask=is_hot, other=0)))
    state = tl.where(is_hot, 1.0, tl.where(counts, float("nan"), 0.0)).to(like.dtype)
    return hot, mass, hot_x, state


@triton.jit(do_not_specialize=("inner_units", "rows", "parts", "ignore_index"), debug=True)
def cross_entropy_kernel(x_ptr, target_ptr, weight_ptr, loss_ptr, grad_ptr, factor_ptr, parts_ptr,
                         class_count_units, inner_units, rows, parts, x_plane, x_row, x_class, t_plane, t_row,
                         t_class, grad_plane, grad_row, grad_class, ignore_index, keep: "fp64", share: "fp64",
                         constant_factor: "fp64", DTYPE: tl.constexpr, PROBABILITIES: tl.constexpr,
                         SPREAD: tl.constexpr, BEHIND: tl.constexpr, FLAT: tl.constexpr,
                         ALIGN_C: tl.constexpr, ALIGN_R: tl.constexpr, WIDE: tl.constexpr,
                         SINGLE: tl.constexpr, STAGE: tl.constexpr, BLOCK_R: tl.constexpr,
                         BLOCK_C: tl.constexpr):  # fmt: skip
    """The losses of the rows. If grad_ptr is given, also their gradients, times constant_factor and, if
    given, the number at factor_ptr. grad may be x."""
    classes = class_count_units * ALIGN_C
    keep = argument(keep, DTYPE)
    share = argument(share, DTYPE)
    plane, position, row, exists = place(rows, inner_units * ALIGN_R, BEHIND, FLAT, BLOCK_R)
    x_rows = row_pointers(x_ptr, plane, position, x_plane, x_row, ALIGN_C, ALIGN_R)
    like = tl.zeros([BLOCK_R, 1], DTYPE)
    lowest: tl.constexpr = float("-inf")

    if PROBABILITIES:
        t_rows = row_pointers(target_ptr, plane, position, t_plane, t_row, ALIGN_C, ALIGN_R)
        hot, mass_of_hot, hot_x, state = like.to(tl.int64) - 1, like, like, like + 2
    else:
        t_rows = x_rows
        hot, mass_of_hot, hot_x, state = hot_class(target_ptr, weight_ptr, x_rows, x_class, row, exists,
                                                   classes, ignore_index, keep, share, like, ALIGN_R,
                                                   WIDE)  # fmt: skip
    is_hot = state == 1
    WEIGHTED: tl.constexpr = weight_ptr is not None
    if SINGLE:
        x = load_classes(x_rows, 0, classes, x_class, exists, ALIGN_R, WIDE, BLOCK_C, lowest)
        m, ties, rest = block_statistics(x)  # 1 max, 2 sum-exp
        masses, below = like, like
        mass = like
        if SPREAD:
            mass = load_mass(t_rows, weight_ptr, 0, classes, t_class, exists, keep, share, like,
                             PROBABILITIES, WEIGHTED, ALIGN_R, WIDE, BLOCK_C)  # fmt: skip
            masses, below = spread_sums(x, mass, m, 0, classes, BLOCK_C)
    else:
        # With spread mass, a thread would need more registers for the sums of its lane than it has.
        LANES: tl.constexpr = BLOCK_C // CLASSES_OF_LANE if BLOCK_R == 1 and not SPREAD else 1
        m, ties, rest = no_statistics(tl.zeros([BLOCK_R, LANES], DTYPE))
        masses, below = like, like
        hot_at = first_lane_at(parts_ptr, 5, 0, parts, row, rows, LANES)
        if STAGE == MERGED:
            for part in range(parts):
                m_part, ties_part, rest_part = load_statistics(parts_ptr, part, parts, row, rows, exists,
                                                               LANES)  # fmt: skip
                if SPREAD:
                    masses_at = part_at(parts_ptr, 3, part, parts, row, rows, LANES)
                    below_at = part_at(parts_ptr, 4, part, parts, row, rows, LANES)
                    masses_part = tl.load(masses_at, mask=exists, other=0)
                    below_part = tl.load(below_at, mask=exists, other=0)
                    masses, below = merge_spread(masses, below, m, masses_part, below_part, m_part)
                m, ties, rest = merge(m, ties, rest, m_part, ties_part, rest_part)
            # Another program may have overwritten the logit with the gradient.
            hot_x = tl.load(hot_at, mask=exists, other=0)
        else:
            end = end_class(classes, BLOCK_C, STAGE)
            for first in range(first_class(BLOCK_C, STAGE), end, BLOCK_C):
                x = load_classes(x_rows, first, end, x_class, exists, ALIGN_R, WIDE, BLOCK_C, lowest)
                m_block, ties_block, rest_block = block_statistics(x, LANES, ALIGN_C)
                if SPREAD:
                    mass = load_mass(t_rows, weight_ptr, first, end, t_class, exists, keep, share, like,
                                     PROBABILITIES, WEIGHTED, ALIGN_R, WIDE, BLOCK_C)  # fmt: skip
                    masses_block, below_block = spread_sums(x, mass, m_block, first, end, BLOCK_C)
                    masses, below = merge_spread(masses, below, m, masses_block, below_block, m_block)
                m, ties, rest = merge(m, ties, rest, m_block, ties_block, rest_block)
            if STAGE == PARTS:
                part = tl.program_id(1)
                store_statistics(parts_ptr, part, parts, row, rows, exists, m, ties, rest, LANES)
                if SPREAD:
                    tl.store(part_at(parts_ptr, 3, part, parts, row, rows, LANES), masses, mask=exists)
                    tl.store(part_at(parts_ptr, 4, part, parts, row, rows, LANES), below, mask=exists)
                if part == 0:
                    tl.store(hot_at, hot_x, mask=exists)
        m, ties, rest = merge_lanes(m, ties, rest, LANES)

    if SINGLE or STAGE != PARTS:
        loss = row_loss(m, ties, rest, masses, below, mass_of_hot, hot_x, is_hot, SPREAD)
        loss = tl.where(state == 0, 0.0, tl.where(state == state, loss, state))
        if tl.program_id(1) == 0:
            tl.store(loss_ptr + row, narrow(loss, loss_ptr.dtype.element_ty), mask=exists)
    if grad_ptr is not None:
        factor = argument(constant_factor, DTYPE)
        if factor_ptr is not None:
            factor *= tl.load(factor_ptr)
        grad_rows = row_pointers(grad_ptr, plane, position, grad_plane, grad_row, ALIGN_C, ALIGN_R)
        if SINGLE:
            scale, hot_dx = row_gradient(m, ties, rest, masses, mass_of_hot, hot_x, factor)
            store_gradient(grad_rows, x, mass, m, scale, hot_dx, hot, state, factor, 0, classes,
                           grad_class, exists, SPREAD, ALIGN_R, WIDE, BLOCK_C)  # fmt: skip
        elif STAGE != PARTS:
            scale, hot_dx = row_gradient(m, ties, rest, masses, mass_of_hot, hot_x, factor)
            end = end_class(classes, BLOCK_C, STAGE)
            for first in range(first_class(BLOCK_C, STAGE), end, BLOCK_C):
                x = load_classes(x_rows, first, end, x_class, exists, ALIGN_R, WIDE, BLOCK_C, lowest)
                mass = like
                if SPREAD:
                    mass = load_mass(t_rows, weight_ptr, first, end, t_class, exists, keep, share, like,
                                     PROBABILITIES, WEIGHTED, ALIGN_R, WIDE, BLOCK_C)  # fmt: skip
                store_gradient(grad_rows, x, mass, m, scale, hot_dx, hot, state, factor, first, end,
                               grad_class, exists, SPREAD, ALIGN_R, WIDE, BLOCK_C)  # fmt: skip


@triton.jit(do_not_specialize=("inner_units", "rows", "ignore_index"))
def scale_kernel(grad_ptr, out_ptr, upstream_ptr, grad_scale_ptr, target_ptr, class_count_units, inner_units,
                 rows, grad_plane, grad_row, grad_class, out_plane, out_row, out_class, ignore_index,
                 BY_ROW: tl.constexpr, IN_PLACE: tl.constexpr, BEHIND: tl.constexpr, FLAT: tl.constexpr,
                 ALIGN_C: tl.constexpr, ALIGN_R: tl.constexpr, WIDE: tl.constexpr, SINGLE: tl.constexpr,
                 BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):  # fmt: skip
    """out = grad * (upstream * grad_scale), with one upstream number for all rows or one for each. out may be
    grad."""
    classes = class_count_units * ALIGN_C
    plane, position, row, exists = place(rows, inner_units * ALIGN_R, BEHIND, FLAT, BLOCK_R)
    grad_rows = row_pointers(grad_ptr, plane, position, grad_plane, grad_row, ALIGN_C, ALIGN_R)
    out_rows = row_pointers(out_ptr, plane, position, out_plane, out_row, ALIGN_C, ALIGN_R)
    grad_scale = tl.load(grad_scale_ptr)
    upstream = tl.load(upstream_ptr + row * BY_ROW, mask=exists, other=1)
    factor = upstream.to(grad_scale.dtype) * grad_scale
    if target_ptr is not None:
        # Ignored rows are stored as zeros and must stay zeros: 0 * inf would make them NaN.
        y = tl.load(target_ptr + row, mask=exists, other=0).to(tl.int64)
        factor = tl.where(y == ignore_index, 0.0, factor)
    # In place, elements with a factor of 1 need not be read.
    one = IN_PLACE and tl.sum((factor != 1).to(tl.int32)) == 0
    if not one:
        for first in range(0, classes, BLOCK_C):
            g = load_classes(grad_rows, first, classes, grad_class, exists, ALIGN_R, WIDE, BLOCK_C, 0.0)
            store_classes(out_rows, g * factor, first, classes, out_class, exists, ALIGN_R, WIDE, BLOCK_C)
