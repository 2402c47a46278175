# SPDX-License-Identifier: Apache-2.0
"""Some classes of rows: the numbers that are merged with those of the rows' other classes, and the gradient
from the numbers of whole rows (`RowCall::first`, `whole` and `RowOutputs::parts` in
csrc/ops/row_losses/call.h).

Classes are numbered from the first one that is read, which whole rows call `begin`. So are weights: the
pointer is that of the first class's weight, and the whole row's other weights lie before and behind it."""

from __future__ import annotations

import triton
import triton.language as tl

from softkern.triton.cross_entropy_kernels import load_mass
from softkern.triton.elementary import argument, inverse_of, widen
from softkern.triton.formulas import common_pull, hot_mass, log_d, lse_of, top_term, total, weighted
from softkern.triton.row_losses_blocks import (
    CAPPED,
    INDEX,
    INDICES,
    PROBABILITIES,
    held,
    hot_pull,
    load_logits,
    load_number,
    loss_pull,
    store_gradient,
)
from softkern.triton.row_losses_hot_kernels import store_kept
from softkern.triton.rows import place, row_pointers

# The numbers of a row: PartNumber of csrc/common/options.h.
PART_MAX: tl.constexpr = tl.constexpr(0)
PART_TIES: tl.constexpr = tl.constexpr(1)
PART_REST: tl.constexpr = tl.constexpr(2)
PART_TERMS_BELOW: tl.constexpr = tl.constexpr(3)
PART_MASS: tl.constexpr = tl.constexpr(4)
PART_MASS_BELOW: tl.constexpr = tl.constexpr(5)
PART_HOT_Z: tl.constexpr = tl.constexpr(6)


@triton.jit
def number_at(pointer, number: tl.constexpr, step, row):
    return pointer + (step.to(tl.int64) * number + row)


@triton.jit
def store_parts(parts_ptr, step, row, exists, state, m, ties, rest, terms_below, masses, below, hot_z):
    tl.store(number_at(parts_ptr, PART_MAX, step, row), held(state, m), mask=exists)
    tl.store(number_at(parts_ptr, PART_TIES, step, row), held(state, ties), mask=exists)
    tl.store(number_at(parts_ptr, PART_REST, step, row), held(state, rest), mask=exists)
    tl.store(number_at(parts_ptr, PART_TERMS_BELOW, step, row), held(state, terms_below), mask=exists)
    tl.store(number_at(parts_ptr, PART_MASS, step, row), held(state, masses), mask=exists)
    tl.store(number_at(parts_ptr, PART_MASS_BELOW, step, row), held(state, below), mask=exists)
    tl.store(number_at(parts_ptr, PART_HOT_Z, step, row), held(state, hot_z), mask=exists)


@triton.jit
def part_class(target_ptr, row, exists, begin, whole_classes, ignore_index, like):
    """The class index, which may lie outside the classes that are read, and the row's state, as in
    hot_class."""
    y = tl.load(target_ptr + row, mask=exists, other=ignore_index).to(tl.int64)
    counts = exists & (y != ignore_index)
    inside = (y >= 0) & (y < whole_classes)
    tl.device_assert(inside | ~counts, "softkern.cross_entropy: Target is out of bounds.")
    is_hot = counts & inside
    state = tl.where(is_hot, 1.0, tl.where(counts, float("nan"), 0.0)).to(like.dtype)
    return tl.where(is_hot, y - begin, -1), state


