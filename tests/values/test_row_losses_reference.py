# SPDX-License-Identifier: Apache-2.0
"""The oracle of row_losses: softkern.reference in float64 against formulas that torch's users write."""

from __future__ import annotations

import pytest
import row_losses_plain as plain
import torch
from cases import HURTING, logits, name
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
