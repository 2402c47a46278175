# SPDX-License-Identifier: Apache-2.0
"""Events between forward and backward, and around backward, that must not make the gradient wrong."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from cases import logits
from compare import assert_same_bits
from cross_entropy_cases import OPTIONS, REDUCTIONS, problem

import softkern

over_reductions = pytest.mark.parametrize("reduction", REDUCTIONS)
KINDS = {"indices": {}, "all-options": OPTIONS[7], "probs": OPTIONS[-1]}
over_kinds = pytest.mark.parametrize("kind", KINDS)
SHAPE = (6, 10)


def loss_of(x, kind, reduction, namespace=softkern):
    _, target, kwargs = problem(SHAPE, x.dtype, **KINDS[kind])
    return namespace.cross_entropy(x, target, reduction=reduction, **kwargs)


def leaf():
    return logits(*SHAPE).requires_grad_()


def expected(kind, reduction, grad=None):
    """torch's gradient, for the upstream gradient 1 or `grad`."""
    x = leaf()
    loss = loss_of(x, kind, reduction, F)
    return torch.autograd.grad(loss, x, torch.ones_like(loss) if grad is None else grad)[0]


def close(actual, wanted):
    torch.testing.assert_close(actual, wanted, rtol=2e-5, atol=2e-7)


@over_kinds
@over_reductions
def test_backward_twice(kind, reduction):
    """The second result is the first again, also after its owner has overwritten the first."""
    x = leaf()
    loss = loss_of(x, kind, reduction)
    one = torch.ones_like(loss)
    (first,) = torch.autograd.grad(loss, x, one, retain_graph=True)
    copy = first.clone()
    (second,) = torch.autograd.grad(loss, x, one, retain_graph=True)
    assert_same_bits(second, copy)
    assert_same_bits(first, copy)
    first.fill_(123)
    second.zero_()
    (third,) = torch.autograd.grad(loss, x, one)
    assert_same_bits(third, copy)
    close(third, expected(kind, reduction))


@over_kinds
@over_reductions
def test_backward_twice_with_different_upstream_gradients(kind, reduction):
    x = leaf()
    loss = loss_of(x, kind, reduction)
    for factor in (1.0, 3.0, 1.0, -0.5):
        grad = torch.full_like(loss, factor)
        (dx,) = torch.autograd.grad(loss, x, grad, retain_graph=True)
        close(dx, expected(kind, reduction, grad))


@over_reductions
def test_backward_twice_without_asking_for_it_raises_as_in_torch(reduction):
    texts = []
    for namespace in (F, softkern):
        loss = loss_of(leaf(), "indices", reduction, namespace).sum()
        loss.backward()
        with pytest.raises(RuntimeError, match="backward through the graph a second time") as info:
            loss.backward()
        texts.append(str(info.value))
    assert texts[0] == texts[1]


@over_kinds
@over_reductions
def test_gradients_accumulate(kind, reduction):
    """x.grad keeps the tensor backward returned: a later backward must not write into it."""
    x = leaf()
    loss_of(x, kind, reduction).sum().backward()
    kept, copy = x.grad, x.grad.clone()
    x.grad = None
    loss_of(x, kind, reduction).sum().mul(2).backward()
    assert_same_bits(kept, copy)
    close(x.grad, 2 * copy)
    loss_of(x, kind, reduction).sum().backward()
    close(x.grad, 3 * copy)


@over_kinds
@over_reductions
def test_a_loss_used_twice_gets_the_sum_of_both_uses(kind, reduction):
    x = leaf()
    loss = loss_of(x, kind, reduction)
    (dx,) = torch.autograd.grad((loss * 2).sum() + (loss * 5).sum(), x)
    close(dx, 7 * expected(kind, reduction))


@over_kinds
@over_reductions
def test_the_upstream_gradient_is_left_alone(kind, reduction):
    x = leaf()
    loss = loss_of(x, kind, reduction)
    grad = torch.full_like(loss, 2.5)
    torch.autograd.grad(loss, x, grad)
    assert torch.equal(grad, torch.full_like(loss, 2.5))


@over_kinds
@over_reductions
def test_logits_target_and_weight_are_left_alone(kind, reduction):
    x, target, kwargs = problem(SHAPE, **KINDS[kind])
    x.requires_grad_()
    tensors = [x, target, *(v for v in kwargs.values() if isinstance(v, torch.Tensor))]
    before = [(t.detach().clone(), t._version) for t in tensors]
    softkern.cross_entropy(x, target, reduction=reduction, **kwargs).sum().backward()
    for t, (values, version) in zip(tensors, before, strict=True):
        assert torch.equal(t, values) and t._version == version


@over_kinds
@over_reductions
def test_the_gradient_shares_no_memory(kind, reduction):
    x = leaf()
    loss = loss_of(x, kind, reduction)
    one = torch.ones_like(loss)
    grads = [torch.autograd.grad(loss, x, one, retain_graph=True)[0] for _ in range(2)]
    grads.append(torch.autograd.grad(loss_of(x, kind, reduction), x, one)[0])
    pointers = {t.untyped_storage().data_ptr() for t in (x.detach(), one, *grads)}
    assert len(pointers) == 5


@over_kinds
@over_reductions
def test_logits_may_change_between_forward_and_backward(kind, reduction):
    """torch saves the log-probabilities and does not notice; nothing may be read here either."""
    x = leaf()
    activations = x * 1.0
    loss = loss_of(activations, kind, reduction)
    activations.detach().add_(5).mul_(-3)  # past autograd's eyes
    (dx,) = torch.autograd.grad(loss, x, torch.ones_like(loss), retain_graph=True)
    close(dx, expected(kind, reduction))
    with torch.no_grad():
        activations.add_(1)  # and with the version counted
    (dx,) = torch.autograd.grad(loss, x, torch.ones_like(loss))
    close(dx, expected(kind, reduction))


@over_kinds
@over_reductions
def test_logits_that_are_no_leaf(kind, reduction):
    x, results = leaf(), []
    for namespace in (F, softkern):
        hidden = torch.nn.functional.relu(x @ torch.eye(10) * 0.5) + 0.1
        loss = loss_of(hidden, kind, reduction, namespace)
        results.append(torch.autograd.grad((loss * loss).sum(), x)[0])
    close(results[1], results[0])


@pytest.mark.parametrize("op", ("softmax", "log_softmax"))
def test_softmax_backward_twice(op):
    x = leaf()
    y = getattr(softkern, op)(x, 1)
    grad = logits(*SHAPE, seed=4)
    kept = grad.clone()
    (first,) = torch.autograd.grad(y, x, grad, retain_graph=True)
    copy = first.clone()
    first.zero_()
    (second,) = torch.autograd.grad(y, x, grad)
    assert_same_bits(second, copy)
    assert_same_bits(grad, kept)
    close(copy, torch.autograd.grad(getattr(F, op)(x, 1), x, grad)[0])


@over_kinds
def test_two_threads_at_once(kind):
    """The result of one must not be the other's: no state is kept between calls."""
    want, failed = expected(kind, "mean"), []

    def work(factor):
        for _ in range(50):
            x = leaf()
            (dx,) = torch.autograd.grad(loss_of(x, kind, "mean") * factor, x)
            try:
                close(dx, want * factor)
            except AssertionError as error:
                failed.append(error)

    workers = [threading.Thread(target=work, args=(f,)) for f in (1.0, 3.0)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not failed, failed[0]
