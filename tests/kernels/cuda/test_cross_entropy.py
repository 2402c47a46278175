# SPDX-License-Identifier: Apache-2.0
"""cross_entropy by the CUDA kernels, on a GPU or in the emulator: targets, sums over rows, upstream
gradients; the ways of its rows are in test_kernels.py."""

from __future__ import annotations

import math

import pytest
import torch
from compare import assert_same_bits
from cuda_checks import (
    DTYPES,
    by_kernels,
    class_weights,
    close,
    emulated,
    eps,
    indices,
    logits,
    ones,
    probabilities,
    tensor,
    zeros,
)

import softkern
from softkern import reference

pytestmark = by_kernels
inf, nan = math.inf, math.nan


@emulated  # where the kernels can raise; a GPU's assertion ends the process's use of it: test_gpu.py
@pytest.mark.parametrize("wrong", (-1, 1000, 10**6, -(2**40), 2**62))
@pytest.mark.parametrize("classes", (7, 45, 1000))
def test_a_target_out_of_range_stops_the_kernel(classes, wrong):
    x, target = logits(3, classes), tensor([2, wrong, 5])
    for kwargs in ({}, {"weight": class_weights(classes)}, {"label_smoothing": 0.1}, {"reduction": "none"}):
        with pytest.raises(IndexError, match=f"Target {wrong} is out of bounds"):
            softkern.cross_entropy(x, target, **kwargs)


@pytest.mark.parametrize("dtype", (torch.int64, torch.int32, torch.uint8), ids=str)
def test_index_dtypes(dtype):
    x, target = logits(200, 10), indices((200, 10))
    ignored = target.clone()
    ignored[::3] = 255
    expected = reference.cross_entropy(x.double(), ignored, ignore_index=255)
    leaf = x.clone().requires_grad_()
    loss = softkern.cross_entropy(leaf, ignored.to(dtype), ignore_index=255)
    close(loss.detach(), expected)
    (dx,) = torch.autograd.grad(loss, leaf, tensor(0.5))
    assert bool((dx[::3] == 0).all())
    wanted = reference.cross_entropy_backward(tensor(0.5), x.double(), ignored, ignore_index=255)
    close(dx, wanted, scale=2, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_of_more_rows_than_one_block_adds(dtype):
    x, target = logits(40000, 2, dtype=dtype), indices((40000, 2))
    weight = class_weights(2).to(dtype)
    for kwargs in ({}, {"weight": weight, "ignore_index": 1}, {"weight": weight / 16, "reduction": "sum"}):
        loss = softkern.cross_entropy(x, target, **kwargs)
        wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
        close(loss, reference.cross_entropy(x.double(), target, **wide))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("upstream", (1.0, 0.5, inf, nan), ids=str)
@pytest.mark.parametrize("shape", ((4, 6), (4, 64), (4, 5, 3)), ids=str)
def test_an_upstream_gradient_scales_once_and_spares_ignored_rows(dtype, upstream, shape):
    x, target = logits(*shape, dtype=dtype), indices(shape)
    target[1] = -100
    for reduction in ("sum", "mean", "none"):
        leaf = x.clone().requires_grad_()
        loss = softkern.cross_entropy(leaf, target, reduction=reduction)
        g = torch.full_like(loss, upstream)
        (dx,) = torch.autograd.grad(loss, leaf, g)
        one_each = ones(loss.shape, dtype=torch.float64)
        expected = reference.cross_entropy_backward(one_each, x.double(), target, reduction=reduction)
        assert bool((dx[1] == 0).all())
        rows = [0, 2, 3]
        unit = eps(torch.float16) * 1e-4 if dtype == torch.float16 else 1e-9
        close(dx[rows], expected[rows] * upstream, scale=4, atol=unit)


@pytest.mark.parametrize("shape", ((4, 64), (4, 7), (4, 5, 3)), ids=str)
@pytest.mark.parametrize("upstream", (-0.5, 0.5, -inf), ids=str)
def test_zeros_of_ignored_rows_have_no_sign(shape, upstream):
    x, target = logits(*shape), indices(shape)
    target[1] = -100
    leaf = x.clone().requires_grad_()
    (dx,) = torch.autograd.grad(softkern.cross_entropy(leaf, target), leaf, tensor(upstream))
    assert_same_bits(dx[1], torch.zeros_like(dx[1]))


@pytest.fixture
def fresh_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("shape", ((4, 40), (4, 7)), ids=str)
def test_a_factor_of_one_is_written_to_memory_of_its_own(fresh_memory_is_nan, shape):
    """In place there would be nothing to do."""
    leaf = logits(*shape).requires_grad_()
    loss = softkern.cross_entropy(leaf, indices(shape), reduction="sum")
    first, second = (torch.autograd.grad(loss, leaf, retain_graph=True)[0] for _ in range(2))
    assert bool(first.isfinite().all())
    assert_same_bits(first, second)


def test_rows_of_different_upstream_gradients():
    x, target = logits(5, 40, 3), indices((5, 40, 3))
    leaf = x.clone().requires_grad_()
    loss = softkern.cross_entropy(leaf, target, reduction="none")
    for g in (logits(5, 3), logits(3, 5).T, logits(1, 3).expand(5, 3)):
        (dx,) = torch.autograd.grad(loss, leaf, g, retain_graph=True)
        expected = reference.cross_entropy_backward(g.double(), x.double(), target, reduction="none")
        close(dx, expected, scale=4, atol=1e-8)


def test_no_rows_have_no_mean():
    x, target = logits(0, 5).requires_grad_(), zeros(0, dtype=torch.int64)
    for reduction, expected in (("mean", nan), ("sum", 0.0)):
        loss = softkern.cross_entropy(x, target, reduction=reduction)
        close(loss.detach(), tensor(expected))
        (dx,) = torch.autograd.grad(loss, x)
        assert dx.shape == x.shape
    assert softkern.cross_entropy(x, target, reduction="none").shape == (0,)


def test_weights_of_nothing_have_no_mean():
    x, target = logits(3, 4), tensor([1, 1, 1])
    weight = tensor([1.0, 0.0, 1.0, 1.0])
    for smoothing in (0.0, 0.1):
        loss = softkern.cross_entropy(x, target, weight, label_smoothing=smoothing)
        assert loss.isnan()
    everything_ignored = tensor([-100, -100, -100])
    leaf = x.clone().requires_grad_()
    loss = softkern.cross_entropy(leaf, everything_ignored)
    assert loss.isnan()
    assert bool((torch.autograd.grad(loss, leaf)[0] == 0).all())


@pytest.mark.parametrize("weighted", (False, True))
@pytest.mark.parametrize("soft", (False, True))
def test_half_gradients_use_the_range_of_the_format(weighted, soft):
    x = logits(300, 7, dtype=torch.float16)
    target = probabilities((300, 7), torch.float16) if soft else indices((300, 7))
    weight = (class_weights(7) * 30).half() if weighted else None
    leaf = x.clone().requires_grad_()
    loss = softkern.cross_entropy(leaf, target, weight)
    (dx,) = torch.autograd.grad(loss, leaf)
    wide = target.double() if soft else target
    w = None if weight is None else weight.double()
    expected = reference.cross_entropy_backward(tensor(1.0).double(), x.double(), wide, w)
    close(dx, expected, scale=4, atol=6e-8)
