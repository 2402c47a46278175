# SPDX-License-Identifier: Apache-2.0
"""Laws that hold for every input: hypothesis searches for an input that breaks them."""

from __future__ import annotations

import torch
from cases import logits, oracle_z
from compare import assert_close, assert_same_bits
from cross_entropy_cases import class_weights
from cross_entropy_checks import check_gradients, check_values
from hypothesis import given
from hypothesis import strategies as st
from softmax_checks import OPS
from softmax_checks import check_gradients as check_softmax_gradients
from softmax_checks import check_values as check_softmax_values
from tolerances import DTYPES

import softkern
from softkern import reference

dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 2**16)
rows = st.integers(1, 9)
classes = st.integers(1, 140)
shapes = st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple)


def eps(dtype):
    return torch.finfo(dtype).eps


@given(shape=shapes, data=st.data(), dtype=dtypes, op=st.sampled_from(sorted(OPS)), seed=seeds)
def test_softmax_is_the_reference(shape, data, dtype, op, seed):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    order = data.draw(st.permutations(range(len(shape))))
    x = logits(*shape, dtype=dtype, seed=seed).permute(order)
    y = check_softmax_values(op, x, dim)
    check_softmax_gradients(op, x, dim, logits(*y.shape, dtype=dtype, seed=seed + 1))


@given(n=rows, c=classes, dtype=dtypes, seed=seeds)
def test_rows_of_softmax_sum_to_one_and_are_probabilities(n, c, dtype, seed):
    y = softkern.softmax(logits(n, c, dtype=dtype, seed=seed), 1)
    assert bool(((y >= 0) & (y <= 1)).all())
    # Each term is off by at most half an ulp of itself, and together they are 1.
    worst = eps(dtype) / 2 + c * torch.finfo(dtype).tiny * eps(dtype) + 8 * eps(torch.float32)
    assert bool(((y.double().sum(1) - 1).abs() <= worst).all())


@given(n=rows, c=classes, seed=seeds, shift=st.integers(-(2**20), 2**20))
def test_a_shift_that_is_exact_changes_nothing(n, c, seed, shift):
    """The logits far from zero are held to the answer of the same logits near zero."""
    x = (logits(n, c, seed=seed) * 8).round() / 8
    moved, wide = x + shift, x.double()
    assert bool((moved.double() - wide == shift).all())
    y, log_y = reference.softmax(wide, 1), reference.log_softmax(wide, 1)
    assert_close(softkern.softmax(moved, 1), y, torch.float32, scale=y * oracle_z(wide))
    assert_close(softkern.log_softmax(moved, 1), log_y, torch.float32, scale=1 + log_y.abs())
    target = torch.arange(n) % c
    loss = reference.cross_entropy(wide, target, reduction="none")
    ours = softkern.cross_entropy(moved, target, reduction="none")
    assert_close(ours, loss, torch.float32, scale=1 + loss.abs())


@given(n=rows, c=classes, dtype=dtypes, seed=seeds)
def test_exp_of_log_softmax_is_softmax(n, c, dtype, seed):
    x = logits(n, c, dtype=dtype, seed=seed)
    y, log_y = softkern.softmax(x, 1).double(), softkern.log_softmax(x, 1).double()
    # Half an ulp of log y is |log y| / 2 ulp of y.
    bound = (1 + log_y.abs()) * eps(dtype) * y + 8 * eps(torch.float32) * y * (1 + log_y.abs())
    assert bool(((log_y.exp() - y).abs() <= bound + torch.finfo(dtype).tiny * eps(dtype)).all())


@given(n=rows, c=classes, dtype=dtypes, seed=seeds)
def test_cross_entropy_is_minus_log_softmax_at_the_target(n, c, dtype, seed):
    x = logits(n, c, dtype=dtype, seed=seed)
    target = torch.arange(n) * 7 % c
    loss = softkern.cross_entropy(x, target, reduction="none").double()
    picked = softkern.log_softmax(x, 1).double().gather(1, target.unsqueeze(1)).squeeze(1)
    bound = eps(dtype) * loss.abs() + 8 * eps(torch.float32) * (1 + loss.abs())
    assert bool(((loss + picked).abs() <= bound).all())


