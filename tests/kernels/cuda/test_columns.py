# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of rows whose classes are apart: the same bits however the rows are copied."""

from __future__ import annotations

import math

import pytest
import torch
from compare import assert_same_bits
from cuda_checks import (
    COLUMNS,
    DTYPES,
    EMULATED,
    SOFTMAXES,
    TILE,
    by_kernels,
    check_everything,
    emulated,
    full,
    indices,
    logits,
    way,
)

import softkern

pytestmark = by_kernels

# Of the positions behind the classes: so many elements of a class can be copied at a time, if they begin at
# a multiple of 16 bytes. 17 planes of 8 positions are 136 rows: more than a block has, and the last block has
# fewer.
POSITIONS = 8
PLANES = 17
# One thread a row; and threads that share it, with 1, 2, 3 and 8 threads or more.
FEW, MANY = (1, 2, 9, 21, 32), (33, 64, 65, 150, 513)


def placed(x, strides, offset=0):
    """x with these strides, so many elements behind a multiple of 16 bytes."""
    size = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, strides, strict=True))
    whole = full((size + offset,), math.nan, dtype=x.dtype)
    return whole[offset:].as_strided(x.shape, strides).copy_(x)


def everywhere(x):
    """With copies of every size, down to one element, and with classes next to each other."""
    planes, classes, positions = x.shape
    packed = (classes * positions, positions, 1)
    size = 16 // x.element_size()
    yield placed(x, packed)
    for offset in {1, size // 4, size // 2} - {0}:
        yield placed(x, packed, offset)
    for more in {1, size // 4, size // 2} - {0}:
        yield placed(x, (classes * (positions + more), positions + more, 1))
    yield placed(x, (positions, planes * positions, 1))
    yield placed(x, (classes * positions + 1, positions, 1))
    yield placed(x, (classes * positions * 2, positions * 2, 2))
    yield placed(x, (classes * positions, 1, classes))


def results(x, g, target):
    """With the way of each."""
    found = []
    for op in SOFTMAXES:
        y = getattr(softkern, op)(x, 1)
        found.append((way(), y))
        dx = getattr(torch.ops.softkern, f"{op}_backward")(g, y, 1)
        found.append((way(), dx))
    for smoothing in (0.0, 0.1):
        loss, grad, _ = torch.ops.softkern.cross_entropy_forward(x, target, None, 0, -100, smoothing, True)
        found += [(way(), loss), (way(), grad)]
        loss, _, _ = torch.ops.softkern.cross_entropy_forward(x, target, None, 0, -100, smoothing, False)
        found.append((way(), loss))
    return found


def assert_same(found, expected, name=""):
    """Other ways have other sums."""
    for (one_way, a), (other_way, b) in zip(found, expected, strict=True):
        if one_way == other_way:
            assert_same_bits(a.flatten(), b.flatten(), name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_way_to_copy_gives_the_same_bits(dtype):
    for classes in FEW + MANY:
        x, g = (logits(PLANES, classes, POSITIONS, dtype=dtype, seed=n) for n in (0, 7))
        target = indices((PLANES, classes, POSITIONS))
        target[::3, ::2] = -100
        first = results(x, g, target)
        for n, (here, there) in enumerate(zip(everywhere(x), everywhere(g), strict=True)):
            found = results(here, there, target)
            assert_same(found, first, f"{classes} classes, place {n}")
            if here.stride(2) == 1:
                assert {path for path, _ in found} == {TILE if classes in FEW else COLUMNS}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_one_plane_that_are_neighbours(dtype):
    """x.T: how many bytes of a class there are depends on the number of rows."""
    for classes in (21, 100):
        for rows in (40, 44, 42, 41):
            x, g = (placed(logits(rows, classes, dtype=dtype, seed=n), (1, 48)) for n in (0, 7))
            target = indices((rows, classes))
            found = results(x, g, target)
            if classes > 32:
                assert found[-1][0] == COLUMNS
            as_plane = results(x.T[None].contiguous(), g.T[None].contiguous(), target[None])
            turned = [(path, y.movedim(1, 2) if y.dim() == 3 else y) for path, y in as_plane]
            assert_same(found, turned, f"{classes} classes, {rows} rows")
            torch.ops.softkern.cross_entropy_forward_(x, target, None, 0, -100, 0.0)
            behind = x.as_strided((classes - 1, 48 - rows), (48, 1), rows)
            assert bool(behind.isnan().all()) and not bool(x.isnan().any())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_op_is_as_exact_as_on_other_rows(dtype):
    for shape in ((3, 21, 8), (5, 40, 3), (2, 64, 16), (3, 130, 12), (1, 1000, 6)):
        ways = check_everything(logits(*shape, dtype=dtype), indices(shape))
        assert set(ways) == {TILE if shape[1] <= 32 else COLUMNS}
        check_everything(logits(*shape, dtype=dtype), indices(shape), label_smoothing=0.1)


@pytest.mark.parametrize(
    "order", ("forward", "reverse", "warps", "warps-reverse") if EMULATED else ("a GPU's",)
)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_in_every_order_and_in_place(monkeypatch, dtype, order):
    """Nothing is read before it has come, or overwritten before it has been stored; and nothing else is
    written."""
    for classes, positions in ((21, 8), (150, 4), (150, 3)):
        x, g = (logits(PLANES, classes, positions, dtype=dtype, seed=n) for n in (0, 7))
        target = indices((PLANES, classes, positions))
        target[3] = -100
        monkeypatch.setenv("SIMT_ORDER", "forward")
        expected = results(x, g, target)
        _, grad, _ = torch.ops.softkern.cross_entropy_forward(x, target, None, 0, -100, 0.1, True)
        monkeypatch.setenv("SIMT_ORDER", order)
        assert_same(results(x, g, target), expected, order)
        for offset in (8, 9):
            whole = full((x.numel() + 24,), 77.0, dtype=dtype)
            place = whole[offset : offset + x.numel()].view(x.shape).copy_(x)
            torch.ops.softkern.cross_entropy_forward_(place, target, None, 0, -100, 0.1)
            assert_same_bits(place.clone(), grad)
            assert bool((whole[:offset] == 77).all()) and bool((whole[offset + x.numel() :] == 77).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_ignored_row_is_not_looked_at(dtype):
    for classes in (21, 150):
        x, target = logits(PLANES, classes, POSITIONS, dtype=dtype), indices((PLANES, classes, POSITIONS))
        target[2], target[::3, 5] = -100, -100
        expected = torch.ops.softkern.cross_entropy_forward(x, target, None, 0, -100, 0.0, True)
        x.movedim(1, 2)[target == -100] = math.nan
        found = torch.ops.softkern.cross_entropy_forward(x, target, None, 0, -100, 0.0, True)
        for a, b in zip(found, expected, strict=True):
            assert_same_bits(a, b)


def test_what_is_not_finite():
    for classes in (21, 150):
        x = logits(PLANES, classes, POSITIONS)
        x[0, 3, 0], x[1, :, 1], x[2, 5, 2], x[3, 1:, 3] = math.nan, -math.inf, math.inf, -math.inf
        target = indices((PLANES, classes, POSITIONS))
        for op in SOFTMAXES:
            y = getattr(softkern, op)(x, 1)
            torch.testing.assert_close(y, getattr(torch, op)(x, 1), equal_nan=True)
        loss = softkern.cross_entropy(x, target, reduction="none")
        torch.testing.assert_close(
            loss, torch.nn.functional.cross_entropy(x, target, reduction="none"), equal_nan=True
        )


@emulated
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_blocks_with_less_memory_read_rows_twice(dtype, monkeypatch):
    """A block of this many classes takes 44 KiB, a backward's 88, and its sums a few more."""
    shape = (2, 700, 32)
    x, target = logits(*shape, dtype=dtype), indices(shape)
    twice = "columns, read twice"
    for kib, expected in ((227, {COLUMNS}), (160, {COLUMNS}), (64, {COLUMNS, twice}), (40, {twice})):
        monkeypatch.setenv("SIMT_SHARED_KIB", str(kib))
        assert set(check_everything(x, target)) == expected
