# SPDX-License-Identifier: Apache-2.0
"""The hot classes of row_losses with K class indices a row. Blocks are (R, K) here."""

from __future__ import annotations

import triton
import triton.language as tl

from softkern.triton.elementary import argument, inverse_of, narrow, widen
from softkern.triton.formulas import (
    hot_mass,
    less_mass,
    logit_slope,
    top_term,
    total,
    uniform_mass,
    weighted,
)
from softkern.triton.row_losses_blocks import CAPPED, SAME, hot_pull, load_number, logit
from softkern.triton.rows import class_offsets, place, row_pointers

# The numbers that scatter_kernel needs of a row.
FIELDS: tl.constexpr = tl.constexpr(6)


@triton.jit
def store_kept(kept_ptr, row, exists, m, ties, rest, pull, slope, g):
    at = kept_ptr + row * FIELDS
    tl.store(at, m, mask=exists)
    tl.store(at + 1, ties, mask=exists)
    tl.store(at + 2, rest, mask=exists)
    tl.store(at + 3, pull, mask=exists)
    tl.store(at + 4, slope, mask=exists)
    tl.store(at + 5, g, mask=exists)


@triton.jit
def load_hot(target_ptr, row, exists, per_row, classes, begin, whole_classes, BLOCK_K: tl.constexpr):
    """A block of class indices, numbered from the first class that is read (row_parts_kernels.py), and where
    they are in memory; whether they exist, are in range, and are also of a class that is read. An index out
    of range is that of the whole row's class 0."""
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    there = exists & (k < per_row)
    at = row * per_row + k
    y = tl.load(target_ptr + at, mask=there, other=0).to(tl.int64)
    inside = (y >= 0) & (y < whole_classes)
    tl.device_assert(inside | ~there, "softkern.cross_entropy: Target is out of bounds.")
    y = tl.where(inside, y, 0) - begin
    return y, at, there, inside, there & inside & (y >= 0) & (y < classes)


@triton.jit(do_not_specialize=("inner_units", "rows", "per_row", "begin", "whole_classes"), debug=True)
def gather_kernel(x_ptr, target_ptr, probs_ptr, weight_ptr, z_ptr, mass_ptr, class_count_units, inner_units,
                  rows, per_row, begin, whole_classes, x_plane, x_row, x_class, keep: "fp64", inner: "fp64",
                  outer: "fp64", DTYPE: tl.constexpr, Z: tl.constexpr, BEHIND: tl.constexpr,
                  ALIGN_C: tl.constexpr, ALIGN_R: tl.constexpr, WIDE: tl.constexpr, BLOCK_R: tl.constexpr,
                  BLOCK_K: tl.constexpr):  # fmt: skip
    """The logits z of the hot classes, 0 for those that are not read, and their masses, which are 0 without
    probabilities. Both are NaN for a class out of range."""
    plane, position, row, exists = place(rows, inner_units * ALIGN_R, BEHIND, True, BLOCK_R)
    x_rows = row_pointers(x_ptr, plane, position, x_plane, x_row, ALIGN_C, ALIGN_R)
    y, at, there, inside, here = load_hot(target_ptr, row, exists, per_row, class_count_units * ALIGN_C,
                                          begin, whole_classes, BLOCK_K)  # fmt: skip
    x = widen(tl.load(x_rows + class_offsets(y, x_class, ALIGN_R, WIDE), mask=here, other=0))
    z = logit(argument(inner, DTYPE), argument(outer, DTYPE), x, Z)
    tl.store(z_ptr + at, tl.where(inside, z, float("nan")), mask=there)
    mass = hot_mass(argument(keep, DTYPE), 0) * load_number(probs_ptr, at, there, tl.zeros_like(z))
    if weight_ptr is not None:
        mass = weighted(mass, widen(tl.load(weight_ptr + y, mask=there, other=0)))
    tl.store(mass_ptr + at, tl.where(inside, mass, float("nan")), mask=there)


@triton.jit(do_not_specialize=("inner_units", "rows", "per_row", "begin", "whole_classes"), debug=True)
def scatter_kernel(target_ptr, weight_ptr, z_ptr, mass_ptr, g_log_prob_ptr, kept_ptr, grad_ptr,
                   class_count_units, inner_units, rows, per_row, begin, whole_classes, grad_plane, grad_row,
                   grad_class, share: "fp64", uncap: "fp64", slope_at_0: "fp64", DTYPE: tl.constexpr,
                   SPREAD: tl.constexpr, ENTROPY: tl.constexpr, Z: tl.constexpr, BEHIND: tl.constexpr,
                   ALIGN_C: tl.constexpr, ALIGN_R: tl.constexpr, WIDE: tl.constexpr, BLOCK_R: tl.constexpr,
                   BLOCK_K: tl.constexpr):  # fmt: skip
    """Writes the gradients of the hot classes over what the kernel before has written there. Equal indices of
    a row add up: each of them writes the same number."""
    plane, position, row, exists = place(rows, inner_units * ALIGN_R, BEHIND, True, BLOCK_R)
    grad_rows = row_pointers(grad_ptr, plane, position, grad_plane, grad_row, ALIGN_C, ALIGN_R)
    y, at, there, _, here = load_hot(target_ptr, row, exists, per_row, class_count_units * ALIGN_C, begin,
                                     whole_classes, BLOCK_K)  # fmt: skip
    m = tl.load(kept_ptr + row * FIELDS, mask=exists, other=0)
    ties = tl.load(kept_ptr + row * FIELDS + 1, mask=exists, other=1)
    rest = tl.load(kept_ptr + row * FIELDS + 2, mask=exists, other=0)
    pull = tl.load(kept_ptr + row * FIELDS + 3, mask=exists, other=0)
    slope = tl.load(kept_ptr + row * FIELDS + 4, mask=exists, other=0)
    g = tl.load(kept_ptr + row * FIELDS + 5, mask=exists, other=0)
    z = tl.load(z_ptr + at, mask=there, other=0)
    # The hot part of the class of each index, and that of the row's other classes.
    h, others = tl.zeros_like(z), tl.zeros_like(z) + pull
    for j in range(per_row):
        at_j = row * per_row + j
        same = tl.load(target_ptr + at_j, mask=exists, other=0).to(tl.int64) - begin == y
        g_j = load_number(g_log_prob_ptr, at_j, exists, tl.zeros_like(pull))
        h_j = g * tl.load(mass_ptr + at_j, mask=exists, other=0) - g_j
        h += tl.where(same, h_j, 0.0)
        others += tl.where(same, 0.0, h_j)
    inverse = inverse_of(total(ties, top_term(m), rest))
    dz = hot_pull(h, others, slope, z, m, ties, rest, inverse, ENTROPY)
    if SPREAD:
        mass = tl.zeros_like(z) + uniform_mass(0, argument(share, DTYPE))
        if weight_ptr is not None:
            mass = weighted(mass, widen(tl.load(weight_ptr + y, mask=there, other=0)))
        dz = less_mass(dz, mass, -g)
    if Z != SAME:
        dz *= logit_slope(argument(uncap, DTYPE), argument(slope_at_0, DTYPE), z, Z == CAPPED)
    at_class = grad_rows + class_offsets(y, grad_class, ALIGN_R, WIDE)
    tl.store(at_class, narrow(dz, grad_ptr.dtype.element_ty), mask=here)
