# SPDX-License-Identifier: Apache-2.0
"""Blocks of classes of the kernels of row_losses: their logits z, sums and gradients."""

from __future__ import annotations

import triton
import triton.language as tl

from softkern.triton.cross_entropy_kernels import spread_sums
from softkern.triton.elementary import argument, narrow
from softkern.triton.formulas import (
    finite,
    hot_gradient,
    is_finite,
    less_mass,
    logit_slope,
    term_below,
    term_pull,
    terms_below_moved,
    top_term,
    total,
    transformed,
    unit_ratio,
)
from softkern.triton.rows import block_statistics, load_classes, store_classes, terms

# What the targets are.
NONE: tl.constexpr = tl.constexpr(0)
INDEX: tl.constexpr = tl.constexpr(1)  # one a row
INDICES: tl.constexpr = tl.constexpr(2)  # K of them a row
PROBABILITIES: tl.constexpr = tl.constexpr(3)
# How z is made of x.
SAME: tl.constexpr = tl.constexpr(0)
SCALED: tl.constexpr = tl.constexpr(1)
CAPPED: tl.constexpr = tl.constexpr(2)
# A class number above all others. Rows are shorter.
NO_CLASS: tl.constexpr = tl.constexpr(2**31 - 1)


@triton.jit
def logit(inner, outer, x, Z: tl.constexpr):
    return x if Z == SAME else transformed(inner, outer, x, Z == CAPPED)


@triton.jit
def load_logits(x_rows, first, end, x_class, exists, inner, outer, Z: tl.constexpr, ALIGN_R: tl.constexpr,
                WIDE: tl.constexpr, BLOCK_C: tl.constexpr):  # fmt: skip
    """z of a block of classes; -inf after the end of the row."""
    x = load_classes(x_rows, first, end, x_class, exists, ALIGN_R, WIDE, BLOCK_C, float("-inf"))
    return logit(inner, outer, x, Z)


@triton.jit
def or_total(m, ties, rest):
    """The total of a part; without a finite maximum, a number that unit_ratio's 0 makes 0."""
    return tl.where(is_finite(m), total(ties, top_term(m), rest), rest)


@triton.jit
def merge_terms_below(m_1, ties_1, rest_1, below_1, m_2, ties_2, rest_2, below_2):
    """The sum_c e_c (m - z_c) of two parts, relative to the larger maximum."""
    m = tl.maximum(m_1, m_2)
    below_1 = terms_below_moved(m, m_1, or_total(m_1, ties_1, rest_1), unit_ratio(m_1, m), below_1)
    below_2 = terms_below_moved(m, m_2, or_total(m_2, ties_2, rest_2), unit_ratio(m_2, m), below_2)
    return below_1 + below_2


@triton.jit
def first_top(z, m, first, BLOCK_C: tl.constexpr):
    """The first class of a block that has the maximum, and the first that is NaN; NO_CLASS for none."""
    classes = first + tl.arange(0, BLOCK_C)[None, :]
    top = tl.min(tl.where(z == m, classes, NO_CLASS), 1, keep_dims=True)
    return top, tl.min(tl.where(z != z, classes, NO_CLASS), 1, keep_dims=True)


@triton.jit
def merge_top(m_1, top_1, m_2, top_2):
    """Of two parts, the second of which has the higher classes."""
    return tl.where(m_2 > m_1, top_2, tl.where(m_2 == m_1, tl.minimum(top_1, top_2), top_1))


@triton.jit
def block_sums(z, mass, first, end, SPREAD: tl.constexpr, ENTROPY: tl.constexpr, TOP: tl.constexpr,
               BLOCK_C: tl.constexpr):  # fmt: skip
    """1 max, 2 sum-exp of a block, and the other sums that are wanted."""
    m, ties, rest = block_statistics(z)
    terms_below, masses, below = tl.zeros_like(m), tl.zeros_like(m), tl.zeros_like(m)
    top, nan = tl.zeros_like(m).to(tl.int32), tl.zeros_like(m).to(tl.int32)
    if ENTROPY:
        terms_below = tl.sum(term_below(terms(z, m), finite(m) - z), 1, keep_dims=True)
    if SPREAD:
        masses, below = spread_sums(z, mass, m, first, end, BLOCK_C)
    if TOP:
        top, nan = first_top(z, m, first, BLOCK_C)
    return m, ties, rest, terms_below, masses, below, top, nan


@triton.jit
def held(state, value):
    """0 in an ignored row, NaN in a row whose target is out of range (see hot_class)."""
    return tl.where(state == 0, 0.0, tl.where(state == state, value, state))


@triton.jit
def loss_pull(constant_factor, factor_ptr, g_loss_ptr, r, row, exists, DTYPE: tl.constexpr):
    """The upstream gradient of the row's loss without its weight r."""
    factor = argument(constant_factor, DTYPE)
    if factor_ptr is not None:
        factor *= tl.load(factor_ptr)
    g = factor * r
    if g_loss_ptr is not None:
        g *= tl.load(g_loss_ptr + row, mask=exists, other=0)
    return g


@triton.jit
def hot_pull(h, others, slope, z, m, ties, rest, inverse, ENTROPY: tl.constexpr):
    """dz of a hot class without its spread mass. h: its hot part; others: alpha - h, less g_h E / total."""
    e = terms(z, m)
    dz = hot_gradient(1.0, h, others, z, e, m, ties, rest, inverse)
    if ENTROPY:
        dz += slope * term_below(e, finite(m) - z)
    return dz


@triton.jit
def store_gradient(grad_rows, z, mass, m, scale, slope, g, hot_dz, hot, state, uncap, slope_at_0, first, end,
                   grad_class, exists, KIND: tl.constexpr, SPREAD: tl.constexpr, ENTROPY: tl.constexpr,
                   Z: tl.constexpr, ALIGN_R: tl.constexpr, WIDE: tl.constexpr,
                   BLOCK_C: tl.constexpr):  # fmt: skip
    """3 write"""
    classes = first + tl.arange(0, BLOCK_C)[None, :]
    e = terms(z, m)
    dz = term_pull(scale, slope, e, finite(m) - z) if ENTROPY else e * scale
    if KIND == INDEX:
        dz = tl.where(classes == hot, hot_dz, dz)
    if SPREAD:
        dz = less_mass(dz, mass, -g)
    if Z != SAME:
        dz *= logit_slope(uncap, slope_at_0, z, Z == CAPPED)
    if KIND == INDEX:
        dz = held(state, dz)
    store_classes(grad_rows, dz, first, end, grad_class, exists, ALIGN_R, WIDE, BLOCK_C)


@triton.jit
def load_number(pointer, row, exists, like):
    """A number of each row; 0 without a pointer."""
    number = like
    if pointer is not None:
        number = tl.load(pointer + row, mask=exists, other=0)
    return number


@triton.jit
def store_number(pointer, row, exists, number):
    if pointer is not None:
        tl.store(pointer + row, narrow(number, pointer.dtype.element_ty), mask=exists)
