# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernel that scales stored gradients (csrc/cuda/scale.cu), on a GPU or in the emulator: every way,
wherever rows begin. The step is called by its ops: the gradients can be any numbers."""

from __future__ import annotations

import math

import pytest
import torch
from compare import assert_same_bits
from cuda_checks import DTYPES, by_kernels, full, indices, logits, tensor, way, zeros

pytestmark = by_kernels
inf, nan = math.inf, math.nan

PACKED, WORDS, ELEMENTS, COLUMNS = (f"{how}, scaled" for how in ("packed", "words", "elements", "columns"))
IGNORED = -100


def scaled(g, grad, scale, target, over):
    """By the kernel, over the gradient or into memory of its own."""
    if not over:
        return torch.ops.softkern.cross_entropy_backward(g, grad, scale, target, IGNORED)
    torch.ops.softkern.cross_entropy_backward_(g, grad, scale, target, IGNORED)
    return grad


def expected(g, grad, scale, target):
    """The same by torch, one rounding after the other."""
    factor = (g.to(scale.dtype) * scale).unsqueeze(1) if g.dim() > 0 else g.to(scale.dtype) * scale
    found = (grad.to(scale.dtype) * factor).to(grad.dtype)
    return found.masked_fill((target == IGNORED).unsqueeze(1), 0)


def check(grad, *, by_row, over, value=0.75):
    """One factor, or one for each row, of which some are value and some rows are ignored."""
    rows = (grad.shape[0], *grad.shape[2:])
    target = indices(grad.shape)
    target[1::3] = IGNORED
    grad.masked_fill_((target == IGNORED).unsqueeze(1), 0)
    scale = tensor(1.5, dtype=torch.float64 if grad.dtype == torch.float64 else torch.float32)
    g = tensor(value)
    if by_row:
        g = logits(*rows, seed=3)
        g[::2] = value
        g[-1] = 2 / 3  # times the scale: a factor of 1
    wanted = expected(g, grad.clone(), scale, target)
    assert_same_bits(scaled(g, grad, scale, target, over), wanted)


def within(shape, strides, dtype, off=0):
    """A gradient with these strides that begins after `off` numbers; and all of its memory."""
    size = off + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1
    memory = full((size + 8,), 77.0, dtype=dtype)
    grad = memory.as_strided(shape, strides, off)
    grad.copy_(logits(*shape, dtype=dtype))
    return grad, memory


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("by_row", (False, True), ids=("one factor", "by row"))
@pytest.mark.parametrize("shape", ((2, 1), (7, 1), (9, 3), (5, 77), (4, 3, 5)), ids=str)
def test_packed_gradients_that_begin_anywhere(shape, by_row, dtype):
    """In place, words of 16 bytes lie between elements; neighbours in memory keep their values."""
    for off in range(0, 16 // dtype.itemsize):
        grad, memory = within(shape, zeros(shape).stride(), dtype, off)
        before = memory.clone()
        check(grad, by_row=by_row, over=True)
        assert way() == (PACKED if len(shape) == 2 else COLUMNS)
        outside = torch.ones_like(memory, dtype=torch.bool)
        outside.as_strided(shape, zeros(shape).stride(), off).fill_(False)
        assert_same_bits(memory[outside], before[outside])


@pytest.mark.parametrize("by_row", (False, True), ids=("one factor", "by row"))
@pytest.mark.parametrize("off", (0, 1, 3))
def test_memory_of_its_own(by_row, off):
    """Where its alignment is another, there are no words that both have."""
    for dtype in (torch.float32, torch.bfloat16):
        for shape in ((5, 77), (3, 700), (2, 37, 3)):
            grad, _ = within(shape, zeros(shape).stride(), dtype, off)
            check(grad, by_row=by_row, over=False)
            if len(shape) == 2:
                assert way() == (ELEMENTS if off else PACKED)


STRIDED = (
    ((4, 77), (96, 1), WORDS),  # rows of more classes, in the middle of a padded vocabulary
    ((4, 2500), (2563, 1), WORDS),
    ((3, 10, 2, 2), (48, 1, 24, 12), WORDS),  # channels last, padded
    ((3, 10, 4), (10, 1, 30), WORDS),  # packed, but rows are not in their order
    ((70, 40), (1, 70), COLUMNS),  # transposed
    ((70, 40), (2, 140), COLUMNS),
    ((3, 40, 35), (1400, 35, 1), COLUMNS),
    ((3, 40, 35), (1600, 40, 1), COLUMNS),
    ((4, 600), (1500, 2), ELEMENTS),
    ((1, 600), (1, 3), ELEMENTS),
)


@pytest.mark.parametrize("by_row", (False, True), ids=("one factor", "by row"))
@pytest.mark.parametrize(("shape", "strides", "path"), STRIDED, ids=str)
def test_strided_gradients(shape, strides, path, by_row):
    for dtype in (torch.float32, torch.bfloat16):
        for off in (0, 3):
            grad, memory = within(shape, strides, dtype, off)
            before = memory.clone()
            check(grad, by_row=by_row, over=True)
            assert way() == path
            outside = torch.ones_like(memory, dtype=torch.bool)
            outside.as_strided(shape, strides, off).fill_(False)
            assert_same_bits(memory[outside], before[outside])


@pytest.mark.parametrize("by_row", (False, True), ids=("one factor", "by row"))
@pytest.mark.parametrize("value", (inf, -inf, nan, 0.0, -0.0, -2.0), ids=str)
def test_zeros_of_ignored_rows_stay(value, by_row):
    """Times inf or NaN they would be NaN, times a negative number -0."""
    for shape, strides in (
        ((6, 33), (33, 1)),
        ((6, 33), (40, 1)),
        ((6, 33), (1, 6)),
        ((6, 5, 4), (20, 4, 1)),
    ):
        grad, _ = within(shape, strides, torch.bfloat16)
        check(grad, by_row=by_row, over=True, value=value)


def test_more_words_than_the_grid_has_threads():
    """Each takes several, in rounds, of rows that are no whole number of words."""
    grad, _ = within((1031, 4099), (4099, 1), torch.float64)
    check(grad, by_row=True, over=True)
    assert way() == PACKED


def test_more_pieces_than_the_grid_has_warps():
    grad, _ = within((2048 * 8 + 5, 3), (4, 1), torch.float32)
    check(grad, by_row=True, over=True)
    assert way() == WORDS
