# SPDX-License-Identifier: Apache-2.0
"""Merges the numbers of parts of rows, and computes the rows' results from them. Blocks are (R, P) here: P
parts of R rows, all of which a thread has of its row."""

from __future__ import annotations

import triton
import triton.language as tl

from softkern.triton.elementary import argument, inverse_of, widen
from softkern.triton.formulas import (
    entropy_of,
    hot_loss,
    hot_mass,
    log_d,
    log_prob_of,
    lse_of,
    merge_part,
    spread_loss,
    squared_lse,
    top_term,
    total,
    weighted,
)
from softkern.triton.row_losses_blocks import INDEX, INDICES, held, load_number, store_number
from softkern.triton.row_parts_kernels import (
    PART_HOT_Z,
    PART_MASS,
    PART_MASS_BELOW,
    PART_MAX,
    PART_REST,
    PART_TERMS_BELOW,
    PART_TIES,
    number_at,
    part_class,
    store_parts,
)


@triton.jit
def load_part(parts_ptr, number: tl.constexpr, number_step, at, there, other):
    return tl.load(number_at(parts_ptr, number, number_step, at), mask=there, other=other)


@triton.jit
def pairs(x):
    """The parts 2 k and those after them."""
    return tl.split(tl.reshape(x, (x.shape[0], x.shape[1] // 2, 2)))


@triton.jit
def load_merged(parts_ptr, parts, number_step, part_step, row, exists, LEVELS: tl.constexpr):
    """The numbers of this program's 2^LEVELS parts, merged in pairs, pairs of pairs, and so on. Behind the
    last part are parts without classes, which change nothing."""
    part = tl.program_id(1) * (1 << LEVELS) + tl.arange(0, 1 << LEVELS)[None, :]
    there = exists & (part < parts)
    at = part * part_step.to(tl.int64) + row
    m = load_part(parts_ptr, PART_MAX, number_step, at, there, float("-inf"))
    ties = load_part(parts_ptr, PART_TIES, number_step, at, there, 0)
    rest = load_part(parts_ptr, PART_REST, number_step, at, there, 0)
    terms_below = load_part(parts_ptr, PART_TERMS_BELOW, number_step, at, there, 0)
    mass = load_part(parts_ptr, PART_MASS, number_step, at, there, 0)
    below = load_part(parts_ptr, PART_MASS_BELOW, number_step, at, there, 0)
    hot_z = load_part(parts_ptr, PART_HOT_Z, number_step, at, there, 0)
    for _ in tl.static_range(LEVELS):
        m_1, m_2 = pairs(m)
        ties_1, ties_2 = pairs(ties)
        rest_1, rest_2 = pairs(rest)
        terms_1, terms_2 = pairs(terms_below)
        mass_1, mass_2 = pairs(mass)
        below_1, below_2 = pairs(below)
        hot_z_1, hot_z_2 = pairs(hot_z)
        m, ties, rest, terms_below, mass, below, hot_z = merge_part(
            m_1, ties_1, rest_1, terms_1, mass_1, below_1, hot_z_1,
            m_2, ties_2, rest_2, terms_2, mass_2, below_2, hot_z_2,
        )  # fmt: skip
    return m, ties, rest, terms_below, mass, below, hot_z


@triton.jit(
    do_not_specialize=(
        "rows", "parts", "number_step", "part_step", "merged_step", "merged_part_step", "per_row",
        "whole_classes", "ignore_index",
    ),
    debug=True,
)  # fmt: skip
def row_merge_kernel(parts_ptr, hot_z_ptr, target_ptr, probs_ptr, weight_ptr, row_weight_ptr, loss_ptr,
                     log_prob_ptr, lse_ptr, entropy_ptr, merged_ptr, rows, parts, number_step, part_step,
                     merged_step, merged_part_step, per_row, whole_classes, ignore_index, keep: "fp64",
                     zeta: "fp64", DTYPE: tl.constexpr, KIND: tl.constexpr, LEVELS: tl.constexpr,
                     BLOCK_R: tl.constexpr):  # fmt: skip
    """Writes the outputs whose pointers are given: the merged numbers of each program's parts and, if one
    program has all parts of a row, the row's results, as row_losses_kernel writes them."""
    keep = argument(keep, DTYPE)
    zeta = argument(zeta, DTYPE)
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    exists = row < rows
    like = tl.zeros([BLOCK_R, 1], DTYPE)
    m, ties, rest, terms_below, mass, below, hot_z = load_merged(
        parts_ptr, parts, number_step, part_step, row, exists, LEVELS
    )
    if merged_ptr is not None:
        at = row + tl.program_id(1) * merged_part_step.to(tl.int64)
        store_parts(merged_ptr, merged_step, at, exists, like + 1, m, ties, rest, terms_below, mass, below,
                    hot_z)  # fmt: skip

    WEIGHTED: tl.constexpr = weight_ptr is not None
    weight, state, mass_of_hot = like + 1, like + 1, like
    if KIND == INDEX:
        hot, state = part_class(target_ptr, row, exists, 0, whole_classes, ignore_index, like)
        if WEIGHTED:
            weight = widen(tl.load(weight_ptr + hot, mask=state == 1, other=0))
        mass_of_hot = weighted(hot_mass(keep, 0), weight)
    log_of_d = log_d(ties, top_term(m), rest)
    lse = lse_of(m, log_of_d)
    loss = squared_lse(zeta, weight, lse) + spread_loss(mass, below, log_of_d)
    if KIND == INDEX:
        loss += hot_loss(mass_of_hot, m - hot_z, log_of_d)
        store_number(log_prob_ptr, row, exists, held(state, log_prob_of(m - hot_z, log_of_d)))
    if KIND == INDICES:
        for k in range(per_row):
            at_k = row * per_row + k
            below_z = m - tl.load(hot_z_ptr + at_k, mask=exists, other=0)
            if probs_ptr is not None:
                mass_of_k = hot_mass(keep, 0) * tl.load(probs_ptr + at_k, mask=exists, other=0)
                if WEIGHTED:
                    y = tl.load(target_ptr + at_k, mask=exists, other=0).to(tl.int64)
                    inside = (y >= 0) & (y < whole_classes)
                    tl.device_assert(inside | ~exists, "softkern.cross_entropy: Target is out of bounds.")
                    w = tl.load(weight_ptr + y, mask=exists & inside, other=float("nan"))
                    mass_of_k = weighted(mass_of_k, widen(w))
                loss += hot_loss(mass_of_k, below_z, log_of_d)
            store_number(log_prob_ptr, at_k, exists, log_prob_of(below_z, log_of_d))
    r = load_number(row_weight_ptr, row, exists, like + 1)
    store_number(loss_ptr, row, exists, held(state, r * loss))
    store_number(lse_ptr, row, exists, held(state, lse))
    mean_below = terms_below * inverse_of(total(ties, top_term(m), rest))
    store_number(entropy_ptr, row, exists, held(state, entropy_of(log_of_d, mean_below)))
