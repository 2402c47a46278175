# SPDX-License-Identifier: Apache-2.0
"""Edge cases of F.cross_entropy and F.softmax, with answers from the installed torch; and the cases where
softkern differs on purpose, because its answer is better."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from cases import HALVES, logits, name
from compare import assert_close

import softkern
from softkern import reference

inf, nan = math.inf, math.nan
over_reductions = pytest.mark.parametrize("reduction", ("none", "mean", "sum"))

T, W = torch.tensor, torch.tensor
SOFT = [[0.25, 0.25, 0.5], [1.0, 0.0, 0.0]]
X = [[0.5, -1.0, 2.0], [0.25, 3.0, -0.75]]

# name: (logits, target, options); answers that are the same in torch and softkern
SAME = {
    "every target ignored": (X, [-100, -100], {}),
    "every target ignored, weight and smoothing": (
        X,
        [7, 7],
        {"ignore_index": 7, "weight": W([1.0, 2.0, 3.0]), "label_smoothing": 0.1},
    ),
    "ignore_index is a class": (X, [0, 1], {"ignore_index": 1}),
    "empty batch": (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), {}),
    "empty batch, smoothing": (
        torch.zeros(0, 3),
        torch.zeros(0, dtype=torch.long),
        {"label_smoothing": 0.1},
    ),
    "empty batch, probabilities": (torch.zeros(0, 3), torch.zeros(0, 3), {}),
    "no positions": (torch.zeros(2, 3, 0), torch.zeros(2, 0, dtype=torch.long), {}),
    "no positions, probabilities": (torch.zeros(2, 3, 0), torch.zeros(2, 3, 0), {}),
    "no classes, all ignored": (torch.zeros(2, 0), [-100, -100], {}),
    "no classes, no rows": (torch.zeros(0, 0), torch.zeros(0, dtype=torch.long), {}),
    "no classes, probabilities": (torch.zeros(2, 0), torch.zeros(2, 0), {}),
    "one class": ([[3.0], [-2.0]], [0, 0], {}),
    "one row without a batch": (X[0], 2, {}),
    "one row without a batch, ignored": (X[0], -100, {}),
    "one row without a batch, probabilities": (X[0], SOFT[0], {}),
    "every target has weight 0": (X, [0, 0], {"weight": W([0.0, 1.0, 1.0])}),
    "every target has weight 0, smoothing": (
        X,
        [0, 0],
        {"weight": W([0.0, 1.0, 1.0]), "label_smoothing": 0.1},
    ),
    "every weight is 0, probabilities": (X, SOFT, {"weight": torch.zeros(3)}),
    "a NaN weight of another class": (X, [0, 1], {"weight": W([1.0, 2.0, nan])}),
    "a negative weight": (X, [0, 1], {"weight": W([1.0, -2.0, 1.5])}),
    "-inf logit of another class": ([[0.0, -inf, 1.0], X[1]], [0, 1], {}),
    "-inf logit of another class, smoothing": (
        [[0.0, -inf, 1.0], X[1]],
        [0, 1],
        {"label_smoothing": 0.1},
    ),
    "-inf logit of another class of weight 0, smoothing": (
        [[0.0, -inf, 1.0], X[1]],
        [0, 1],
        {"weight": W([1.0, 0.0, 1.0]), "label_smoothing": 0.1},
    ),
    "-inf logit of the target": ([[0.0, -inf, 1.0], X[1]], [1, 1], {}),
    "-inf logit of the target of weight 0": (
        [[0.0, -inf, 1.0], X[1]],
        [1, 0],
        {"weight": W([1.0, 0.0, 1.0])},
    ),
    "-inf logit of the target, smoothing 1": ([[0.0, -inf]], [1], {"label_smoothing": 1.0}),
    "-inf logit with probability 0": ([[0.0, 1.0, -inf]], [[0.5, 0.5, 0.0]], {}),
    "-inf logit with a probability": ([[0.0, 1.0, -inf]], [[0.5, 0.25, 0.25]], {}),
    "+inf logit of the target": ([[0.0, inf, 1.0], X[1]], [1, 1], {}),
    "+inf logit of another class": ([[0.0, inf, 1.0], X[1]], [0, 1], {}),
    "two +inf logits": ([[inf, inf, 1.0], X[1]], [0, 1], {}),
    "all -inf": ([[-inf, -inf, -inf], X[1]], [0, 1], {}),
    "NaN logit of the target": ([[0.0, nan, 1.0], X[1]], [1, 1], {}),
    "NaN logit of another class": ([[0.0, nan, 1.0], X[1]], [0, 1], {}),
    "NaN probability": (X, [[0.5, nan, 0.5], SOFT[1]], {}),
    "huge equal logits": ([[1e8, 1e8], [-1e8, -1e8]], [0, 1], {}),
    "the largest finite logits": ([[3.4e38, -3.4e38], [-3.4e38, -3.4e38]], [1, 0], {}),
    "logits far from zero": ([[10002.0, 9999.0]], [0], {}),
    "smoothing 1": (X, [0, 1], {"label_smoothing": 1.0}),
    "negative smoothing is none": (X, [0, 1], {"label_smoothing": -0.5}),
    "NaN smoothing is none": (X, [0, 1], {"label_smoothing": nan}),
    "negative smoothing of probabilities is none": (X, SOFT, {"label_smoothing": -0.5}),
    "probabilities with a negative ignore_index": (X, SOFT, {"ignore_index": -1}),
    "probabilities that sum to 0": (X, torch.zeros(2, 3), {}),
}


def answer(f, x, target, kwargs, reduction):
    """Loss and gradient."""
    x = torch.as_tensor(x, dtype=torch.float32).clone().requires_grad_()
    loss = f(x, torch.as_tensor(target), reduction=reduction, **kwargs)
    (dx,) = torch.autograd.grad(loss.sum(), x)
    return loss.detach(), dx


@over_reductions
@pytest.mark.parametrize("case", SAME)
def test_as_torch(case, reduction):
    got = answer(softkern.cross_entropy, *SAME[case], reduction)
    want = answer(F.cross_entropy, *SAME[case], reduction)
    for what, a, b in zip(("loss", "gradient"), got, want, strict=True):
        scale = 1 + b.double().abs()
        assert_close(a, b.double(), torch.float32, scale=scale, what=f"{case}: {what}")


def test_one_row_without_a_batch_takes_a_target_of_one_element():
    """Values only: torch's backward refuses what its forward has taken."""
    for reduction in ("none", "mean", "sum"):
        ours, theirs = (n.cross_entropy(T(X[0]), T([2]), reduction=reduction) for n in (softkern, F))
        torch.testing.assert_close(ours, theirs)


