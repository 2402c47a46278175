# SPDX-License-Identifier: Apache-2.0
"""The oracle of row_losses: softkern.reference in float64 against formulas that torch's users write."""

from __future__ import annotations

import math

import pytest
import row_losses_plain as plain
import torch
from cases import HURTING, logits, name, special_rows
from cross_entropy_cases import OPTIONS, REDUCTIONS, SHAPES, problem
from row_losses_cases import ALONE, PAIRS, TARGETS, row_problem
from row_losses_checks import DIFFERENTIABLE, MIXES, possible

from softkern import reference

f64 = torch.float64
CASES = ALONE | PAIRS
over_reductions = pytest.mark.parametrize("reduction", REDUCTIONS)


def same(actual, expected, most=1e-11):
    torch.testing.assert_close(actual, expected, rtol=most, atol=most, equal_nan=True)


def upstreams(found, mix):
    return {
        n: logits(*getattr(found, n).shape, dtype=f64, seed=7) for n in mix if getattr(found, n) is not None
    }


def compare(x, options, reduction, most=1e-11):
    """Values, and the gradients by autograd and by the formula."""
    leaf, mine = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = plain.row_losses(leaf, **options, reduction=reduction)
    got = reference.row_losses(mine, **options, reduction=reduction)
    for n in possible(x, **options):
        same(getattr(got, n), getattr(expected, n), most)
    for mix in MIXES:
        g = upstreams(expected, mix)
        if not g:
            continue
        dx = [
            torch.autograd.grad([getattr(r, n) for n in g], at, list(g.values()), retain_graph=True)[0]
            for r, at in ((expected, leaf), (got, mine))
        ]
        formula = reference.row_losses_backward(
            *map(g.get, DIFFERENTIABLE), x, **options, reduction=reduction
        )
        same(dx[1], dx[0], most)
        same(formula, dx[0], most)


@over_reductions
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES)
def test_against_the_formulas_of_users(case, target, reduction):
    for shape in ((6, 10), (4, 7, 3)):
        x, options = row_problem(shape, f64, target=target, **CASES[case])
        compare(x, options, reduction)


@over_reductions
@pytest.mark.parametrize("options", OPTIONS, ids=name)
@pytest.mark.parametrize("shape", SHAPES, ids=name)
def test_without_options_it_is_cross_entropy(shape, options, reduction):
    x, target, kwargs = problem(shape, f64, **options)
    got = reference.row_losses(x, target, reduction=reduction, **kwargs)
    same(got.loss, reference.cross_entropy(x, target, reduction=reduction, **kwargs))
    g = logits(*got.loss.shape, dtype=f64, seed=7)
    dx = reference.row_losses_backward(g, None, None, None, x, target, reduction=reduction, **kwargs)
    same(dx, reference.cross_entropy_backward(g, x, target, reduction=reduction, **kwargs))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("values", HURTING, ids=name)
def test_logits_that_hurt(values, target):
    _, options = row_problem((5, 17), f64, target=target)
    # lse - z_y, as users write it, loses what an offset of 1e6 costs.
    compare(values(5, 17).double(), options, "none", 1e-9)


@over_reductions
@pytest.mark.parametrize("target", (0, 4, "probs"))
def test_rows_that_are_not_finite_are_those_of_cross_entropy(target, reduction):
    """Each alone and all together: where the loss and its gradient are NaN or infinite."""
    x = special_rows(5, f64)
    y = x.softmax(1) if target == "probs" else torch.full((len(x),), target)
    for rows in (slice(None), *(slice(i, i + 1) for i in range(len(x)))):
        xr, yr = x[rows], y[rows]
        loss = reference.row_losses(xr, yr, reduction=reduction).loss
        same(loss, reference.cross_entropy(xr, yr, reduction=reduction))
        one = torch.ones_like(loss)
        dx = reference.row_losses_backward(one, None, None, None, xr, yr, reduction=reduction)
        same(dx, reference.cross_entropy_backward(one, xr, yr, reduction=reduction))


@pytest.mark.parametrize("options", ({}, {"softcap": 3.0}, {"temperature": 0.5}), ids=name)
def test_logits_of_minus_infinity_give_no_nan(options):
    """By autograd and by the formula, although they are multiplied by terms that are 0."""
    x = logits(6, 9, dtype=f64)
    x[:, 2::3] = -torch.inf
    y = torch.zeros(6, dtype=torch.long)
    leaf = x.clone().requires_grad_()
    found = reference.row_losses(leaf, y, z_loss=0.1, reduction="none", **options)
    g = upstreams(found, DIFFERENTIABLE)
    (dx,) = torch.autograd.grad(found[:4], leaf, list(g.values()))
    formula = reference.row_losses_backward(*g.values(), x, y, z_loss=0.1, reduction="none", **options)
    same(formula, dx)
    assert not dx[:, 2::3].any() and dx.isfinite().all()


@over_reductions
def test_ignored_rows_are_nothing_whatever_their_logits(reduction):
    x = special_rows(5, f64)
    y = torch.full((len(x),), -100)
    leaf = x.clone().requires_grad_()
    found = reference.row_losses(leaf, y, reduction=reduction, num_items=3, label_smoothing=0.1, softcap=2.0)
    assert not any(t.any() for t in (*found[:4], found.correct)) and (found.argmax == -1).all()
    (dx,) = torch.autograd.grad([t.sum() for t in found[:4]], leaf)
    assert torch.equal(dx, torch.zeros_like(x))
    g = [logits(*t.shape, dtype=f64, seed=7) for t in found[:4]]
    assert torch.equal(reference.row_losses_backward(*g, x, y, reduction=reduction), dx)


def test_confident_rows_keep_their_digits():
    """More than float64 has of log(1 + r): against its series."""
    r = 3 * math.exp(-30.0)
    x = torch.tensor([[30.0, 0, 0, 0]], dtype=f64, requires_grad=True)
    found = reference.row_losses(x, torch.tensor([0]))
    torch.testing.assert_close(found.log_prob.item(), -r * (1 - r / 2), rtol=1e-14, atol=0)
    torch.testing.assert_close(found.entropy.item(), r * (1 - r / 2) + 30 * r / (1 + r), rtol=1e-14, atol=0)
    (dx,) = torch.autograd.grad(found.loss, x)
    torch.testing.assert_close(dx[0, 0].item(), -r / (1 + r), rtol=1e-14, atol=0)
    one = torch.ones((), dtype=f64)
    formula = reference.row_losses_backward(one, None, None, None, x.detach(), torch.tensor([0]))
    torch.testing.assert_close(formula, dx, rtol=1e-14, atol=0)
