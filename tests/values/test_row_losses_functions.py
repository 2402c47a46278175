# SPDX-License-Identifier: Apache-2.0
"""The public functions over row_losses: softkern.cross_entropy with its own options, log-probabilities of
chosen classes, entropies. Their results are those of the op, and of the formulas of TRL and Liger."""

from __future__ import annotations

import pytest
import row_losses_plain as plain
import torch
from cases import LAYOUTS, logits, name, upstream
from compare import assert_close, assert_gradient, assert_same_bits
from cross_entropy_cases import over_dtypes, over_reductions
from row_losses_cases import ALL, ALONE, TARGETS, row_problem
from row_losses_checks import DIFFERENTIABLE, OUTPUTS, check_values, possible, row_losses
from row_losses_scales import scales

import softkern
from softkern import reference
from softkern.reference_rows import RowLosses

MASSES = TARGETS[:3]
TRANSFORM = {"logit_scale": 0.7, "softcap": 4.0, "temperature": 0.8}
over_transforms = pytest.mark.parametrize("transform", ({}, TRANSFORM), ids=("plain", "transformed"))


def stats_of(x, options):
    """The names of all statistics that a call of cross_entropy can have."""
    names = possible(x, **options)[1:]
    return tuple(n for n in names if n != "log_prob" or "correct" in names)


@over_reductions
@pytest.mark.parametrize("target", MASSES)
@pytest.mark.parametrize("case", [n for n in ALONE if n != "plain"] + ["all"])
def test_cross_entropy_is_the_op(case, target, reduction):
    kind = ALL if case == "all" else ALONE[case]
    x, options = row_problem((4, 40, 3), target=target, **kind)
    stats = stats_of(x, options)
    ours, leaf = x.clone().requires_grad_(), x.clone().requires_grad_()
    options["reduction"] = reduction
    loss, found = softkern.cross_entropy(ours, stats=stats, **options)
    alone = softkern.cross_entropy(ours, **options)
    expected = row_losses(leaf, ("loss", *stats), **options)
    assert isinstance(found, softkern.RowStats) and found._fields == OUTPUTS[1:]
    for n in found._fields:
        a, b = getattr(found, n), getattr(expected, n)
        assert a is b is None or assert_same_bits(a, b, n) is None
    grads = {
        n: upstream(getattr(expected, n), "random").detach() for n in DIFFERENTIABLE if n in ("loss", *stats)
    }
    results = [loss if n == "loss" else getattr(found, n) for n in grads]
    (dx,) = torch.autograd.grad(results, ours, list(grads.values()))
    (want,) = torch.autograd.grad([getattr(expected, n) for n in grads], leaf, list(grads.values()))
    assert_same_bits(dx, want, "dx")
    assert_same_bits(loss, expected.loss, "loss")
    assert_same_bits(alone, expected.loss, "loss without statistics")


def test_only_the_statistics_that_are_asked_for():
    x, y = logits(6, 10), torch.arange(6)
    everything = softkern.cross_entropy(x, y, stats=OUTPUTS[1:])[1]
    for i, n in enumerate(OUTPUTS[1:]):
        for names in ((n,), [n, n], iter([n])):
            _, found = softkern.cross_entropy(x, y, stats=names)
            assert_same_bits(found[i], everything[i], n)
            assert [t is None for t in found] == [j != i for j in range(5)]
    assert softkern.RowStats() == (None,) * 5


def test_num_items_as_a_number_and_as_a_tensor():
    x, options = row_problem((6, 10), ignore=2)
    total = softkern.cross_entropy(x, reduction="sum", **options)
    for items in (4, 4.0, torch.tensor(4), torch.tensor([4.0]), torch.tensor(4, dtype=torch.bfloat16)):
        loss = softkern.cross_entropy(x, num_items=items, **options)
        torch.testing.assert_close(loss, total / 4, rtol=1e-6, atol=0)
        assert_same_bits(softkern.cross_entropy(x, num_items=items, reduction="sum", **options), total)


def indices_for(shape, k, classes, dtype=torch.int64):
    n = torch.Size(shape).numel()
    if k is None:
        return (torch.arange(n) * 7 % classes).reshape(shape).to(dtype)
    return ((torch.arange(n)[:, None] * 7 + torch.arange(k) * 5) % classes).reshape(*shape, k).to(dtype)


@over_dtypes
@over_transforms
@pytest.mark.parametrize("k", (None, 1, 4))
@pytest.mark.parametrize("shape", ((), (6,), (2, 3), (0,), (2, 3, 2)), ids=name)
def test_selective_log_softmax(shape, k, transform, dtype):
    """Against the oracle; the gradient, too, for upstream gradients of both results."""
    classes = 40
    x, index = logits(*shape, classes, dtype=dtype), indices_for(shape, k, classes)
    leaf = x.requires_grad_()
    log_p, entropy = softkern.selective_log_softmax(leaf, index, entropy=True, **transform)
    assert log_p.shape == index.shape and entropy.shape == shape
    assert_same_bits(softkern.selective_log_softmax(leaf, index, **transform).detach(), log_p.detach())
    assert_same_bits(softkern.entropy_from_logits(leaf, **transform).detach(), entropy.detach())

    rows = x.detach().reshape(-1, classes)
    flat = index.reshape(-1, *index.shape[len(shape) :])
    found = RowLosses(
        None, log_p.detach().reshape(flat.shape), None, entropy.detach().reshape(-1), None, None
    )
    check_values(found, rows, target=flat, ignore_index=-1, **transform)
    grads = {"log_prob": upstream(found.log_prob, "random"), "entropy": upstream(found.entropy, "random")}
    given = [grads["log_prob"].reshape(log_p.shape), grads["entropy"].reshape(shape)]
    (dx,) = torch.autograd.grad((log_p, entropy), leaf, given)
    wide = {n: g.double() for n, g in grads.items()}
    options = {"target": flat, "ignore_index": -1, **transform}
    want = reference.row_losses_backward(
        None, wide["log_prob"], None, wide["entropy"], rows.double(), **options
    )
    _, scale = scales(rows.double(), wide, **options)
    assert_gradient(dx.reshape(rows.shape), want, dtype, scale=scale, what="dx")


