# SPDX-License-Identifier: Apache-2.0
"""Fewer long rows than threads: the threads share each row, and its bits are those of one thread."""

from __future__ import annotations

import pytest
import torch
from cases import logits, name, upstream
from compare import assert_same_bits
from cross_entropy_cases import over_kinds, problem
from tolerances import DTYPES

import softkern

over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=name)
NEVER, DEFAULT = float("inf"), 50e-6


@pytest.fixture(autouse=True)
def patient():
    """A busy machine must not keep rows from being shared here."""
    softkern._C.set_patience(NEVER)
    yield
    softkern._C.set_patience(DEFAULT)


# One share more or less, a last one of a single class, several rows.
SHAPES = ((1, 65536), (1, 131073), (2, 70001))


def everything(x, target, kwargs, **options):
    """(the way it went, a result) of every op, forward and backward."""
    leaf = x.clone().requires_grad_()
    for reduction in ("mean", "none"):
        loss = softkern.cross_entropy(leaf, target, reduction=reduction, **kwargs, **options)
        yield softkern._C.last_path(), loss
        yield "any", torch.autograd.grad(loss, leaf, upstream(loss, "random"))[0]
    for op in (softkern.softmax, softkern.log_softmax):
        y = op(leaf, 1)
        yield softkern._C.last_path(), y
        dx = torch.autograd.grad(y, leaf, upstream(y, "random"))[0]
        yield softkern._C.last_path(), dx


@over_dtypes
@over_kinds
@pytest.mark.parametrize("shape", SHAPES, ids=name)
def test_sharing_a_row_changes_no_bit(shape, kind, dtype, threads, isa):
    x, target, kwargs = problem(shape, dtype, **kind)
    threads(1)
    alone = list(everything(x, target, kwargs))
    assert {way for way, _ in alone} == {"rows", "any"}
    for n in (3, 8):
        threads(n)
        shared = list(everything(x, target, kwargs))
        assert {way for way, _ in shared} == {"shared", "any"}, "the case is too small to be shared"
        assert softkern._C.last_isa() == isa
        for (_, a), (_, b) in zip(shared, alone, strict=True):
            assert_same_bits(a, b, f"{n} threads")


@over_dtypes
@pytest.mark.parametrize("offset", (0.0, 3000.0))
def test_special_values_in_one_share(offset, dtype, threads):
    """NaN, infinities, ties at both ends and terms that underflow, unknown to the other shares."""
    c = 100_000
    plain = logits(1, c, dtype=dtype) + offset
    inf, nan = float("inf"), float("nan")
    for first, last in ((nan, 0.0), (inf, 0.0), (-inf, -inf), (9999.0, 9999.0)):
        x = plain.clone()
        x[0, 0], x[0, -1] = first, last
        for target in (0, 5, c - 1):
            runs = []
            for n in (1, 2):
                threads(n)
                runs.append(list(everything(x, torch.tensor([target]), {"label_smoothing": 0.1})))
            for (_, one), (_, two) in zip(*runs, strict=True):
                assert_same_bits(two, one, f"{first} {last} {target}")


@over_dtypes
def test_ignored_rows_and_gradients_over_the_logits(dtype, threads):
    x, target, _ = problem((2, 70001), dtype)
    target[1] = -100
    x[1, 3] = float("nan")
    runs = []
    for n in (1, 3):
        threads(n)
        leaf = x.clone().requires_grad_()
        over = leaf * 1
        loss = softkern.cross_entropy(over, target, inplace_backward=True)
        assert softkern._C.last_path() == ("rows" if n == 1 else "shared")
        runs.append((loss.detach(), torch.autograd.grad(loss, leaf)[0]))
    assert_same_bits(runs[1][0], runs[0][0], "loss")
    assert_same_bits(runs[1][1], runs[0][1], "gradient")
    assert runs[1][1][1].eq(0).all() and runs[1][1][0].ne(0).any()


@pytest.mark.parametrize(
    ("shape", "dim", "count", "way"),
    [
        ((8, 65536), 1, 8, "rows"),  # a row for every thread
        ((1, 65535), 1, 8, "rows"),  # less than two threads' worth
        ((65536, 2), 0, 8, "tiles"),  # classes apart
        ((65536,), 0, 2, "shared"),
    ],
)
def test_when_rows_are_shared(shape, dim, count, way, threads):
    threads(count)
    softkern.softmax(logits(*shape), dim)
    assert softkern._C.last_path() == way


def test_rows_are_not_shared_after_threads_have_waited_too_long(threads):
    """One row by more threads than any machine's scheduler runs at a time: some have to be waited for."""
    x = logits(1, 2_000_000)
    threads(1)
    alone = softkern.softmax(x, 1)
    threads(60)
    softkern._C.set_patience(0.0)
    ways = set()
    for _ in range(200):
        assert_same_bits(softkern.softmax(x, 1), alone)
        ways.add(softkern._C.last_path())
    assert ways == {"shared", "rows"}
    softkern._C.set_patience(NEVER)
    softkern.softmax(x, 1)
    assert softkern._C.last_path() == "shared"
