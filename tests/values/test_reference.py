# SPDX-License-Identifier: Apache-2.0
"""The oracle itself: softkern/reference.py in float64 against torch in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import CLASSES, HURTING, logits, name, special_rows, upstream
from cross_entropy_cases import OPTIONS, REDUCTIONS, SHAPES, problem
from softmax_checks import OPS

from softkern import reference

f64 = torch.float64


def same(actual, expected):
    """12 digits: torch's own float64 sums over 4097 terms keep no more than that."""
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("classes", CLASSES)
def test_softmax_and_its_gradient(op, classes):
    o, x = OPS[op], logits(5, classes, dtype=f64).requires_grad_()
    expected = o.torchs(x, dim=1)
    grad = upstream(expected, "random").detach()
    (dx,) = torch.autograd.grad(expected, x, grad)
    y = o.forward(x.detach(), 1)
    same(y, expected.detach())
    same(o.backward(grad, y, 1), dx)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("values", (*HURTING, special_rows), ids=name)
def test_softmax_of_logits_that_hurt(op, values):
    o = OPS[op]
    x = (special_rows(17) if values is special_rows else values(5, 17)).double()
    same(o.forward(x, 1), o.torchs(x, dim=1))
    same(o.forward(x.t(), 0), o.torchs(x.t(), dim=0))


@pytest.mark.parametrize("shape", ((), (0,), (0, 3), (3, 0), (2, 0, 4)), ids=name)
@pytest.mark.parametrize("op", OPS)
def test_softmax_of_almost_nothing(op, shape):
    x = torch.zeros(shape, dtype=f64)
    for dim in range(max(1, len(shape))):
        same(OPS[op].forward(x, dim), OPS[op].torchs(x, dim=dim))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", OPTIONS, ids=name)
@pytest.mark.parametrize("shape", SHAPES, ids=name)
def test_cross_entropy_and_its_gradient(shape, options, reduction):
    x, target, kwargs = problem(shape, f64, **options)
    x.requires_grad_()
    expected = F.cross_entropy(x, target, reduction=reduction, **kwargs)
    grad = upstream(expected, "random").detach()
    (dx,) = torch.autograd.grad(expected, x, grad)
    args = x.detach(), target
    same(reference.cross_entropy(*args, reduction=reduction, **kwargs), expected.detach())
    same(reference.cross_entropy_backward(grad, *args, reduction=reduction, **kwargs), dx)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", (0.0, 0.1, 1.0))
def test_cross_entropy_of_rows_that_are_not_finite(smoothing, reduction):
    """Rows apart and together; no row is ignored, where softkern and torch differ on purpose."""
    x = special_rows(5, f64)
    for target in (torch.zeros(len(x), dtype=torch.long), torch.full((len(x),), 4), x.softmax(1)):
        rows = [slice(None), *(slice(i, i + 1) for i in range(len(x)))]
        for row in rows:
            t, kwargs = target[row], {"reduction": reduction, "label_smoothing": smoothing}
            xr = x[row].clone().requires_grad_()
            expected = F.cross_entropy(xr, t, **kwargs)
            (dx,) = torch.autograd.grad(expected.sum(), xr)
            same(reference.cross_entropy(x[row], t, **kwargs), expected.detach())
            one = torch.ones_like(expected)
            same(reference.cross_entropy_backward(one, x[row], t, **kwargs), dx)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_ignored_rows_have_zero_gradient_whatever_their_logits(reduction):
    x = special_rows(5, f64)
    target = torch.full((len(x),), -100)
    grad = upstream(reference.cross_entropy(x, target, reduction=reduction), "random")
    dx = reference.cross_entropy_backward(grad, x, target, reduction=reduction)
    assert torch.equal(dx, torch.zeros_like(x))
