# SPDX-License-Identifier: Apache-2.0
"""row_losses: gradients over the logits, logits that are modified, derivatives of higher order."""

from __future__ import annotations

import pytest
import torch
from cases import logits
from compare import assert_same_bits
from peak import peak_of
from row_losses_cases import ALL, TARGETS, over_targets, row_problem
from row_losses_checks import DIFFERENTIABLE, possible, row_losses

import softkern

# torch's own forward-mode decompositions are compiled with what torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
MODIFIED = "modified by an inplace operation"
over_stats = pytest.mark.parametrize("stats", ((), ("entropy",)), ids=("loss", "statistics"))
OPTIONS = {"softcap": 3.0, "z_loss": 0.1}


def of(x, inplace=True, stats=(), **more):
    """One number that depends on the loss and the statistics."""
    options = {**OPTIONS, **more}
    result = softkern.cross_entropy(x, torch.arange(len(x)), inplace_backward=inplace, stats=stats, **options)
    return result[0] + result[1].entropy.sum() if stats else result


@over_stats
@pytest.mark.parametrize(
    ("through", "message"),
    [
        (lambda leaf: leaf, "a leaf Variable that requires grad"),
        (lambda leaf: leaf.view(4, 5), "a view of a leaf Variable that requires grad"),
        (lambda leaf: leaf.clone()[:1].expand(4, 5), "more than one element of the written-to tensor"),
    ],
    ids=("leaf", "view", "expanded"),
)
def test_memory_that_must_not_be_overwritten_is_refused(through, message, stats):
    with pytest.raises(RuntimeError, match=message):
        of(through(torch.randn(4, 5, requires_grad=True)), stats=stats)


@over_stats
def test_a_bad_target_raises_before_anything_is_written(stats):
    x = torch.randn(4, 5, requires_grad=True).clone()
    before = x.detach().clone()
    for valid, bad in ((None, 9), (3, 3)):
        with pytest.raises(IndexError, match=f"Target {bad} is out of bounds"):
            softkern.cross_entropy(
                x,
                torch.tensor([0, 1, 2, bad]),
                inplace_backward=True,
                valid_classes=valid,
                stats=stats,
                **OPTIONS,
            )
    assert_same_bits(x.detach(), before)
    assert x._version == 0


@over_stats
def test_logits_that_an_operation_needs_are_missed_in_backward(stats):
    leaf = torch.randn(4, 5, requires_grad=True)
    loss = of(leaf.exp(), stats=stats)  # exp's gradient is its result
    with pytest.raises(RuntimeError, match=MODIFIED):
        loss.backward()


@over_stats
def test_a_gradient_or_logits_that_were_written_over_are_missed(stats):
    x = torch.randn(4, 5, requires_grad=True) * 1
    loss = of(x, stats=stats)
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match=MODIFIED):
        loss.backward()


def test_logits_modified_after_the_loss_matter_where_statistics_need_them():
    """As with F, not to the loss; the gradients of statistics are computed from the logits, and say so."""
    for stats in ((), ("entropy",)):
        leaf = torch.randn(4, 5, requires_grad=True)
        expected = torch.autograd.grad(of(leaf * 1, False, stats), leaf)[0]
        x = leaf * 1
        loss = of(x, False, stats)
        with torch.no_grad():
            x.zero_()
        if not stats:
            assert_same_bits(torch.autograd.grad(loss, leaf)[0], expected)
        else:
            with pytest.raises(RuntimeError, match=MODIFIED):
                loss.backward()


@over_stats
def test_a_retained_graph_gives_the_same_gradient_again(stats):
    leaf = torch.randn(4, 5, requires_grad=True)
    expected = torch.autograd.grad(of(leaf * 1, False, stats), leaf)[0]
    loss = of(leaf * 1, stats=stats)
    for retain in (True, True, False):
        assert_same_bits(torch.autograd.grad(loss, leaf, retain_graph=retain)[0], expected)


