# SPDX-License-Identifier: Apache-2.0
"""What other vocabulary-parallel losses got wrong: one test for each bug."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from cases import logits
from parallel_cases import check, raised, sharded, slices
from row_losses_cases import row_problem
from threaded_ranks import on_ranks

from softkern.parallel import cross_entropy

RANKS = 2
EVEN = (20, 20)
HOW = ({}, {"exchange": "rows"})


def problem(**options):
    x, given = row_problem((6, 40), **options)
    return x, given.pop("target"), given


def of_f(x, target, **options):
    """F's loss and gradient in float64."""
    leaf = x.double().requires_grad_()
    wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    loss = F.cross_entropy(leaf, target, **wide)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def assert_as_f(x, target, widths=EVEN, **options):
    result = sharded(x, widths, (), "ones", target=target, **options)
    loss, dx = of_f(x, target, **options)
    torch.testing.assert_close(result.found.loss.double(), loss, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(result.dx[0].double(), dx, rtol=1e-5, atol=1e-7)


def test_class_weights_with_ignored_rows():
    """torch's loss_parallel looks up the weight of class -100 in backward."""
    x, target, options = problem(weight=True)
    target[::2] = -100
    assert_as_f(x, target, **options)


@pytest.mark.parametrize("target", (40, 45, -1, -41, -99, 2**40))
@pytest.mark.parametrize("weighted", (False, True))
def test_a_target_out_of_range_raises_on_every_rank(target, weighted):
    """torch's loss_parallel returns -0.0."""
    x, y = logits(6, 40), torch.arange(6)
    y[4] = target
    weight = torch.ones(40) if weighted else None
    for more in ({}, {"row_chunks": 6}, {"exchange": "rows"}):
        for error in raised(RANKS, lambda r: cross_entropy(x.chunk(2, 1)[r], y, weight=weight, **more)):  # noqa: B023
            assert type(error) is IndexError and f"Target {target} is out of bounds" in str(error)
    several = y.unsqueeze(1).repeat(1, 2)
    for error in raised(
        RANKS,
        lambda r: cross_entropy(x.chunk(2, 1)[r], several, target_probs=torch.ones(6, 2), weight=weight),
    ):
        assert type(error) is IndexError and f"Target {target} is out of bounds" in str(error)


@pytest.mark.parametrize("how", HOW)
def test_a_rank_without_classes(how):
    """With torch's loss_parallel, that rank raises and the others wait; torchtitan raises on it alone."""
    for widths in ((0, 40), (40, 0), (13, 0, 27), (0, 0, 40, 0)):
        for target in ("index", "indices", "probs"):
            x, options = row_problem((6, 40), target=target, smoothing=0.1)
            check(x, widths, how=how, **options)


@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
def test_label_smoothing_with_the_classes_and_the_mean_of_whole_rows(reduction):
    """Megatron divides by the classes of a rank, TransformerEngine sums over them."""
    x, target, _ = problem()
    for e in (0.1, 1.0):
        check(x, EVEN, target=target, label_smoothing=e, reduction=reduction)
        check(x, (7, 33), target=target, label_smoothing=e, reduction=reduction)
    assert_as_f(x, target, label_smoothing=0.3)


def test_z_loss_keeps_the_maximum():
    """nanotron squares log sum exp(x - max)."""
    x, target, _ = problem()
    for shift in (0.0, 50.0):
        shifted = x + shift
        plain, with_z = (sharded(shifted, EVEN, (), target=target, z_loss=z).found.loss for z in (0.0, 0.1))
        squares = 0.1 * shifted.double().logsumexp(1).square().mean()
        assert math.isclose(with_z - plain, squares, rel_tol=1e-5)


def test_ignored_rows_are_not_those_of_a_class_near_the_end():
    """DeepSpeed subtracts 1 at index -100, which is class V - 100."""
    x = logits(6, 400)
    target = torch.tensor([-100, 300, -100, 5, 399, -100])
    for widths in ((200, 200), (100, 300)):
        for dx in check(x, widths, target=target).dx:
            assert not dx[target == -100].any()


def test_offsets_of_shards_that_are_not_equal():
    """flash-attn, Liger, TransformerEngine and nanotron compute them as rank * local width."""
    x, target, _ = problem()
    for widths in ((14, 14, 12), (1, 39), (25, 5, 10), (20, 20)):
        assert_as_f(x, target, widths)
        assert_as_f(x, x.softmax(1).flip(1), widths)


def test_backward_needs_no_context():
    """torch's loss_parallel must still be open. Here another thread may do it, after all forwards."""
    x, target, _ = problem()
    leaves = [t.clone().requires_grad_() for t in slices(x, EVEN)]
    losses = on_ranks(RANKS, lambda r: cross_entropy(leaves[r], target))
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(torch.cat([t.grad for t in leaves], 1).double(), of_f(x, target)[1])


def test_gradients_of_class_probabilities():
    """torch's loss_parallel gives wrong ones, without an error (pytorch issue 190746)."""
    x, _, _ = problem()
    assert_as_f(x, logits(6, 40, seed=3).softmax(1))
    assert_as_f(
        x, logits(6, 40, seed=3).softmax(1) * 0.5, weight=torch.linspace(0, 2, 40), label_smoothing=0.2
    )


def test_a_row_whose_mass_is_on_one_rank_alone():
    x = logits(6, 40)
    probs = torch.zeros(6, 40)
    probs[:, 3] = 1
    for widths in (EVEN, (3, 1, 36)):
        assert_as_f(x, probs, widths)


@pytest.mark.parametrize("how", HOW)
def test_rows_that_are_all_ignored(how):
    """0/0 as in F, exact zeros as the gradient, and nobody waits."""
    x, target = logits(6, 40), torch.full((6,), -100)
    for reduction in ("mean", "sum", "none"):
        result = check(x, EVEN, how=how, target=target, reduction=reduction)
        assert result.found.loss.isnan().all() if reduction == "mean" else not result.found.loss.any()
        assert not any(dx.any() for dx in result.dx)


def test_a_gathered_loss_is_not_larger_by_the_log_of_the_ranks():
    """Megatron's with gathered logits. Here they are refused, if `classes` says what whole rows have."""
    x, target, _ = problem()
    for error in raised(RANKS, lambda r: cross_entropy(x, target, classes=40)):
        assert type(error) is ValueError
        assert "input has all 40 classes, but group has 2 ranks that share them" in str(error)


def test_an_error_leaves_nothing_behind():
    """torch's loss_parallel leaves its handlers on after an exception."""
    x, target, _ = problem()

    def one(rank):
        own = x.chunk(2, 1)[rank]
        with pytest.raises(IndexError):
            cross_entropy(own, target + 40)
        with pytest.raises(ValueError, match="exchange must be one of"):
            cross_entropy(own, target, exchange="fast")
        return cross_entropy(own, target)

    for loss in on_ranks(RANKS, one):
        torch.testing.assert_close(loss.double(), of_f(x, target)[0])
