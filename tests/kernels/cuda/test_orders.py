# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels in every order of threads that the emulator (csrc/cuda/hardware/simt.h) knows, wherever
rows begin; and on devices that it plays, which have no room for clusters."""

from __future__ import annotations

import math

import pytest
import torch
from compare import assert_same_bits
from cuda_checks import (
    CLUSTER,
    DTYPES,
    EMULATED,
    IN_CLUSTER,
    SOFTMAXES,
    TWICE,
    by_kernels,
    close,
    emulated,
    everything,
    full,
    indices,
    logits,
    ones,
    tensor,
    way,
    with_clusters,
)

import softkern
from softkern import reference

pytestmark = by_kernels
nan = math.nan

# A GPU has its own.
ORDERS = ("forward", "reverse", "warps", "warps-reverse") if EMULATED else ("a GPU's",)


@pytest.fixture(params=ORDERS)
def order(request, monkeypatch):
    monkeypatch.setenv("SIMT_ORDER", request.param)
    return request.param


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("classes", (1001, 2047, 9001, 55297))
def test_a_row_has_the_same_bits_wherever_it_lies(order, classes, dtype):
    """Where rows are no whole number of 16 bytes: the first begins after each number of elements."""
    whole, target = logits(3, classes, dtype=dtype), indices((3, classes))
    _, first = everything(whole, target)
    ones = torch.ones_like(first[4])
    for off in range(1, 16 // dtype.itemsize):
        x = torch.cat([whole.new_full((off,), nan), whole.flatten()])[off:].view(whole.shape)
        assert x.data_ptr() % 16 == off * dtype.itemsize
        for op, expected in zip(SOFTMAXES, first[:4:2], strict=True):
            assert_same_bits(getattr(softkern, op)(x, 1), expected)
        loss, grad, scale = torch.ops.softkern.cross_entropy_forward(x, target, None, 0, -100, 0.0, True)
        assert_same_bits(loss, first[4])
        dx = torch.ops.softkern.cross_entropy_backward(ones, grad, scale, target, -100)
        assert_same_bits(dx, first[5])


# Rows whose last warp ends where the row does, and rows of many small blocks, in which a warp begins there.
FULL, BEGINS = 54 * 1024, 124 * 64 * 17


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("classes", (FULL - 1, FULL, FULL + 1, BEGINS - 1, BEGINS, BEGINS + 1))
def test_a_gradient_takes_the_place_of_logits_that_begin_anywhere(monkeypatch, order, classes, dtype):
    """In a row that begins in the middle of a word, a pair lies in two, each of which one lane may write."""
    with_clusters(monkeypatch, True)
    if classes >= BEGINS - 1:
        monkeypatch.setenv("SIMT_SHARED_KIB", "99")
    x, target = logits(3, classes, dtype=dtype), tensor([classes - 1, 3, -100])
    x[2] = nan
    one_each = ones(2, dtype=torch.float64)
    expected = reference.cross_entropy_backward(one_each, x[:2].double(), target[:2], reduction="none")
    found = []
    for off in range(8):
        whole = full((x.numel() + 8,), 77.0, dtype=dtype)
        place = whole[off : off + x.numel()].view(x.shape)
        place.copy_(x)
        _, scale = torch.ops.softkern.cross_entropy_forward_(place, target, None, 0, -100, 0.0)
        assert way() == IN_CLUSTER
        tiny = float(torch.finfo(dtype).tiny) * 2
        close(place[:2], expected / scale.double(), scale=2, atol=max(tiny, 16 * 2**-23 / classes))
        assert bool((place[2] == 0).all())
        assert bool((whole[:off] == 77).all()) and bool((whole[off + x.numel() :] == 77).all())
        found.append(place.clone())
    for dx in found[2:]:
        assert_same_bits(dx, found[1])


@emulated
@pytest.mark.parametrize("there", (True, False), ids=("clusters", "no clusters"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("classes", (10, 45, 300, 1000, 17000, 70001))
def test_every_order_of_threads_gives_the_same_bits(monkeypatch, there, classes, dtype):
    """A barrier that is missing leaves one order with numbers that are not there yet."""
    with_clusters(monkeypatch, there)
    x, target = logits(3, classes, dtype=dtype), indices((3, classes))
    answers = []
    for order in ORDERS:
        monkeypatch.setenv("SIMT_ORDER", order)
        answers.append(everything(x, target, label_smoothing=0.1)[1] + everything(x, target)[1])
        # A row in shared memory is then followed by the next one in another step.
        answers[-1].append(softkern.cross_entropy(x, target, reduction="none"))
        assert_same_bits(answers[-1][-1], answers[-1][-3])
    for other in answers[1:]:
        for a, b in zip(answers[0], other, strict=True):
            assert_same_bits(a, b)


@emulated
def test_an_order_that_is_none_is_an_error(monkeypatch):
    monkeypatch.setenv("SIMT_ORDER", "sideways")
    with pytest.raises(RuntimeError, match="SIMT_ORDER"):
        softkern.softmax(logits(2, 3), 1)


def with_room(monkeypatch, blocks: int, promised: int) -> None:
    """The emulator plays a device that runs no clusters of more blocks, and says that it runs so many."""
    monkeypatch.setenv("SIMT_CLUSTER_ROOM", str(blocks))
    monkeypatch.setenv("SIMT_CLUSTER_PROMISE", str(promised))


@emulated
@pytest.mark.parametrize("promised", (1, 16), ids=("as the device says", "as the launch finds"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", (40000, 60001))
def test_rows_go_without_clusters_where_none_fits(monkeypatch, classes, dtype, promised):
    """In the ways of a device that has none, with their bits."""
    x, target = logits(2, classes, dtype=dtype), tensor([classes - 1, -100])

    def answers():
        ways, found = everything(x, target)
        more_ways, more = everything(x, target, label_smoothing=0.1)
        place = x.clone()
        in_place = torch.ops.softkern.cross_entropy_forward_(place, target, None, 0, -100, 0.0)
        return [*ways, *more_ways, way()], [*found, *more, *in_place, place]

    in_clusters = {CLUSTER, IN_CLUSTER}
    assert in_clusters & {*answers()[0]}
    monkeypatch.setenv("SIMT_CLUSTERS", "0")
    ways_without, without = answers()
    monkeypatch.setenv("SIMT_CLUSTERS", "1")
    with_room(monkeypatch, 1, promised)
    ways, found = answers()
    assert ways == ways_without and not in_clusters & {*ways}
    for a, b in zip(found, without, strict=True):
        assert_same_bits(a, b)


@emulated
def test_smaller_clusters_are_launched_where_larger_ones_do_not_fit(monkeypatch):
    with_room(monkeypatch, 4, 4)
    for classes, expected in ((40000, IN_CLUSTER), (131200, IN_CLUSTER), (262144, TWICE)):
        softkern.softmax(logits(1, classes), 1)
        assert way() == expected
