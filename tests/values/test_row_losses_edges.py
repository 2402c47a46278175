# SPDX-License-Identifier: Apache-2.0
"""row_losses: logits that are not finite, padding, ignored rows, ties, confident and uniform rows."""

from __future__ import annotations

import math

import pytest
import torch
from cases import logits, name, special_rows
from cross_entropy_cases import REDUCTIONS, over_dtypes, over_reductions
from row_losses_cases import ALL, over_targets, row_problem
from row_losses_checks import DIFFERENTIABLE, MIXES, OUTPUTS, check, possible, row_losses

from softkern.reference_rows import RowLosses

inf, nan = math.inf, math.nan
over_classes = pytest.mark.parametrize("classes", (5, 17, 33, 100, 1000))


@over_dtypes
@over_targets
@pytest.mark.parametrize("options", ({}, {"softcap": 4.0}, {"temperature": 0.5}), ids=name)
def test_rows_that_are_not_finite(options, target, dtype):
    """NaN, inf or only -inf make all sums of a row NaN, as in torch's softmax; argmax is torch's.

    A cap makes inf finite, and lets -inf be.
    """
    for classes in (2, 17, 65):
        x = special_rows(classes, dtype)
        _, given = row_problem((len(x), classes), dtype, target=target, **options)
        if target == "probs":
            given["target"] = given["target"].clamp(min=0.01)
        targets = [given]
        if target == "index":  # each odd value is the target once, and once it is not
            targets = [{**given, "target": torch.full((len(x),), c)} for c in (0, classes // 2, classes - 1)]
        for arguments in targets:
            check(x, **arguments, reduction="none")


@over_dtypes
@over_classes
def test_a_cap_keeps_minus_infinity(classes, dtype):
    """-inf stays -inf, has no probability, and gets a gradient of exactly 0; the others see no padding."""
    x = logits(6, classes, dtype=dtype)
    x[:, 1::3] = -inf
    target = torch.zeros(6, dtype=torch.long)
    options = {"target": target, "softcap": 2.0, "logit_scale": 1.5, "z_loss": 0.1}
    dx = check(x, **options, reduction="none")
    assert not dx[:, 1::3].any() and dx[:, 0].any()
    without = x[:, torch.arange(classes) % 3 != 1]
    short = row_losses(without, DIFFERENTIABLE, **options, reduction="none")
    whole = row_losses(x, DIFFERENTIABLE, **options, reduction="none")
    for a, b in zip(whole, short, strict=True):
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@over_dtypes
@over_targets
@over_classes
def test_classes_beyond_the_valid_ones_are_not_there(classes, target, dtype):
    """1, C - 1 and C of them: no value of the padding counts, its gradient is exactly 0."""
    for valid in {1, classes - 1, classes}:
        x, options = row_problem((6, classes), dtype, target=target, smoothing=0.1, padding=classes - valid)
        options["valid_classes"] = valid
        results = []
        for fill in (nan, inf, -inf, 3.0):
            x[:, valid:] = fill
            if target == "probs":
                options["target"][:, valid:] = fill
            dx = check(x, **options, reduction="none")
            assert not dx[:, valid:].any()
            results.append((dx, *row_losses(x, possible(x, **options), **options)))
        for other in results[1:]:
            for a, b in zip(other, results[0], strict=True):
                assert a is b is None or torch.equal(a, b)


def test_targets_in_the_padding_are_out_of_bounds():
    x = logits(4, 10)
    for target, more in (
        (torch.tensor([0, 1, 2, 7]), {}),
        (torch.tensor([[0, 1], [2, 3], [4, 7], [1, 1]]), {"target_probs": torch.rand(4, 2)}),
    ):
        row_losses(x, ("loss",), target=target, **more, valid_classes=8)
        with pytest.raises(IndexError, match="Target 7 is out of bounds"):
            row_losses(x, ("loss",), target=target, **more, valid_classes=7)


@over_dtypes
@over_reductions
@pytest.mark.parametrize("classes", (9, 100))
def test_ignored_rows_are_nothing_whatever_their_logits(classes, reduction, dtype):
    bad, good = special_rows(classes, dtype), logits(4, classes, dtype=dtype)
    x = torch.cat([bad, good])
    target = torch.full((len(x),), -100)
    target[-4:] = torch.tensor([0, 3, 8, 5])
    for more in ({}, {"label_smoothing": 0.1, "softcap": 3.0, "z_loss": 0.1}):
        options = {"target": target, **more, "reduction": reduction}
        dx = check(x, **options)
        assert not dx[:-4].any() and dx[-4:].any(1).all()
        found = row_losses(x, OUTPUTS, **options)
        for n, nothing in zip(OUTPUTS[1:], (0.0, 0.0, 0.0, -1, False), strict=True):
            assert torch.equal(getattr(found, n)[:-4], torch.full_like(getattr(found, n)[:-4], nothing)), n


@over_dtypes
@over_reductions
def test_nothing_but_ignored_rows(reduction, dtype):
    """The mean is 0/0, unless num_items says what it is; the gradient is zero all the same."""
    x = torch.cat([special_rows(10, dtype), logits(4, 10, dtype=dtype)])
    target = torch.full((len(x),), -100)
    row_weight = torch.ones(len(x), dtype=dtype)
    for more in ({}, {"num_items": 7}, {"row_weight": row_weight}, {"z_loss": 0.1, "label_smoothing": 0.1}):
        loss = row_losses(x, ("loss",), target=target, **more, reduction=reduction).loss
        nothing = reduction != "mean" or "num_items" in more
        assert (loss == 0).all() if nothing else loss.isnan()
        dx = check(x, target=target, **more, reduction=reduction)
        assert torch.equal(dx, torch.zeros_like(x))


@over_dtypes
def test_row_weights_of_zero_are_rows_without_a_loss(dtype):
    """And with statistics."""
    x, options = row_problem((6, 40), dtype)
    row_weight = torch.tensor([0, 1, 0, 2, 1, 0.5], dtype=dtype)
    dx = check(x, mixes=(("loss",),), **options, row_weight=row_weight)
    assert torch.equal(dx.any(1), row_weight != 0)
    assert check(x, mixes=(("entropy",),), **options, row_weight=row_weight).any(1).all()
    nothing = row_losses(x, ("loss",), **options, row_weight=torch.zeros_like(row_weight))
    assert nothing.loss.isnan(), "0/0"


@over_dtypes
@over_classes
def test_the_first_of_several_maxima(classes, dtype):
    """Wherever they stand, also as zeros of both signs; `correct` follows."""
    x = logits(64, classes, dtype=dtype).clamp(max=2)
    places = torch.arange(64).unsqueeze(1) * torch.tensor([3, 7, 1]) % classes
    x.scatter_(1, places, 9)
    x[0] = 0.0
    x[0, ::2] = -0.0
    x[1, classes - 1] = inf
    for target in (x.argmax(1), x.argmax(1).roll(1)):
        found = row_losses(x, ("argmax", "correct"), target=target, label_smoothing=0.1)
        assert torch.equal(found.argmax, x.argmax(1))
        assert torch.equal(found.correct, x.argmax(1) == target)
    assert found.argmax[0] == 0


@over_dtypes
@over_classes
def test_the_first_nan_is_the_argmax(classes, dtype):
    """As in torch, although inf stands beside it."""
    x = logits(2 * classes, classes, dtype=dtype)
    x[torch.arange(2 * classes), torch.arange(2 * classes) % classes] = nan
    x[classes:, classes // 2] = nan
    x[::3, 0] = inf
    found = row_losses(x, ("argmax",))
    assert torch.equal(found.argmax, x.argmax(1))
    transposed = row_losses(x.t().contiguous().t(), ("argmax",))
    assert torch.equal(transposed.argmax, x.argmax(1))


def relative(actual, expected):
    return float(((actual.double() - expected) / expected).abs().max())


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16), ids=name)
@pytest.mark.parametrize("rows, classes", ((20, 8), (20, 100), (3, 1001)))
def test_confident_rows_keep_their_digits(rows, classes, dtype):
    """p = 1 - r with a tiny r: log p, 1 - p and the entropy, each with a relative error of a few ulp."""
    gap = 20.0
    x = torch.zeros(rows, classes, dtype=dtype)
    y = torch.arange(rows) % classes
    x[torch.arange(rows), y] = gap
    leaf = x.requires_grad_()
    graph = row_losses(leaf, OUTPUTS, target=y, reduction="sum")
    found = RowLosses(*(t.detach() for t in graph))
    r = (classes - 1) * math.exp(-gap)
    most = 40 * torch.finfo(found.lse.dtype).eps
    assert relative(found.log_prob, -math.log1p(r)) < most
    assert relative(found.entropy, math.log1p(r) + gap * r / (1 + r)) < most
    assert relative(found.lse, gap + math.log1p(r)) < 4 * torch.finfo(found.lse.dtype).eps
    for result, sign in ((graph.loss, 1), (graph.log_prob, -1)):
        (dx,) = torch.autograd.grad(result.sum(), leaf, retain_graph=True)
        rounded = torch.finfo(dtype).eps if dtype == torch.bfloat16 else most
        assert relative(dx[torch.arange(rows), y], -sign * r / (1 + r)) < rounded
    (dx,) = torch.autograd.grad(graph.entropy.sum(), leaf)
    mean = gap * r / (1 + r)
    assert relative(dx[torch.arange(rows), y], -mean / (1 + r)) < max(most, torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=name)
def test_a_small_lse_keeps_its_digits(dtype):
    """m = -log C and C equal logits: lse is the rounding error of m alone."""
    for classes in (8, 100, 1001):
        x = torch.full((20, classes), -math.log(classes), dtype=torch.float64)
        x[:, 0] += 1e-3
        check(x.to(dtype), ("lse",))


@over_dtypes
@pytest.mark.parametrize("classes", (2, 16, 100, 4096))
def test_the_entropy_of_uniform_and_of_certain_rows(classes, dtype):
    """log C; exactly 0, with a gradient of exactly 0."""
    x = torch.full((20, classes), 0.7, dtype=dtype)
    x[10:] = -inf
    x[10:, classes - 1] = 3.0
    leaf = x.requires_grad_()
    graph = row_losses(leaf, ("entropy", "lse"))
    found = RowLosses(*(t if t is None else t.detach() for t in graph))
    compute = found.entropy.dtype
    assert relative(found.entropy[:10], math.log(classes)) < 4 * torch.finfo(compute).eps
    assert not found.entropy[10:].any()
    assert torch.equal(found.lse[10:], torch.full((10,), 3.0, dtype=compute))
    (dx,) = torch.autograd.grad(graph.entropy.sum(), leaf)
    assert not dx[10:].any()
    assert float(dx[:10].abs().max()) < 4 * torch.finfo(compute).eps


@over_dtypes
def test_statistics_of_class_probabilities(dtype):
    """They don't depend on the target."""
    x, options = row_problem((4, 40, 3), dtype, target="probs", **ALL)
    del options["weight"], options["row_weight"]
    names = ("lse", "entropy", "argmax")
    options = {k: v for k, v in options.items() if k != "label_smoothing"}
    found = row_losses(x, ("loss", *names), **options)
    alone = row_losses(x, names, **{k: v for k, v in options.items() if k != "target"})
    for n in names:
        assert torch.equal(getattr(found, n), getattr(alone, n)), n


@over_dtypes
@over_reductions
def test_z_loss_has_the_weight_of_the_row(reduction, dtype):
    """z_loss lse^2 times the weight of the target's class and of the row, 1 for probabilities."""
    for target in ("index", "indices", "probs"):
        x, options = row_problem((6, 40), dtype, target=target, weight=True, row_weight=True)
        check(x, mixes=MIXES[:2], **options, z_loss=0.25, reduction=reduction)
    lse = x.double().logsumexp(1)
    options["weight"] = torch.zeros_like(options["weight"])
    loss = row_losses(x, ("loss",), **options, z_loss=0.25, reduction="none").loss
    expected = options["row_weight"].double() * 0.25 * lse.square()
    torch.testing.assert_close(loss.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_one_hot_target_probabilities_of_minus_infinity():
    """A class of -inf that has no mass and is no index takes no part."""
    x = logits(6, 17)
    x[:, 5:] = -inf
    target = torch.tensor([[0, 1]] * 6)
    options = {"target": target, "target_probs": torch.tensor([[0.25, 0.75]] * 6)}
    for reduction in REDUCTIONS:
        dx = check(x, **options, reduction=reduction)
        assert not dx[:, 5:].any()
        assert row_losses(x, ("loss",), **options, reduction=reduction).loss.isfinite().all()