@over_reductions
@pytest.mark.parametrize("bad", (nan, inf, -inf))
def test_an_ignored_row_that_is_not_finite_has_zero_gradient_where_torch_has_nan(bad, reduction):
    x, target = [[bad] * 3, X[0]], [-100, 1]
    loss, dx = answer(softkern.cross_entropy, x, target, {}, reduction)
    their_loss, their_dx = answer(F.cross_entropy, x, target, {}, reduction)
    torch.testing.assert_close(loss, their_loss)
    torch.testing.assert_close(dx[1], their_dx[1])
    assert torch.equal(dx[0], torch.zeros(3))
    assert bool(their_dx[0].isnan().all()), "torch has caught up: move this case to SAME"


@pytest.mark.parametrize("reduction", ("mean", "sum"))
def test_an_fp16_mean_over_70000_rows_is_finite_where_torchs_is_not(reduction):
    x = logits(70000, 2, dtype=torch.float16)
    target = torch.ones(70000, dtype=torch.long)
    expected = reference.cross_entropy(x.double(), target, reduction=reduction)
    got = softkern.cross_entropy(x, target, reduction=reduction)
    assert_close(got, expected, torch.float16, scale=2 * expected)
    theirs = F.cross_entropy(x, target, reduction="mean")
    assert not math.isfinite(theirs), "torch has caught up: this is no difference any more"


@pytest.mark.parametrize("dtype", HALVES, ids=name)
def test_a_16_bit_mean_of_many_rows_keeps_its_digits(dtype):
    """4,000 losses of 1 + 1/128 or less: a 16-bit running sum stops growing at 256 or 2,048."""
    x = logits(4000, 5, dtype=dtype)
    target = torch.arange(4000) % 5
    expected = reference.cross_entropy(x.double(), target)
    assert_close(softkern.cross_entropy(x, target), expected, dtype, scale=2 * expected)


def test_log_softmax_of_131072_equal_fp16_logits_is_finite_where_torchs_is_not():
    x = torch.zeros(131072, dtype=torch.float16)
    assert softkern.log_softmax(x, 0)[0].item() == pytest.approx(-math.log(131072), rel=2**-11)
    assert F.log_softmax(x, 0)[0] == -inf, "torch has caught up: this is no difference any more"


@over_reductions
def test_int32_targets_are_taken_where_torch_refuses_them(reduction):
    target = T([2, -100], dtype=torch.int32)
    ours = answer(softkern.cross_entropy, X, target, {}, reduction)
    torchs = answer(F.cross_entropy, X, target.long(), {}, reduction)
    torch.testing.assert_close(ours, torchs)
    with pytest.raises(RuntimeError, match="expected target dtype"):
        F.cross_entropy(T(X), target)


def test_int32_targets_are_checked_like_int64_ones():
    for wrong in (3, -1, 2**31 - 1, -(2**31)):
        with pytest.raises(IndexError, match=rf"^Target {wrong} is out of bounds\.$"):
            softkern.cross_entropy(T(X), T([0, wrong], dtype=torch.int32))


@pytest.mark.parametrize("op", ("softmax", "log_softmax"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, *HALVES), ids=name)
@pytest.mark.parametrize("value", (0.0, -7.5, inf, -inf, nan))
def test_softmax_of_a_number(op, dtype, value):
    x = torch.tensor(value, dtype=dtype)
    for dim in (0, -1):
        ours, theirs = getattr(softkern, op)(x, dim), getattr(F, op)(x, dim)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("op", ("softmax", "log_softmax"))
@pytest.mark.parametrize("shape", ((0,), (0, 3), (3, 0), (2, 0, 4), (0, 0)), ids=name)
def test_softmax_of_nothing(op, shape):
    for dim in range(len(shape)):
        x = torch.zeros(shape, requires_grad=True)
        y = getattr(softkern, op)(x, dim)
        y.sum().backward()
        assert y.shape == x.shape == x.grad.shape
        assert y.dtype == torch.float32