@triton.jit(
    do_not_specialize=(
        "inner_units", "rows", "per_row", "begin", "whole_classes", "whole_step", "ignore_index"
    ),
    debug=True,
)  # fmt: skip
def part_gradient_kernel(x_ptr, target_ptr, weight_ptr, row_weight_ptr, hot_mass_ptr, factor_ptr, g_loss_ptr,
                         g_log_prob_ptr, g_lse_ptr, g_entropy_ptr, whole_ptr, grad_ptr, kept_ptr,
                         class_count_units, inner_units, rows, per_row, begin, whole_classes, whole_step,
                         x_plane, x_row, x_class, t_plane, t_row, t_class, grad_plane, grad_row, grad_class,
                         ignore_index, keep: "fp64", share: "fp64", inner: "fp64", outer: "fp64",
                         uncap: "fp64", slope_at_0: "fp64", zeta: "fp64", constant_factor: "fp64",
                         DTYPE: tl.constexpr, KIND: tl.constexpr, SPREAD: tl.constexpr, Z: tl.constexpr,
                         BEHIND: tl.constexpr, FLAT: tl.constexpr, ALIGN_C: tl.constexpr,
                         ALIGN_R: tl.constexpr, WIDE: tl.constexpr, BLOCK_R: tl.constexpr,
                         BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """The gradient of x as in row_losses_kernel, from the numbers of whole rows. Programs are independent:
    each one has a block of classes, or several if there are fewer programs than blocks. grad may be x."""
    classes = class_count_units * ALIGN_C
    keep = argument(keep, DTYPE)
    share = argument(share, DTYPE)
    inner = argument(inner, DTYPE)
    outer = argument(outer, DTYPE)
    uncap = argument(uncap, DTYPE)
    slope_at_0 = argument(slope_at_0, DTYPE)
    zeta = argument(zeta, DTYPE)
    plane, position, row, exists = place(rows, inner_units * ALIGN_R, BEHIND, FLAT, BLOCK_R)
    x_rows = row_pointers(x_ptr, plane, position, x_plane, x_row, ALIGN_C, ALIGN_R)
    grad_rows = row_pointers(grad_ptr, plane, position, grad_plane, grad_row, ALIGN_C, ALIGN_R)
    like = tl.zeros([BLOCK_R, 1], DTYPE)
    WEIGHTED: tl.constexpr = weight_ptr is not None
    ENTROPY: tl.constexpr = g_entropy_ptr is not None
    PROBABLE: tl.constexpr = KIND == PROBABILITIES

    m = tl.load(number_at(whole_ptr, PART_MAX, whole_step, row), mask=exists, other=0)
    ties = tl.load(number_at(whole_ptr, PART_TIES, whole_step, row), mask=exists, other=1)
    rest = tl.load(number_at(whole_ptr, PART_REST, whole_step, row), mask=exists, other=0)
    inverse = inverse_of(total(ties, top_term(m), rest))
    masses, g_entropy, mean_below = like, like, like
    if SPREAD:
        masses = tl.load(number_at(whole_ptr, PART_MASS, whole_step, row), mask=exists, other=0)
    if ENTROPY:
        g_entropy = load_number(g_entropy_ptr, row, exists, like)
        terms_below = tl.load(number_at(whole_ptr, PART_TERMS_BELOW, whole_step, row), mask=exists, other=0)
        mean_below = terms_below * inverse
    g = loss_pull(constant_factor, factor_ptr, g_loss_ptr, load_number(row_weight_ptr, row, exists, like + 1),
                  row, exists, DTYPE)  # fmt: skip

    t_rows, hot, hot_z, hot_pulls = x_rows, like.to(tl.int64) - 1, like, like
    weight, state = like + 1, like + 1
    if PROBABLE:
        t_rows = row_pointers(target_ptr, plane, position, t_plane, t_row, ALIGN_C, ALIGN_R)
    if KIND == INDEX:
        hot, state = part_class(target_ptr, row, exists, begin, whole_classes, ignore_index, like)
        # Not the logit that is read here: another product of matrices may have rounded it differently, and
        # p - 1 would lose its digits.
        hot_z = tl.load(number_at(whole_ptr, PART_HOT_Z, whole_step, row), mask=exists, other=0)
        if WEIGHTED:
            weight = widen(tl.load(weight_ptr + hot, mask=state == 1, other=0))
        mass_of_hot = weighted(hot_mass(keep, share), weight)
        hot_pulls = g * mass_of_hot - load_number(g_log_prob_ptr, row, exists, like)
    if KIND == INDICES:
        for first in range(0, per_row, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)[None, :]
            there = exists & (k < per_row)
            at = row * per_row + k
            mass_of_k = tl.load(hot_mass_ptr + at, mask=there, other=0)
            h = g * mass_of_k - load_number(g_log_prob_ptr, at, there, tl.zeros_like(mass_of_k))
            hot_pulls += tl.sum(tl.where(there, h, 0.0), 1, keep_dims=True)

    lse = lse_of(m, log_d(ties, top_term(m), rest))
    pull = common_pull(g, masses, zeta, weight, lse, load_number(g_lse_ptr, row, exists, like))
    pull -= g_entropy * mean_below
    scale = (pull + hot_pulls) * inverse
    slope = g_entropy * inverse
    hot_dz = like
    if KIND == INDEX:
        hot_dz = hot_pull(hot_pulls, pull, slope, hot_z, m, ties, rest, inverse, ENTROPY)
    if KIND == INDICES and tl.program_id(1) == 0:
        store_kept(kept_ptr, row, exists, m, ties, rest, pull, slope, g)

    for first in range(tl.program_id(1) * BLOCK_C, classes, tl.num_programs(1) * BLOCK_C):
        z = load_logits(x_rows, first, classes, x_class, exists, inner, outer, Z, ALIGN_R, WIDE, BLOCK_C)
        if KIND == INDEX and Z == CAPPED:
            z = tl.where(first + tl.arange(0, BLOCK_C)[None, :] == hot, hot_z, z)
        mass = like
        if SPREAD:
            mass = load_mass(t_rows, weight_ptr, first, classes, t_class, exists, keep, share, like, PROBABLE,
                             WEIGHTED, ALIGN_R, WIDE, BLOCK_C)  # fmt: skip
        store_gradient(grad_rows, z, mass, m, scale, slope, g, hot_dz, hot, state, uncap, slope_at_0, first,
                       classes, grad_class, exists, KIND, SPREAD, ENTROPY, Z, ALIGN_R, WIDE,
                       BLOCK_C)  # fmt: skip
