# SPDX-License-Identifier: Apache-2.0
"""Sums over the rows: of the targets' weights, before the losses, and of the losses. Sums are made in
float64, without atomics, in an order that depends on the number of rows only."""

from __future__ import annotations

import triton
import triton.language as tl

from softkern.triton.elementary import argument, narrow

BLOCK: tl.constexpr = tl.constexpr(4096)


@triton.jit
def part_of(rows, parts):
    """The rows of this program: [first, end)."""
    size = tl.cdiv(tl.cdiv(rows, parts), BLOCK) * BLOCK
    first = tl.program_id(0).to(tl.int64) * size
    return first, tl.minimum(first + size, rows)


@triton.jit
def sum_of_parts(sums_ptr, parts, BLOCK_P: tl.constexpr):
    part = tl.arange(0, BLOCK_P)
    return tl.sum(tl.load(sums_ptr + part, mask=part < parts, other=0.0))


@triton.jit
def store_mass(mass, weighty, mass_ptr, factor_ptr):
    """If all weights are 0, there is no mean: it is 0/0, even if label smoothing alone would make it x/0."""
    mass = tl.where(weighty == 0, float("nan"), mass)
    tl.store(mass_ptr, mass)
    tl.store(factor_ptr, (1.0 / mass).to(factor_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=("rows", "classes", "ignore_index", "parts"))
def mass_kernel(target_ptr, weight_ptr, mass_ptr, factor_ptr, sums_ptr, rows, classes, ignore_index, parts,
                ALONE: tl.constexpr):  # fmt: skip
    """The total weight of the targets that are not ignored, and the number of nonzero weights. If one program
    is enough, it stores the weight of all rows and its reciprocal, otherwise the sums of its part of the
    rows."""
    first, end = part_of(rows, parts)
    masses = tl.zeros([BLOCK], tl.float64)
    weighty = tl.zeros([BLOCK], tl.float64)
    for start in range(first, end, BLOCK):
        row = start + tl.arange(0, BLOCK)
        y = tl.load(target_ptr + row, mask=row < end, other=ignore_index).to(tl.int64)
        counts = (y != ignore_index) & (y >= 0) & (y < classes) & (row < end)
        if weight_ptr is not None:
            w = tl.load(weight_ptr + y, mask=counts, other=0).to(tl.float64)
        else:
            w = counts.to(tl.float64)
        masses += w
        weighty += (w != 0).to(tl.float64)
    if ALONE:
        store_mass(tl.sum(masses), tl.sum(weighty), mass_ptr, factor_ptr)
    else:
        tl.store(sums_ptr + tl.program_id(0), tl.sum(masses))
        tl.store(sums_ptr + parts + tl.program_id(0), tl.sum(weighty))


@triton.jit(do_not_specialize=("parts",))
def merge_mass_kernel(sums_ptr, mass_ptr, factor_ptr, parts, BLOCK_P: tl.constexpr):
    mass = sum_of_parts(sums_ptr, parts, BLOCK_P)
    store_mass(mass, sum_of_parts(sums_ptr + parts, parts, BLOCK_P), mass_ptr, factor_ptr)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """Rounds a float64 to the dtype. 16-bit types are rounded to float32 first, as a sum in float32 would
    be."""
    if dtype != tl.float64:
        x = narrow(x.to(tl.float32), dtype)
    return x


@triton.jit
def store_loss(total, mass_ptr, storage_ptr, loss_ptr, grad_scale_ptr, mass, storage):
    """Stores the reduced loss and the factor of stored gradients. A storage of 0 means that they are stored
    unscaled; their factor is then 1."""
    mass = argument(mass, tl.float64)
    storage = argument(storage, tl.float64)
    if mass_ptr is not None:
        mass = tl.load(mass_ptr)
    tl.store(loss_ptr, rounded(total / mass, loss_ptr.dtype.element_ty))
    if grad_scale_ptr is not None:
        if storage_ptr is not None:
            storage = tl.load(storage_ptr).to(tl.float64)
        scale = tl.where(storage == 0, 1.0, 1.0 / (mass * storage))
        tl.store(grad_scale_ptr, scale.to(grad_scale_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=("rows", "parts"))
def loss_kernel(losses_ptr, mass_ptr, storage_ptr, loss_ptr, grad_scale_ptr, sums_ptr, rows, parts,
                mass: "fp64", storage: "fp64", ALONE: tl.constexpr):  # fmt: skip
    first, end = part_of(rows, parts)
    losses = tl.zeros([BLOCK], tl.float64)
    for start in range(first, end, BLOCK):
        row = start + tl.arange(0, BLOCK)
        losses += tl.load(losses_ptr + row, mask=row < end, other=0).to(tl.float64)
    if ALONE:
        store_loss(tl.sum(losses), mass_ptr, storage_ptr, loss_ptr, grad_scale_ptr, mass, storage)
    else:
        tl.store(sums_ptr + tl.program_id(0), tl.sum(losses))


@triton.jit(do_not_specialize=("parts",))
def merge_loss_kernel(mass_ptr, storage_ptr, loss_ptr, grad_scale_ptr, sums_ptr, parts, mass: "fp64",
                      storage: "fp64", BLOCK_P: tl.constexpr):  # fmt: skip
    total = sum_of_parts(sums_ptr, parts, BLOCK_P)
    store_loss(total, mass_ptr, storage_ptr, loss_ptr, grad_scale_ptr, mass, storage)