@over_stats
def test_logits_without_a_gradient_stay_what_they_are(stats):
    x = torch.randn(4, 5)
    before = x.clone()
    of(x, stats=stats)
    with torch.no_grad():
        of(x.requires_grad_(), stats=stats)
    assert_same_bits(x.detach(), before)


@over_stats
def test_no_memory_beside_the_logits(stats):
    leaf = torch.randn(64, 4096, requires_grad=True)
    x = leaf.clone()
    most, _ = peak_of(lambda: of(x, stats=stats).backward())
    assert most < x.nbytes / 16, f"{most} bytes"


def test_one_tensor_of_the_size_of_the_logits():
    """Whatever is asked for, forward and backward."""
    leaf = torch.randn(64, 4096, requires_grad=True)
    x = leaf * 1
    for stats in ((), ("lse", "entropy", "argmax")):

        def both(stats=stats):
            return torch.autograd.grad(of(x, False, stats), x)

        most, _ = peak_of(both)
        assert most < 1.1 * x.nbytes, f"{most / x.nbytes:.2f} times the logits"
    with torch.no_grad():
        most, _ = peak_of(lambda: of(x, False, ("lse", "entropy", "argmax")))
    assert most < x.nbytes / 16


@over_stats
def test_under_functionalize_and_transforms_the_logits_stay(stats):
    x = torch.randn(4, 5)
    before = x.clone()
    expected = of(x, False, stats)
    assert_same_bits(torch.func.functionalize(lambda x: of(x * 1, True, stats))(x), expected)
    dx = torch.func.grad(lambda x: of(x, True, stats))(x)
    leaf = x.clone().requires_grad_()
    of(leaf, False, stats).backward()
    torch.testing.assert_close(dx, leaf.grad)
    assert_same_bits(x, before)


def small(target, **more):
    x, options = row_problem((3, 5), torch.float64, target=target, k=2, **{**ALL, **more})
    return x.nan_to_num(0.3), options


@over_targets
def test_derivatives_of_first_and_second_order(target):
    x, options = small(target, ignore=None)
    names = [n for n in DIFFERENTIABLE if n in possible(x, **options)]

    def f(x):
        found = row_losses(x, tuple(names), **options)
        return tuple(getattr(found, n) for n in names)

    leaf = x.requires_grad_()
    assert torch.autograd.gradcheck(f, (leaf,))
    assert torch.autograd.gradgradcheck(f, (leaf,))


@pytest.mark.parametrize("target", TARGETS[1:3])
def test_derivatives_of_learned_weights_and_teachers(target):
    """To second order, also where a probability is 0."""
    x, options = small(target, smoothing=0.0)
    wanted = ("target" if target == "probs" else "target_probs", "weight", "row_weight")
    options[wanted[0]] = options[wanted[0]].nan_to_num(0.2)
    options[wanted[0]][0, 0] = 0
    leaves = [x.requires_grad_(), *(options[n].clone().requires_grad_() for n in wanted)]

    def f(x, *given):
        found = row_losses(x, ("loss", "lse"), **{**options, **dict(zip(wanted, given, strict=True))})
        return found.loss, found.lse

    assert torch.autograd.gradcheck(f, leaves)
    assert torch.autograd.gradgradcheck(f, leaves)


def test_ignored_rows_of_nan_have_derivatives_of_zero():
    """Of any order, and through every transform."""
    x = logits(4, 5, dtype=torch.float64)
    x[1] = torch.nan
    y = torch.tensor([0, -100, 2, 3])

    def f(x):
        loss, stats = softkern.cross_entropy(x, y, z_loss=0.1, softcap=3.0, stats=DIFFERENTIABLE[1:])
        return loss + sum(t.sum() for t in stats[:3])

    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(f(leaf), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), leaf)
    through = torch.func.grad(f)(x)
    tangent = torch.func.jvp(f, (x,), (torch.ones_like(x),))[1]
    hessian = torch.func.hessian(f)(x)
    for t in (first, second, through, hessian):
        assert t.isfinite().all() and not t[1].any()
    assert tangent.isfinite()
    torch.testing.assert_close(through, first.detach())
