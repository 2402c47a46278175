# SPDX-License-Identifier: Apache-2.0
"""linear_cross_entropy: values and gradients against the float64 oracle, plan by plan."""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import name as id_of
from compare import assert_same_bits
from cross_entropy_cases import REDUCTIONS, over_dtypes
from linear_cases import Layer, check, linear, linear_problem, needed_bytes, over_fused, plan
from row_losses_cases import ALL, ALONE, TARGETS
from row_losses_checks import DIFFERENTIABLE

over_targets = pytest.mark.parametrize("target", TARGETS[:3])
MIXES = (("loss",), DIFFERENTIABLE, ("lse", "entropy"))
# One chunk; three chunks, the rows' dZ kept for one product; the same added up, since there are many rows.
SIZES = ((37, 16, 53), (130, 70, 131), (130, 24, 67))


@over_fused
@over_dtypes
@over_targets
def test_values_and_gradients(target, dtype, name):
    """The loss alone, whose gradients the forward may compute, and with statistics."""
    for i, (n, h, c) in enumerate(SIZES):
        for j, kind in enumerate(({}, ALL)):
            layer, options = linear_problem(n, h, c, dtype, target=target, bias=n == 130, **kind)
            options = {**options, "reduction": REDUCTIONS[(i + j) % 3], "options": plan(name, chunk_rows=64)}
            check(layer, ("loss",), **options)
            check(layer, mixes=MIXES[i : i + 1], **options)


@over_fused
@pytest.mark.parametrize("kind", ALONE.values(), ids=ALONE)
def test_each_option_alone(kind, name):
    for target in TARGETS[:3]:
        layer, options = linear_problem(70, 9, 41, target=target, **kind)
        check(layer, mixes=MIXES[:2], options=plan(name, chunk_rows=64), **options)


@over_dtypes
def test_the_reference_plan(dtype):
    """All logits, by ATen's ops: 16-bit inputs round them."""
    layer, options = linear_problem(37, 16, 53, torch.float64, **{**ALL, "padding": 0, "ignore": None})
    wide = {
        n: t.to(dtype) if isinstance(t, torch.Tensor) and t.is_floating_point() else t
        for n, t in options.items()
    }
    if dtype in (torch.float32, torch.float64):
        layer = Layer(*(t.to(dtype) for t in layer))
        check(layer, mixes=MIXES, options=plan("reference"), **wide)
        return
    leaves = Layer(*(t.to(dtype) for t in layer)).leaves()
    found = linear(leaves, ("loss", "lse"), options=plan("reference"), **wide)
    exact = linear(leaves.double(), ("loss", "lse"), **options)
    torch.testing.assert_close(found.loss.double(), exact.loss, rtol=2e-2, atol=0)
    assert (
        all(t.grad is None for t in leaves) and found.loss.dtype == dtype and found.lse.dtype == torch.float32
    )


@over_fused
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=id_of)
def test_the_smallest_pieces(dtype, name):
    """Lean's tiles of 128 classes, fast's chunks of 64 rows."""
    layer, options = linear_problem(130, 40, 401, dtype, **ALL)
    leaves = layer.leaves()

    def call(most):
        return linear(leaves, options=plan("lean", max_bytes=most), **options)

    least = needed_bytes(call)
    check(layer, mixes=MIXES[:2], options=plan(name, max_bytes=least), **options)


@over_fused
def test_what_is_differentiated(name):
    """All eight combinations: the others have no gradient, and what is needed has the same bits."""
    layer, options = linear_problem(130, 16, 53, **ALL)
    for outputs in (("loss",), ("loss", "entropy")):
        every = layer.leaves()
        sum(
            t.sum() for t in linear(every, outputs, options=plan(name), **options) if t is not None
        ).backward()
        for needs in itertools.product((False, True), repeat=3):
            some = Layer(*(t.detach().clone().requires_grad_(n) for t, n in zip(layer, needs, strict=True)))
            found = linear(some, outputs, options=plan(name), **options)
            assert found.loss.requires_grad == any(needs)
            if any(needs):
                sum(t.sum() for t in found if t is not None).backward()
            for t, need, want in zip(some, needs, every, strict=True):
                assert (t.grad is not None) == need
                if need:
                    assert_same_bits(t.grad, want.grad)


@over_fused
@pytest.mark.parametrize("kind", ("ones", "expanded", "random", "zero"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=id_of)
def test_upstream_gradients(dtype, kind, name):
    """Of one number, and of rows: with all strides 0, of both signs, of zeros."""
    for reduction in ("none", "mean"):
        layer, options = linear_problem(70, 16, 53, dtype, ignore=2)
        check(layer, mixes=MIXES, kind=kind, options=plan(name), reduction=reduction, **options)


@over_fused
@over_dtypes
def test_a_second_backward_has_the_same_bits(dtype, name):
    layer, options = linear_problem(70, 16, 53, dtype, **ALL)
    for outputs, factor in itertools.product((("loss",), ("loss", "lse")), (1, -0.3)):
        leaves = layer.leaves()
        found = linear(leaves, outputs, options=plan(name), **options)
        total = factor * sum(t.sum() for t in found if t is not None)
        first, second, third = (
            torch.autograd.grad(total, leaves, retain_graph=retain) for retain in (True, True, False)
        )
        for a, b, c in zip(first, second, third, strict=True):
            assert_same_bits(b, a), assert_same_bits(c, a)
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            total.backward()


@over_fused
@over_dtypes
def test_no_rows_and_one_row(dtype, name):
    for n, reduction in itertools.product((0, 1), REDUCTIONS):
        layer, options = linear_problem(n, 5, 13, dtype)
        if n or reduction != "mean":
            check(layer, mixes=MIXES, options=plan(name), reduction=reduction, **options)
            continue
        leaves = layer.leaves()
        loss = linear(leaves, options=plan(name), **options).loss
        assert loss.isnan()  # as F: 0 / 0
        loss.backward()
        assert all(t.grad.shape == t.shape for t in leaves)


@over_fused
@over_dtypes
def test_all_rows_are_ignored(dtype, name):
    """Gradients are zeros; the mean of nothing is NaN, as F's, and 0 with an external divisor."""
    layer, _ = linear_problem(70, 5, 13, dtype)
    y = torch.full((70,), -100)
    for items, reduction in ((None, "mean"), (7, "mean"), (None, "sum"), (None, "none")):
        leaves = layer.leaves()
        found = linear(leaves, target=y, reduction=reduction, num_items=items, options=plan(name))
        if reduction == "mean" and items is None:
            assert found.loss.isnan()
        else:
            assert_same_bits(found.loss, torch.zeros_like(found.loss))
        found.loss.sum().backward()
        for t in leaves:
            assert torch.equal(t.grad, torch.zeros_like(t))
