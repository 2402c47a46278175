# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels: every way through them. What the matrix of softkern.verify does not ask.

On a GPU, or in the build that `make emulate` makes: on the host, in an emulator, with
and without clusters; in other orders of threads: test_orders.py. Another run of the suite skips them."""

from __future__ import annotations

import math

import pytest
import torch
from compare import assert_same_bits
from cuda_checks import (
    BLOCK,
    CLUSTER,
    DTYPES,
    IN_BLOCK,
    IN_CLUSTER,
    LANES,
    SOFTMAXES,
    TILE,
    TWICE,
    by_kernels,
    check_everything,
    class_weights,
    close,
    emulated,
    everything,
    full,
    indices,
    logits,
    ones,
    probabilities,
    tensor,
    way,
    with_clusters,
    zeros,
)

import softkern
from softkern import reference

pytestmark = by_kernels
inf, nan = math.inf, math.nan


@pytest.fixture(params=(True, False), ids=("clusters", "no clusters"))
def clusters(request, monkeypatch):
    with_clusters(monkeypatch, request.param)
    return request.param


# Classes, and the ways of forward, backward and cross_entropy with and without clusters.
WAYS = {
    1: (TILE, TILE, TILE),
    3: (TILE, TILE, TILE),
    32: (TILE, TILE, TILE),
    33: (LANES, LANES, LANES),
    40: (LANES, LANES, LANES),
    128: (LANES, LANES, LANES),
    129: (LANES, LANES, LANES),
    509: (LANES, LANES, LANES),
    520: (BLOCK, BLOCK, BLOCK),
    521: (BLOCK, BLOCK, BLOCK),
    5000: (BLOCK, BLOCK, BLOCK),
}
LONG_WAYS = {
    (8193, True): (BLOCK, BLOCK, BLOCK),
    (17001, True): (IN_BLOCK, IN_CLUSTER, IN_BLOCK),
    (17001, False): (IN_BLOCK, TWICE, IN_BLOCK),
    (16388, True): (IN_BLOCK, CLUSTER, IN_BLOCK),
    (16388, False): (IN_BLOCK, TWICE, IN_BLOCK),
    (40000, True): (IN_CLUSTER, CLUSTER, IN_CLUSTER),
    (40000, False): (TWICE, TWICE, TWICE),
    (70001, True): (IN_CLUSTER, IN_CLUSTER, IN_CLUSTER),
    (131200, True): (IN_CLUSTER, IN_CLUSTER, IN_CLUSTER),
}


@pytest.mark.parametrize("classes", WAYS)
def test_each_way_computes_what_float64_does(classes):
    rows = 5 if classes < 1000 else 2
    ways = check_everything(logits(rows, classes), indices((rows, classes)))
    forward, backward, loss = WAYS[classes]
    assert ways == [forward, backward, forward, backward, loss]


@pytest.mark.parametrize(("classes", "there"), LONG_WAYS, ids=str)
def test_long_rows(monkeypatch, classes, there):
    with_clusters(monkeypatch, there)
    ways = check_everything(logits(2, classes), indices((2, classes)))
    forward, backward, loss = LONG_WAYS[classes, there]
    assert ways == [forward, backward, forward, backward, loss]


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("classes", (3, 40, 45, 400, 401, 1001, 5000, 9001, 16384 + 8, 33002))
def test_each_dtype(dtype, classes):
    rows = 3 if classes < 1000 else 2
    x = logits(rows, classes, dtype=dtype)
    ways = check_everything(x, indices((rows, classes)))
    assert len(set(ways)) <= 3


def unaligned(plain):
    return torch.cat([zeros(1), plain.reshape(-1)])[1:].view(plain.shape)


OPTIONS = (
    {"weight": True},
    {"label_smoothing": 0.1},
    {"weight": True, "label_smoothing": 0.1, "ignore_index": 1},
)


@pytest.mark.parametrize("kind", OPTIONS, ids=lambda kind: " ".join(kind))
@pytest.mark.parametrize("classes", (5, 40, 45, 300, 2000, 9001, 20000))
def test_each_way_takes_every_option(classes, kind):
    kwargs = {**kind}
    if kwargs.pop("weight", False):
        kwargs["weight"] = class_weights(classes)
    target = indices((2, classes))
    target[0] = 1
    check_everything(logits(2, classes), target, **kwargs)


@pytest.mark.parametrize("classes", (40, 300, 2000))
def test_weights_need_not_be_aligned(classes):
    x, weight = logits(2, classes), unaligned(class_weights(classes))
    check_everything(x, indices((2, classes)), weight=weight, label_smoothing=0.1)


@pytest.mark.parametrize("weighted", (False, True))
@pytest.mark.parametrize("classes", (5, 40, 45, 300, 2000, 9001, 20000))
def test_each_way_takes_probabilities(classes, weighted):
    x, soft = logits(2, classes), probabilities((2, classes))
    kwargs = {"label_smoothing": 0.1, "weight": class_weights(classes) if weighted else None}
    wide = {**kwargs, "weight": class_weights(classes).double() if weighted else None}
    leaf = x.clone().requires_grad_()
    loss = softkern.cross_entropy(leaf, soft, reduction="none", **kwargs)
    (dx,) = torch.autograd.grad(loss.sum(), leaf)
    one_each = ones(2, dtype=torch.float64)
    close(
        loss.detach(), reference.cross_entropy(x.double(), soft.double(), reduction="none", **wide), scale=2
    )
    expected = reference.cross_entropy_backward(one_each, x.double(), soft.double(), reduction="none", **wide)
    close(dx, expected, scale=2, atol=1e-6 / classes)


LAYOUTS = {
    "contiguous": lambda plain: plain,
    "classes last": lambda plain: plain.movedim(1, -1).contiguous().movedim(-1, 1),
    "sliced": lambda plain: torch.cat([plain, plain], 1)[:, : plain.shape[1]],
    "every other": lambda plain: plain.repeat_interleave(2, 1)[:, ::2],
    "unaligned": unaligned,
    "rows apart": lambda plain: torch.stack([plain, plain], 1)[:, 0],
    # 16-byte accesses of the first row alone would be aligned.
    "one element between rows": lambda plain: one_more(plain, 1),
    "one element between rows, classes last": lambda plain: one_more(plain.movedim(1, -1), -1).movedim(-1, 1),
}
SHAPES = ((6, 10), (3, 40), (2, 1000), (3, 40, 7), (2, 40, 8), (2, 10, 3, 5), (2, 300, 3), (2, 700, 2))


def one_more(plain, dim):
    return torch.cat([plain, plain.narrow(dim, 0, 1)], dim).narrow(dim, 0, plain.shape[dim])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(shape, name):
    plain = logits(*shape)
    x, target = LAYOUTS[name](plain), indices(shape)
    assert_same_bits(x.contiguous(), plain)
    for op in SOFTMAXES:
        y = getattr(softkern, op)(x, 1)
        way()
        close(y, getattr(reference, op)(plain.double(), 1), atol=1e-6)
    wanted = reference.cross_entropy(plain.double(), target, reduction="none")
    one_each = torch.ones_like(wanted)
    expected = reference.cross_entropy_backward(one_each, plain.double(), target, reduction="none")
    leaf = x.detach().requires_grad_()
    loss = softkern.cross_entropy(leaf, target, reduction="none")
    close(loss.detach(), wanted, atol=1e-6)
    close(torch.autograd.grad(loss.sum(), leaf)[0], expected, scale=2, atol=1e-8)
    # In place, the memory between the logits is nobody's.
    whole = full((2 * x.numel() + 64,), 77.0)
    place = (x.shape, x.stride(), x.storage_offset())
    whole.as_strided(*place).copy_(x)
    around = whole.clone()
    torch.ops.softkern.cross_entropy_forward_(whole.as_strided(*place), target, None, 0, -100, 0.0)
    dx = whole.as_strided(*place)
    close(dx.clone(), expected, scale=2, atol=1e-8)
    around.as_strided(*place).copy_(dx)
    assert_same_bits(whole, around)


@pytest.mark.parametrize("shape", ((5, 10), (5, 45), (5, 300), (3, 1000), (2, 17000), (3, 60, 5)), ids=str)
def test_a_row_has_the_same_bits_alone_and_anywhere_in_a_batch(shape):
    x, target = logits(*shape), indices(shape)
    _, together = everything(x, target)
    for i in range(shape[0]):
        g = slice(i, i + 1)
        leaf = x[g].clone().requires_grad_()
        loss = softkern.cross_entropy(leaf, target[g], reduction="none")
        assert_same_bits(softkern.softmax(x[g].clone(), 1), together[0][g])
        assert_same_bits(softkern.log_softmax(x[g].clone(), 1), together[2][g])
        assert_same_bits(loss.detach(), together[4][g])
        assert_same_bits(torch.autograd.grad(loss.sum(), leaf)[0], together[5][g])


@pytest.mark.parametrize("classes", (12, 48, 300, 1000, 17000, 40000))
def test_leading_minus_infinities_are_no_nan(clusters, classes):
    x = logits(2, classes)
    x[:, : classes // 2] = -inf
    for op in SOFTMAXES:
        close(getattr(softkern, op)(x, 1), getattr(reference, op)(x.double(), 1), atol=1e-6)
    target = tensor([classes - 1, 0])
    for smoothing in (0.0, 0.1):
        kwargs = {"reduction": "none", "label_smoothing": smoothing}
        loss = softkern.cross_entropy(x, target, **kwargs)
        close(loss, reference.cross_entropy(x.double(), target, **kwargs), atol=1e-6)


@pytest.mark.parametrize("classes", (12, 48, 300, 1000, 17000, 40000))
@pytest.mark.parametrize("values", ([nan], [inf], [-inf, nan], [inf, inf]), ids=str)
def test_what_is_not_finite_reaches_the_whole_row(clusters, classes, values):
    x = logits(2, classes)
    x[0, classes // 2 : classes // 2 + len(values)] = tensor(values)
    for op in SOFTMAXES:
        y = getattr(softkern, op)(x, 1)
        assert bool(y[0].isnan().all()) and bool(y[1].isfinite().all())
    assert softkern.cross_entropy(x, tensor([3, 3]), reduction="none").isnan().tolist() == [True, False]


@emulated
@pytest.mark.parametrize("classes", (40000, 70001))
@pytest.mark.parametrize("offset", (0, 1000, 1023, -1030, 1e6))
def test_parts_on_both_sides_of_the_direct_shift_are_merged(monkeypatch, classes, offset):
    """Rows that are read twice: threads meet maxima above and below 1024 in size, whose terms have different
    origins."""
    with_clusters(monkeypatch, False)
    x = logits(3, classes, dtype=torch.float64)
    x[0, :8] += 30
    x[1, -8:] += 60
    x[2, 9] -= 2000
    x = (x + offset).float()
    for op in SOFTMAXES:
        close(getattr(softkern, op)(x, 1), getattr(reference, op)(x.double(), 1), atol=1e-30)
        assert way() == TWICE
    target = tensor([3, classes - 2, 9])
    for smoothing in (0.0, 0.1):
        loss = softkern.cross_entropy(x, target, reduction="none", label_smoothing=smoothing)
        expected = reference.cross_entropy(x.double(), target, reduction="none", label_smoothing=smoothing)
        close(loss, expected, scale=2, atol=1e-6)


@pytest.mark.parametrize("classes", (10, 45, 300, 17000, 70001))
@pytest.mark.parametrize("smoothing", (0.0, 0.1))
def test_the_true_class_keeps_the_digits_of_its_gradient(classes, smoothing):
    """Of a confident row p - 1 would be rounding alone; a maximum that is not alone takes that form."""
    x, target = logits(3, classes), tensor([3, 5, 5])
    x[0, 3] = x[0].max() + 12
    x[1, 2] = x[1, 5] = x[1].max() + 12
    kwargs = {"reduction": "none", "label_smoothing": smoothing}
    leaf = x.clone().requires_grad_()
    (dx,) = torch.autograd.grad(softkern.cross_entropy(leaf, target, **kwargs).sum(), leaf)
    one_each = ones(3, dtype=torch.float64)
    expected = reference.cross_entropy_backward(one_each, x.double(), target, **kwargs)
    true = target.unsqueeze(1)
    close(dx.gather(1, true), expected.gather(1, true), scale=2)


@pytest.mark.parametrize("apart", (1e5, 1e10, 1e30, 3e38))
@pytest.mark.parametrize("classes", (300, 70001))
def test_parts_may_be_as_far_apart_as_numbers_are(classes, apart):
    """Beside the larger ones, the rest of the row counts nothing, whatever the ratio between its parts' terms
    would overflow to."""
    x = logits(3, classes)
    x[0, : classes // 2] = -apart
    x[1, classes // 2 :] = -apart
    x[2, ::2] -= apart
    for op in SOFTMAXES:
        close(getattr(softkern, op)(x, 1), getattr(reference, op)(x.double(), 1), atol=1e-30)
    target = tensor([classes - 1, 0, 1])
    loss = softkern.cross_entropy(x, target, reduction="none")
    close(loss, reference.cross_entropy(x.double(), target, reduction="none"), atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", (10, 45, 300, 2000, 17000, 40000))
@pytest.mark.parametrize("smoothing", (0.0, 0.1))
def test_the_gradient_may_take_the_place_of_the_logits(clusters, dtype, classes, smoothing):
    x, target = logits(3, classes, dtype=dtype), tensor([classes - 1, -100, 5])
    x[1] = nan
    wanted = []
    for inplace in (False, True):
        leaf = x.clone().requires_grad_()
        loss = softkern.cross_entropy(
            leaf * 1, target, reduction="sum", label_smoothing=smoothing, inplace_backward=inplace
        )
        wanted.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    for a, b in zip(*wanted, strict=True):
        assert_same_bits(a, b)
    dx = wanted[0][1]
    assert bool((dx[1] == 0).all()) and bool(dx[::2].isfinite().all())


@pytest.mark.parametrize("op", SOFTMAXES)
@pytest.mark.parametrize("shape", ((), (7,), (0, 5), (5, 0), (3, 1)), ids=str)
def test_shapes_at_the_edge(op, shape):
    x = logits(*shape).requires_grad_() if shape else tensor(2.5, requires_grad=True)
    y = getattr(softkern, op)(x, -1)
    assert y.shape == x.shape
    expected = getattr(torch, op)(x.detach().double(), -1)
    close(y.detach(), expected, atol=1e-6)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.shape == x.shape
