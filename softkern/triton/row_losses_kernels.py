# SPDX-License-Identifier: Apache-2.0
"""Losses and statistics of rows, and their gradient for any upstream gradients. formulas.py has the
formulas.

One program computes all blocks of a row, however long the row is: unlike in cross_entropy_kernels.py,
programs share no row.

K class indices a row take two more kernels (row_losses_hot_kernels.py): gather_kernel reads their logits
before the gradient may overwrite them, scatter_kernel writes their gradients after the gradient of all
classes. In one kernel, threads of a program would read what others write, and Triton does not order these
accesses on every GPU."""

from __future__ import annotations

import triton
import triton.language as tl

from softkern.triton.cross_entropy_kernels import hot_class, load_mass, merge_spread
from softkern.triton.elementary import argument, inverse_of, widen
from softkern.triton.formulas import (
    common_pull,
    entropy_of,
    hot_loss,
    hot_mass,
    log_d,
    log_prob_of,
    lse_of,
    spread_loss,
    squared_lse,
    top_term,
    total,
    weighted,
)
from softkern.triton.row_losses_blocks import (
    INDEX,
    INDICES,
    NO_CLASS,
    PROBABILITIES,
    block_sums,
    held,
    hot_pull,
    load_logits,
    load_number,
    logit,
    loss_pull,
    merge_terms_below,
    merge_top,
    store_gradient,
    store_number,
)
from softkern.triton.row_losses_hot_kernels import store_kept
from softkern.triton.row_parts_kernels import part_class, store_parts
from softkern.triton.rows import class_offsets, merge, no_statistics, place, row_pointers