@given(n=rows, c=classes, dtype=dtypes, seed=seeds)
def test_gradients_of_a_row_sum_to_zero(n, c, dtype, seed):
    """A shift of all logits changes nothing, so the derivative along it is zero."""
    x = logits(n, c, dtype=dtype, seed=seed).requires_grad_()
    grad = logits(n, c, dtype=dtype, seed=seed + 1)
    loss = softkern.cross_entropy(x, torch.arange(n) % c, reduction="none")
    y = softkern.softmax(x, 1)
    for output, upstream in ((loss, grad[:, 0]), (y, grad)):
        (dx,) = torch.autograd.grad(output, x, upstream)
        # p was rounded to the dtype before softmax's backward saw it; then sum(p) is not 1.
        terms = dx.double().abs().sum(1) + upstream.double().abs().reshape(n, -1).amax(1)
        assert bool((dx.double().sum(1).abs() <= 2 * eps(dtype) * terms).all())


@given(n=rows, c=classes, dtype=dtypes, seed=seeds, data=st.data())
def test_rows_may_be_permuted(n, c, dtype, seed, data):
    """Bit for bit: no row sees its neighbours."""
    x = logits(n, c, dtype=dtype, seed=seed)
    order = torch.tensor(data.draw(st.permutations(range(n))))
    target = torch.arange(n) % c
    assert_same_bits(softkern.softmax(x[order], 1), softkern.softmax(x, 1)[order])
    assert_same_bits(
        softkern.cross_entropy(x[order], target[order], reduction="none"),
        softkern.cross_entropy(x, target, reduction="none")[order],
    )


@given(n=rows, c=classes, seed=seeds, data=st.data())
def test_classes_may_be_permuted(n, c, seed, data):
    """Up to the order of the sum."""
    x, w = logits(n, c, seed=seed), class_weights(c)
    order = torch.tensor(data.draw(st.permutations(range(c))))
    target = torch.arange(n) * 5 % c
    moved = torch.argsort(order)[target]
    tight = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(softkern.softmax(x[:, order], 1), softkern.softmax(x, 1)[:, order], **tight)
    torch.testing.assert_close(
        softkern.cross_entropy(x[:, order], moved, w[order], label_smoothing=0.1),
        softkern.cross_entropy(x, target, w, label_smoothing=0.1),
        **tight,
    )


@st.composite
def problems(draw):
    """A cross-entropy problem of any shape, dtype and options."""
    c = draw(st.integers(1, 40))
    inner = draw(st.lists(st.integers(1, 4), max_size=2))
    shape = draw(st.sampled_from([(c,), (draw(rows), c, *inner)]))
    dtype, seed = draw(dtypes), draw(seeds)
    x, kwargs = logits(*shape, dtype=dtype, seed=seed), {}
    kwargs["reduction"] = draw(st.sampled_from(("none", "mean", "sum")))
    if draw(st.booleans()):
        kwargs["weight"] = class_weights(c, dtype)
    if draw(st.booleans()):
        kwargs["label_smoothing"] = draw(st.floats(0, 1, width=16))
    target_shape = shape[:1] + shape[2:] if len(shape) > 1 else ()
    g = torch.Generator().manual_seed(seed)
    if draw(st.booleans()):
        target = logits(*shape, seed=seed + 1).softmax(min(1, len(shape) - 1)).to(dtype)
    else:
        target = torch.randint(c, target_shape, generator=g)
        if draw(st.booleans()):
            kwargs["ignore_index"] = draw(st.integers(-2, c))
            ignored = torch.rand(target_shape, generator=g) < 0.3
            target = torch.where(ignored, kwargs["ignore_index"], target)
    return x, target, kwargs


@given(problem=problems())
def test_cross_entropy_is_the_reference(problem):
    x, target, kwargs = problem
    check_values(x, target, **kwargs)
    check_gradients(x, target, **kwargs)


@given(problem=problems(), factor=st.sampled_from((0.5, 2.0, -1.0, 1024.0)))
def test_the_gradient_is_linear_in_the_upstream_gradient(problem, factor):
    """A power of two changes no digit, unless one is lost to the end of the exponent range.

    The sign of a zero is not compared: adding +0 makes each zero +0. The gradient of a single class is +0 for
    both signs of the factor.
    """
    x, target, kwargs = problem
    x = x.float().requires_grad_()
    kwargs = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
    target = target.float() if target.is_floating_point() else target
    loss = softkern.cross_entropy(x, target, **kwargs)
    one = torch.ones_like(loss)
    (dx,) = torch.autograd.grad(loss, x, one, retain_graph=True)
    (scaled,) = torch.autograd.grad(loss, x, one * factor)
    assert_same_bits(scaled + 0.0, dx * factor + 0.0)
