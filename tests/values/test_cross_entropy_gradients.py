# SPDX-License-Identifier: Apache-2.0
"""cross_entropy: gradients in the logits against the float64 oracle."""

from __future__ import annotations

import pytest
import torch
from cases import (
    CLASSES,
    HALVES,
    HURTING,
    LAYOUTS,
    UPSTREAM,
    logits,
    name,
    special_rows,
    upstream,
)
from cross_entropy_cases import (
    OPTIONS,
    SHAPES,
    indices,
    over_dtypes,
    over_kinds,
    over_reductions,
    problem,
)
from cross_entropy_checks import check_gradients

import softkern


@over_dtypes
@over_reductions
@pytest.mark.parametrize("options", OPTIONS, ids=name)
@pytest.mark.parametrize("shape", SHAPES, ids=name)
def test_every_option_in_every_shape(shape, options, reduction, dtype):
    x, target, kwargs = problem(shape, dtype, **options)
    check_gradients(x, target, reduction, **kwargs)


@over_dtypes
@over_reductions
@over_kinds
@pytest.mark.parametrize("grad", UPSTREAM)
@pytest.mark.parametrize("shape", ((9, 100), (3, 31, 4)), ids=name)
def test_any_upstream_gradient(shape, grad, kind, reduction, dtype):
    """1, another number, one per row, and one per row with stride 0."""
    x, target, kwargs = problem(shape, dtype, **kind)
    check_gradients(x, target, reduction, grad=grad, **kwargs)


@over_dtypes
@over_kinds
@pytest.mark.parametrize("classes", CLASSES)
def test_any_number_of_classes(classes, kind, dtype):
    x, target, kwargs = problem((5, classes), dtype, **kind)
    check_gradients(x, target, "none", **kwargs)
    check_gradients(x, target, "mean", **kwargs)


@over_kinds
@pytest.mark.parametrize("reduction", ("none", "mean"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=name)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", ((33,), (6, 33), (3, 17, 5), (2, 6, 5, 7)), ids=name)
def test_any_layout(shape, layout, dtype, reduction, kind):
    x, target, kwargs = problem(shape, dtype, **kind)
    x = LAYOUTS[layout](x)
    if target.is_floating_point():
        target = LAYOUTS[layout](target)
    check_gradients(x, target, reduction, **kwargs)


@pytest.mark.parametrize("layout", ("padded", "transposed", "every_other", "expanded"))
@over_kinds
def test_any_layout_of_the_upstream_gradient(kind, layout):
    x, target, kwargs = problem((4, 17, 6), **kind)
    grad = LAYOUTS[layout](logits(4, 6, seed=9))
    check_gradients(x, target, "none", grad=grad, **kwargs)


@over_dtypes
@over_kinds
@over_reductions
@pytest.mark.parametrize("hurt", HURTING, ids=name)
@pytest.mark.parametrize("classes", (3, 17, 1000))
def test_logits_chosen_to_hurt(classes, hurt, reduction, kind, dtype):
    x = hurt(4, classes, dtype)
    _, target, kwargs = problem((4, classes), dtype, **kind)
    check_gradients(x, target, reduction, **kwargs)


@over_dtypes
@pytest.mark.parametrize("options", OPTIONS, ids=name)
@pytest.mark.parametrize("classes", (2, 17, 65))
def test_rows_that_are_not_finite(classes, options, dtype):
    x = special_rows(classes, dtype)
    _, target, kwargs = problem((len(x), classes), dtype, **options)
    check_gradients(x, target, "none", **kwargs)
    if not target.is_floating_point():
        for c in (0, classes // 2, classes - 1):
            check_gradients(x, torch.full((len(x),), c), "none", **kwargs)


@over_dtypes
@over_reductions
@pytest.mark.parametrize("smoothing", (0.0, 0.1))
def test_ignored_rows_are_exactly_zero_whatever_their_logits(smoothing, reduction, dtype):
    """torch answers NaN * 0 = NaN here, and one such row poisons every weight below it."""
    bad, good = special_rows(9, dtype), logits(4, 9, dtype=dtype)
    x = torch.cat([bad, good])
    target = torch.full((len(x),), -100)
    target[-4:] = torch.tensor([0, 3, 8, 5])
    dx = check_gradients(x, target, reduction, label_smoothing=smoothing)
    assert torch.equal(dx[: len(bad)], torch.zeros_like(bad))
    assert bool(dx[len(bad) :].ne(0).any(1).all())


@over_dtypes
@over_reductions
@pytest.mark.parametrize("options", ({}, {"weight": True}, {"smoothing": 0.1}), ids=name)
def test_nothing_but_ignored_rows(options, reduction, dtype):
    """The mean is 0/0, its gradient zero all the same."""
    x, _, kwargs = problem((6, 10), dtype, **options)
    target = torch.full((6,), -100)
    dx = check_gradients(x, target, reduction, **kwargs)
    assert torch.equal(dx, torch.zeros_like(x))


@over_reductions
@pytest.mark.parametrize("dtype", HALVES, ids=name)
def test_the_true_class_of_a_confident_row_keeps_its_digits(dtype, reduction):
    """p - 1 with p = 0.999: with p rounded to bf16 first it is 0 or twice as large."""
    x = torch.zeros(8, 17, dtype=dtype)
    x[torch.arange(8), torch.arange(8)] = torch.linspace(5, 12, 8).to(dtype)
    dx = check_gradients(x, torch.arange(8), reduction, grad="ones")
    assert bool((dx[torch.arange(8), torch.arange(8)] < 0).all())


@over_reductions
def test_fp16_with_a_scaled_loss(reduction):
    """Mixed precision multiplies the loss by 2^15 to keep small gradients; none may be lost before.

    The smallest probabilities here are subnormal in fp16 and normal once they have been multiplied.
    """
    x, target = logits(64, 1000, dtype=torch.float16), indices((64, 1000))
    shape = (64,) if reduction == "none" else ()
    scale = torch.full(shape, 2.0**15 if reduction != "none" else 2.0**11, dtype=torch.float16)
    check_gradients(x, target, reduction, grad=scale)


@over_dtypes
@over_kinds
@over_reductions
def test_many_rows(reduction, kind, dtype):
    x, target, kwargs = problem((3001, 7), dtype, **kind)
    check_gradients(x, target, reduction, **kwargs)


@over_dtypes
@over_kinds
def test_long_rows(kind, dtype):
    x, target, kwargs = problem((2, 65549), dtype, **kind)
    check_gradients(x, target, "sum", grad="ones", **kwargs)


def test_logits_get_their_gradient_also_when_the_probabilities_want_one():
    """Another path: the gradient in the probabilities needs the logarithms. Values: test_autograd."""
    x, target, kwargs = problem((6, 17), torch.float64, **OPTIONS[-1])
    leaf = x.clone().requires_grad_()
    loss = softkern.cross_entropy(leaf, target.clone().requires_grad_(), **kwargs)
    (dx,) = torch.autograd.grad(loss, leaf)
    expected = check_gradients(x, target, grad=upstream(loss, "ones"), **kwargs)
    torch.testing.assert_close(dx, expected, rtol=1e-12, atol=1e-14)