@triton.jit(
    do_not_specialize=(
        "inner_units", "rows", "per_row", "begin", "whole_classes", "parts_step", "ignore_index"
    ),
    debug=True,
)  # fmt: skip
def row_losses_kernel(x_ptr, target_ptr, weight_ptr, row_weight_ptr, hot_z_ptr, hot_mass_ptr, factor_ptr,
                      g_loss_ptr, g_log_prob_ptr, g_lse_ptr, g_entropy_ptr, loss_ptr, log_prob_ptr, lse_ptr,
                      entropy_ptr, argmax_ptr, correct_ptr, parts_ptr, grad_ptr, kept_ptr, class_count_units,
                      inner_units, rows, per_row, begin, whole_classes, parts_step, x_plane, x_row, x_class,
                      t_plane, t_row, t_class, grad_plane, grad_row, grad_class, ignore_index, keep: "fp64",
                      share: "fp64", inner: "fp64", outer: "fp64", uncap: "fp64", slope_at_0: "fp64",
                      zeta: "fp64", constant_factor: "fp64", DTYPE: tl.constexpr, KIND: tl.constexpr,
                      SPREAD: tl.constexpr, TERMS_BELOW: tl.constexpr, Z: tl.constexpr, BEHIND: tl.constexpr,
                      FLAT: tl.constexpr, ALIGN_C: tl.constexpr, ALIGN_R: tl.constexpr, WIDE: tl.constexpr,
                      SINGLE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
                      BLOCK_K: tl.constexpr):  # fmt: skip
    """Writes the outputs whose pointers are given and, with grad_ptr, the gradient of x for the upstream
    gradients: that of a row's loss is constant_factor, times the number at factor_ptr and that of the row at
    g_loss_ptr, if given. grad may be x. With INDICES, hot_z and hot_mass are those of gather_kernel, and kept
    gets the numbers of rows that scatter_kernel needs.

    With parts_ptr, x may have some classes of longer rows (row_parts_kernels.py). Without it, begin,
    whole_classes and parts_step are None. TERMS_BELOW: whether parts get E."""
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
    like = tl.zeros([BLOCK_R, 1], DTYPE)
    WEIGHTED: tl.constexpr = weight_ptr is not None
    ENTROPY: tl.constexpr = entropy_ptr is not None or g_entropy_ptr is not None or TERMS_BELOW
    TOP: tl.constexpr = argmax_ptr is not None or correct_ptr is not None
    PROBABLE: tl.constexpr = KIND == PROBABILITIES

    t_rows, hot, mass_of_hot, hot_z = x_rows, like.to(tl.int64) - 1, like, like
    weight, state = like + 1, like + 1
    if PROBABLE:
        t_rows = row_pointers(target_ptr, plane, position, t_plane, t_row, ALIGN_C, ALIGN_R)
    if KIND == INDEX:
        if parts_ptr is not None:
            hot, state = part_class(target_ptr, row, exists, begin, whole_classes, ignore_index, like)
            at = x_rows + class_offsets(hot, x_class, ALIGN_R, WIDE)
            # The z of a class that is not read is 0, as is that of a logit 0.
            hot_x = widen(tl.load(at, mask=(hot >= 0) & (hot < classes), other=0))
        else:
            hot, _, hot_x, state = hot_class(target_ptr, weight_ptr, x_rows, x_class, row, exists,
                                             classes, ignore_index, keep, share, like, ALIGN_R,
                                             WIDE)  # fmt: skip
        hot_z = logit(inner, outer, hot_x, Z)

    if SINGLE:
        z = load_logits(x_rows, 0, classes, x_class, exists, inner, outer, Z, ALIGN_R, WIDE, BLOCK_C)
        mass = like
        if SPREAD:
            mass = load_mass(t_rows, weight_ptr, 0, classes, t_class, exists, keep, share, like, PROBABLE,
                             WEIGHTED, ALIGN_R, WIDE, BLOCK_C)  # fmt: skip
        m, ties, rest, terms_below, masses, below, top, nan = block_sums(z, mass, 0, classes, SPREAD,
                                                                         ENTROPY, TOP, BLOCK_C)  # fmt: skip
    else:
        m, ties, rest = no_statistics(like)
        terms_below, masses, below = like, like, like
        top, nan = like.to(tl.int32) + NO_CLASS, like.to(tl.int32) + NO_CLASS
        for first in range(0, classes, BLOCK_C):
            z = load_logits(x_rows, first, classes, x_class, exists, inner, outer, Z, ALIGN_R, WIDE, BLOCK_C)
            mass = like
            if SPREAD:
                mass = load_mass(t_rows, weight_ptr, first, classes, t_class, exists, keep, share, like,
                                 PROBABLE, WEIGHTED, ALIGN_R, WIDE, BLOCK_C)  # fmt: skip
            m_b, ties_b, rest_b, terms_b, masses_b, below_b, top_b, nan_b = block_sums(
                z, mass, first, classes, SPREAD, ENTROPY, TOP, BLOCK_C
            )
            if ENTROPY:
                terms_below = merge_terms_below(m, ties, rest, terms_below, m_b, ties_b, rest_b, terms_b)
            if SPREAD:
                masses, below = merge_spread(masses, below, m, masses_b, below_b, m_b)
            if TOP:
                top = merge_top(m, top, m_b, top_b)
                nan = tl.minimum(nan, nan_b)
            m, ties, rest = merge(m, ties, rest, m_b, ties_b, rest_b)

    if KIND == INDEX:
        # Not kept from hot_class, for want of registers.
        if WEIGHTED:
            weight = widen(tl.load(weight_ptr + hot, mask=state == 1, other=0))
        mass_of_hot = weighted(hot_mass(keep, share), weight)
    log_of_d = log_d(ties, top_term(m), rest)
    inverse = inverse_of(total(ties, top_term(m), rest))
    lse = lse_of(m, log_of_d)
    mean_below = terms_below * inverse
    r = like + 1
    if row_weight_ptr is not None:
        r = tl.load(row_weight_ptr + row, mask=exists, other=0)

    g, g_entropy, pull, hot_pulls = like, like, like, like
    if grad_ptr is not None:
        g = loss_pull(constant_factor, factor_ptr, g_loss_ptr, r, row, exists, DTYPE)
        g_entropy = load_number(g_entropy_ptr, row, exists, like)
        g_lse = load_number(g_lse_ptr, row, exists, like)
        pull = common_pull(g, masses, zeta, weight, lse, g_lse) - g_entropy * mean_below
        if KIND == INDEX:
            hot_pulls = g * mass_of_hot - load_number(g_log_prob_ptr, row, exists, like)

    loss = squared_lse(zeta, weight, lse)
    if SPREAD:
        loss += spread_loss(masses, below, log_of_d)
    if KIND == INDEX:
        loss += hot_loss(mass_of_hot, m - hot_z, log_of_d)
        store_number(log_prob_ptr, row, exists, held(state, log_prob_of(m - hot_z, log_of_d)))
    if KIND == INDICES:
        for first in range(0, per_row, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)[None, :]
            there = exists & (k < per_row)
            at = row * per_row + k
            below_z = m - tl.load(hot_z_ptr + at, mask=there, other=0)
            mass_of_k = tl.load(hot_mass_ptr + at, mask=there, other=0)
            loss += tl.sum(tl.where(there, hot_loss(mass_of_k, below_z, log_of_d), 0.0), 1, keep_dims=True)
            store_number(log_prob_ptr, at, there, log_prob_of(below_z, log_of_d))
            if grad_ptr is not None:
                h = g * mass_of_k - load_number(g_log_prob_ptr, at, there, tl.zeros_like(below_z))
                hot_pulls += tl.sum(tl.where(there, h, 0.0), 1, keep_dims=True)
    if parts_ptr is not None:
        store_parts(parts_ptr, parts_step, row, exists, state, m, ties, rest, terms_below, masses, below,
                    hot_z)  # fmt: skip
    store_number(loss_ptr, row, exists, held(state, r * loss))
    store_number(lse_ptr, row, exists, held(state, lse))
    store_number(entropy_ptr, row, exists, held(state, entropy_of(log_of_d, mean_below)))
    if TOP:
        best = tl.where(nan < NO_CLASS, nan, top).to(tl.int64)
        if argmax_ptr is not None:
            tl.store(argmax_ptr + row, tl.where(state == 0, -1, best), mask=exists)
        if correct_ptr is not None:
            tl.store(correct_ptr + row, ((best == hot) & (state == 1)).to(tl.uint8), mask=exists)

    if grad_ptr is not None:
        PULLED: tl.constexpr = g_entropy_ptr is not None
        scale = (pull + hot_pulls) * inverse
        slope = g_entropy * inverse
        hot_dz = like
        if KIND == INDEX:
            hot_dz = hot_pull(hot_pulls, pull, slope, hot_z, m, ties, rest, inverse, PULLED)
        if KIND == INDICES:
            store_kept(kept_ptr, row, exists, m, ties, rest, pull, slope, g)
        grad_rows = row_pointers(grad_ptr, plane, position, grad_plane, grad_row, ALIGN_C, ALIGN_R)
        if SINGLE:
            store_gradient(grad_rows, z, mass, m, scale, slope, g, hot_dz, hot, state, uncap, slope_at_0, 0,
                           classes, grad_class, exists, KIND, SPREAD, PULLED, Z, ALIGN_R, WIDE,
                           BLOCK_C)  # fmt: skip
        else:
            for first in range(0, classes, BLOCK_C):
                z = load_logits(x_rows, first, classes, x_class, exists, inner, outer, Z, ALIGN_R, WIDE,
                                BLOCK_C)  # fmt: skip
                mass = like
                if SPREAD:
                    mass = load_mass(t_rows, weight_ptr, first, classes, t_class, exists, keep, share, like,
                                     PROBABLE, WEIGHTED, ALIGN_R, WIDE, BLOCK_C)  # fmt: skip
                store_gradient(grad_rows, z, mass, m, scale, slope, g, hot_dz, hot, state, uncap, slope_at_0,
                               first, classes, grad_class, exists, KIND, SPREAD, PULLED, Z, ALIGN_R, WIDE,
                               BLOCK_C)  # fmt: skip