@over_transforms
def test_the_formulas_of_trl(transform):
    """In float64, with the gradients of autograd."""
    x = logits(4, 9, 50, dtype=torch.float64)
    for k in (None, 3):
        index = indices_for((4, 9), k, 50)
        results = []
        for f in (softkern.selective_log_softmax, None):
            leaf = x.clone().requires_grad_()
            if f is None:
                z = plain.transformed(leaf, **transform)
                pair = plain.selective_log_softmax(z, index), plain.entropy_from_logits(z)
            else:
                pair = f(leaf, index, entropy=True, **transform)
            g = [logits(*t.shape, dtype=torch.float64, seed=7) for t in pair]
            results.append((*(t.detach() for t in pair), *torch.autograd.grad(pair, leaf, g)))
        torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)


@over_reductions
def test_the_formulas_of_liger(reduction):
    """lse_square_scale and softcap; its mean divides by the number of rows that are kept."""
    x = logits(12, 50, dtype=torch.float64)
    y = torch.arange(12)
    y[::4] = -100
    for more in ({}, {"softcap": 5.0}):
        results = []
        for f, key in ((softkern.cross_entropy, "z_loss"), (plain.liger_cross_entropy, "lse_square_scale")):
            leaf = x.clone().requires_grad_()
            loss = f(leaf, y, **{key: 0.01}, reduction=reduction, **more)
            (dx,) = torch.autograd.grad(loss, leaf, logits(*loss.shape, dtype=torch.float64, seed=7))
            results.append((loss.detach(), dx))
        torch.testing.assert_close(*results, rtol=1e-11, atol=1e-12)


@over_dtypes
@pytest.mark.parametrize("dim", (0, 1, 2, -1, -3))
def test_the_entropy_along_any_dim(dim, dtype):
    x = logits(5, 7, 6, dtype=dtype)
    for layout in ("clone", "transposed", "permuted", "padded"):
        leaf = LAYOUTS[layout](x).detach().requires_grad_()
        h = softkern.entropy_from_logits(leaf, dim, temperature=0.5)
        rows = x.movedim(dim, -1)
        want = row_losses(rows.reshape(-1, rows.shape[-1]), ("entropy",), temperature=0.5).entropy
        assert_same_bits(h.detach(), want.reshape(rows.shape[:-1]), layout)
        g = upstream(h.detach(), "random")
        (dx,) = torch.autograd.grad(h, leaf, g)
        wide = rows.double().requires_grad_()
        exact = reference.row_losses(wide.reshape(-1, rows.shape[-1]), temperature=0.5).entropy
        (expected,) = torch.autograd.grad(exact, wide, g.double().reshape(-1))
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(dx.movedim(dim, -1).double(), expected, rtol=8 * eps, atol=8 * eps)


@pytest.mark.parametrize("dtype", (torch.uint8, torch.int32, torch.int64), ids=name)
@pytest.mark.parametrize("layout", ("transposed", "padded", "every_other", "permuted"))
def test_layouts_and_dtypes_of_indices(layout, dtype):
    x = logits(3, 5, 20)
    for k in (None, 2):
        index = indices_for((3, 5), k, 20, dtype)
        expected = softkern.selective_log_softmax(x, index.long(), entropy=True)
        got = softkern.selective_log_softmax(LAYOUTS[layout](x), LAYOUTS[layout](index), entropy=True)
        for a, b in zip(got, expected, strict=True):
            assert_same_bits(a, b)


def test_a_negative_index_is_out_of_bounds():
    """Here no index is ignored, neither -100 nor -1."""
    x = logits(2, 10)
    for bad in (-100, -1, 10):
        for index in (torch.tensor([0, bad]), torch.tensor([[0, 1], [1, bad]])):
            with pytest.raises(IndexError, match=f"Target {bad} is out of bounds"):
                softkern.selective_log_softmax(x, index)


def test_two_losses_of_a_frozen_policy():
    """A use in reinforcement learning: log-probabilities, and an entropy bonus, in one backward."""
    x, index = logits(8, 100), indices_for((8,), None, 100)
    leaf = x.requires_grad_()
    log_p, entropy = softkern.selective_log_softmax(leaf, index, temperature=0.9, entropy=True)
    advantage = logits(8, seed=3)
    loss = -(advantage * (log_p - log_p.detach()).exp()).mean() - 0.01 * entropy.mean()
    (dx,) = torch.autograd.grad(loss, leaf)
    wide = x.detach().double().requires_grad_()
    z = wide / 0.9
    log_p, entropy = plain.selective_log_softmax(z, index), plain.entropy_from_logits(z)
    loss = -(advantage.double() * (log_p - log_p.detach()).exp()).mean() - 0.01 * entropy.mean()
    (expected,) = torch.autograd.grad(loss, wide)
    assert_close(dx, expected, torch.float32, scale=advantage.double().abs().max().expand_as(expected) / 8)
