# SPDX-License-Identifier: Apache-2.0
"""row_losses: equal bits, whatever else is computed, wherever a row stands or its gradient goes."""

from __future__ import annotations

import pytest
import torch
from cases import LAYOUTS, logits, name, upstream
from compare import assert_same_bits
from cross_entropy_cases import REDUCTIONS, over_dtypes
from row_losses_cases import ALL, over_targets, row_problem
from row_losses_checks import DIFFERENTIABLE, OUTPUTS, arguments, possible, row_losses

ops = torch.ops.softkern
SHAPES = ((20, 7), (20, 100), (4, 1001), (3, 7, 20), (3, 40, 20))
KINDS = {"plain": {}, "softcap": {"softcap": 3.0}, "all": ALL}
over_kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def results(x, wanted, grads=None, **options):
    """The wanted results, and the gradient for upstream gradients of those that `grads` names."""
    leaf = x.detach().clone().requires_grad_()
    found = row_losses(leaf, wanted, **options)
    values = {n: t.detach() for n, t in found._asdict().items() if t is not None}
    given = {n: upstream(values[n], "random") for n in grads or ()}
    if given:
        found_grad = torch.autograd.grad([getattr(found, n) for n in given], leaf, list(given.values()))
        values["dx"] = found_grad[0]
    return values


def assert_equal(got, expected, what=""):
    for n, value in got.items():
        assert_same_bits(value, expected[n], f"{n} {what}")


@over_dtypes
@over_targets
@over_kinds
def test_what_else_is_wanted_changes_no_bit(kind, target, dtype):
    """Each result alone and all together; the gradient of the loss beside statistics, too."""
    for shape in SHAPES:
        x, options = row_problem(shape, dtype, target=target, **kind)
        names = possible(x, **options)
        together = results(x, names, names[:1], **options)
        for n in names:
            assert_equal(results(x, (n,), ("loss",) if n == "loss" else None, **options), together)
        with torch.no_grad():
            assert_equal(results(x, names, **options), together, "without a gradient")


@over_dtypes
@over_targets
@over_kinds
def test_a_row_alone_has_the_bits_it_has_in_any_place_of_a_batch(kind, target, dtype):
    for classes in (3, 33, 1000):
        x, options = row_problem((37, classes), dtype, target=target, **kind)
        names = possible(x, **options)
        given = {n: t for n, t in options.items() if isinstance(t, torch.Tensor) and n != "weight"}
        whole = results(x, names, reduction="none", **options)
        grads = {n: upstream(whole[n], "random") for n in DIFFERENTIABLE if n in whole}

        def of(rows, x=x, names=names, given=given, options=options, grads=grads):
            leaf = x[rows].clone().requires_grad_()
            some = {n: t[rows] for n, t in given.items()}
            found = row_losses(leaf, names, **{**options, **some}, reduction="none")
            values = {n: t.detach() for n, t in found._asdict().items() if t is not None}
            results = [getattr(found, n) for n in grads]
            (values["dx"],) = torch.autograd.grad(results, leaf, [g[rows] for g in grads.values()])
            return values

        everything = of(slice(None))
        assert_equal(whole, everything)
        for rows in (slice(0, 1), slice(16, 17), slice(36, 37), slice(5, 23), slice(1, 37)):
            part = {n: t[rows] for n, t in everything.items()}
            assert_equal(of(rows), part, f"rows {rows}")


@over_targets
@over_kinds
@pytest.mark.parametrize("layout", [n for n in LAYOUTS if not n.startswith("expanded")])
def test_the_layout_changes_no_bit(layout, kind, target):
    for shape in ((5, 37), (3, 37, 5)):
        x, options = row_problem(shape, target=target, **kind)
        names = possible(x, **options)
        expected = results(x, names, names[:1], **options)
        leaf = LAYOUTS[layout](x.clone()).detach().requires_grad_()
        found = row_losses(leaf, names, **options)
        assert_equal({n: getattr(found, n).detach() for n in names}, expected, layout)
        result = getattr(found, names[0])
        (dx,) = torch.autograd.grad(result, leaf, upstream(result.detach(), "random"))
        assert_same_bits(dx.contiguous(), expected["dx"], layout)


