# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of few classes, a thread a row: each number of classes, wherever rows lie in memory."""

from __future__ import annotations

import math

import pytest
import torch
from compare import assert_same_bits
from cuda_checks import (
    DTYPES,
    EMULATED,
    SOFTMAXES,
    TILE,
    by_kernels,
    check_everything,
    full,
    indices,
    logits,
    way,
)

import softkern

pytestmark = by_kernels

CLASSES = range(1, 33)
ROWS = 130  # two blocks, of float64 three; the last one has two rows


def at(offset, x):
    """The rows, so many elements behind a multiple of 16 bytes."""
    whole = full((x.numel() + offset,), math.nan, dtype=x.dtype)
    place = whole[offset:].view(x.shape)
    assert place.data_ptr() % 16 == offset * x.element_size() % 16
    return place.copy_(x)


def sliced(x):
    return torch.cat([x, x[:, :1]], 1)[:, : x.shape[1]]


def transposed(x):
    return x.T.contiguous().T


def everywhere(x):
    size = 16 // x.element_size()
    return [*(at(n, x) for n in (1, 2, size // 2, size - 1)), sliced(x), transposed(x)]


def results(x, g, target):
    """Of the tensors as they lie in memory; their results begin at a multiple of 16 bytes."""
    found = []
    for op in SOFTMAXES:
        y = getattr(softkern, op)(x, 1)
        assert way() == TILE
        found += [y, getattr(torch.ops.softkern, f"{op}_backward")(g, y, 1)]
    loss, grad, scale = torch.ops.softkern.cross_entropy_forward(x, target, None, 0, -100, 0.0, True)
    return [*found, loss, grad, scale]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_number_of_classes(dtype):
    for classes in CLASSES:
        check_everything(logits(3, classes, dtype=dtype), indices((3, classes)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_has_the_same_bits_wherever_it_lies(dtype):
    for classes in CLASSES:
        x, g = (logits(ROWS, classes, dtype=dtype, seed=n) for n in (0, 7))
        target = indices((ROWS, classes))
        target[::3] = -100
        first = results(x, g, target)
        for n, (here, there) in enumerate(zip(everywhere(x), everywhere(g), strict=True)):
            for a, b in zip(results(here, there, target), first, strict=True):
                assert_same_bits(a, b, f"{classes} classes, place {n}")


@pytest.mark.parametrize(
    "order", ("forward", "reverse", "warps", "warps-reverse") if EMULATED else ("a GPU's",)
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gradient_in_place_leaves_its_surroundings(monkeypatch, dtype, order):
    monkeypatch.setenv("SIMT_ORDER", order)
    for classes in (1, 3, 8, 10, 16, 28, 31):
        x, target = logits(ROWS, classes, dtype=dtype), indices((ROWS, classes))
        _, dx, _ = torch.ops.softkern.cross_entropy_forward(x, target, None, 0, -100, 0.0, True)
        y = softkern.softmax(x, 1)
        for offset in (0, 1, 2, 5):
            whole = full((x.numel() + 16,), 77.0, dtype=dtype)
            place = whole[offset : offset + x.numel()].view(x.shape).copy_(x)
            assert_same_bits(softkern.softmax(place, 1), y)
            torch.ops.softkern.cross_entropy_forward_(place, target, None, 0, -100, 0.0)
            assert_same_bits(place.clone(), dx)
            assert bool((whole[:offset] == 77).all()) and bool((whole[offset + x.numel() :] == 77).all())