@over_targets
@over_kinds
def test_the_number_of_threads_changes_no_bit(kind, target, threads):
    """160,000 logits and more: the threads share the work."""
    for shape, dtype in (
        ((4099, 40), torch.float32),
        ((160, 1001), torch.bfloat16),
        ((400, 10, 40), torch.float32),
    ):
        x, options = row_problem(shape, dtype, target=target, **kind)
        names = possible(x, **options)
        grads = [n for n in DIFFERENTIABLE if n in names]
        threads(1)
        alone = results(x, names, grads, **options)
        for n in (2, 5):
            threads(n)
            assert_equal(results(x, names, grads, **options), alone, f"{n} threads")


class Source(torch.autograd.Function):
    """The identity, with memory of its own."""

    @staticmethod
    def forward(ctx, leaf):
        return leaf.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


@over_dtypes
@over_targets
@over_kinds
def test_a_gradient_over_the_logits_has_the_same_bits(kind, target, dtype):
    """Of the loss alone, which is computed in the forward, and of statistics, in the backward."""
    for shape in SHAPES:
        x, options = row_problem(shape, dtype, target=target, **kind)
        names = possible(x, **options)
        for grads in (names[:1], [n for n in DIFFERENTIABLE if n in names]):
            wanted = grads if grads == ("loss",) else names
            expected = results(x, wanted, grads, **options)
            leaf = x.clone().requires_grad_()
            over = Source.apply(leaf)
            found = row_losses(over, wanted, inplace=True, **options)
            assert_equal({n: getattr(found, n).detach() for n in wanted}, expected, "in place")
            given = [upstream(expected[n], "random") for n in grads]
            torch.autograd.backward([getattr(found, n) for n in grads], given)
            assert_same_bits(leaf.grad, expected["dx"], "dx in place")
            assert leaf.grad.data_ptr() == over.data_ptr(), "the gradient has memory of its own"


@over_targets
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=name)
def test_a_second_backward_gets_the_same_bits(dtype, target):
    x, options = row_problem((6, 40), dtype, target=target, **ALL)
    leaf = x.requires_grad_()
    found = row_losses(leaf, possible(x, **options), **options)
    for names in (("loss",), DIFFERENTIABLE, ("loss",)):
        given = [t for n in names if (t := getattr(found, n)) is not None]
        if given:
            grads = [upstream(t.detach(), "random") for t in given]
            first, second = (torch.autograd.grad(given, leaf, grads, retain_graph=True)[0] for _ in range(2))
            assert_same_bits(second, first)


@over_targets
@pytest.mark.parametrize("reduction", range(3), ids=REDUCTIONS)
def test_the_ops_below_make_the_whole(reduction, target):
    """forward and backward, as compiled programs call them, in place and not."""
    x, options = row_problem((6, 40), target=target, **ALL)
    names = possible(x, **options)
    options["reduction"] = REDUCTIONS[reduction]
    args = arguments(x, names, **options)
    whole = ops.row_losses(x, *args)
    *forward, grad = ops.row_losses_forward(x, *args, True)
    *without, nothing = ops.row_losses_forward(x, *args, False)
    assert nothing.shape == (0,)
    for a, b, c, n in zip(whole, forward, without, OUTPUTS, strict=True):
        assert_same_bits(b, a, n), assert_same_bits(c, a, n)
    pairs = zip(DIFFERENTIABLE, whole[:4], strict=True)
    grads = [logits(*t.shape, seed=7) if n in names else None for n, t in pairs]
    dx = ops.row_losses_backward(*grads, x, *args)
    expected = results(x, names, [n for n in DIFFERENTIABLE if n in names], **options)["dx"]
    assert_same_bits(dx, expected)
    over = x.clone()
    ops.row_losses_backward_(*grads, over, *args)
    assert_same_bits(over, dx)
    if "loss" in names:
        over = x.clone()
        for a, b in zip(ops.row_losses_forward_(over, *args), whole, strict=True):
            assert_same_bits(a, b)
        assert_same_bits(over, grad)
        ones = torch.ones_like(whole[0])
        loss_only = ops.row_losses_backward(ones, None, None, None, x, *args)
        torch.testing.assert_close(loss_only, grad, rtol=1e-6, atol=1e-8)
