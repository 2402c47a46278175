# SPDX-License-Identifier: Apache-2.0
"""Derivatives of cross_entropy besides the usual one: values, which kernels compute them, and memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import logits, name
from compare import assert_same_bits
from cross_entropy_cases import OPTIONS, class_weights, indices, probabilities, problem
from peak import peak_of

import softkern

f64 = torch.float64
over_options = pytest.mark.parametrize("options", OPTIONS, ids=name)
over_reductions = pytest.mark.parametrize("reduction", ("none", "mean", "sum"))
over_namespaces = pytest.mark.parametrize("module", (softkern, F), ids=("softkern", "torch"))


def first_derivative(x, target, upstream=1.0, create_graph=False, **kwargs):
    loss = softkern.cross_entropy(x, target, **kwargs)
    g = torch.full_like(loss, upstream)
    return torch.autograd.grad(loss, x, g, create_graph=create_graph)[0]


@over_options
@over_reductions
@pytest.mark.parametrize("upstream", (1.0, 0.37))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16, f64), ids=name)
@pytest.mark.parametrize("shape", ((5,), (6, 10), (3, 40, 4)), ids=name)
def test_a_graph_changes_no_bit_of_the_gradient(shape, dtype, upstream, reduction, options):
    x, target, kwargs = problem(shape, dtype, **options)
    kwargs["reduction"] = reduction
    x.requires_grad_()
    without = first_derivative(x, target, upstream, **kwargs)
    with_graph = first_derivative(x, target, upstream, create_graph=True, **kwargs)
    assert with_graph.requires_grad
    assert_same_bits(with_graph.detach(), without)


def test_the_gradient_of_a_graph_is_memory_of_its_own():
    x, target = logits(4, 5).requires_grad_(), indices((4, 5))
    loss = softkern.cross_entropy(x, target)
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    before = first.detach().clone()
    second = torch.autograd.grad(first.square().sum(), x, retain_graph=True)[0]
    with torch.no_grad():
        first.zero_()
    assert_same_bits(torch.autograd.grad(loss, x, retain_graph=True)[0], before)
    assert second.abs().sum() > 0


@over_reductions
@over_namespaces
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=name)
def test_a_loss_holds_one_tensor_until_its_backward(dtype, module, reduction):
    """Several heads, or chunks of a sequence, wait for one backward: each holds its gradient alone."""
    target = indices((64, 1000))
    leaf = logits(64, 1000, dtype=dtype).requires_grad_()

    def losses():
        # Logits that nobody else holds.
        return [module.cross_entropy(leaf * (i + 1), target, reduction=reduction).sum() for i in range(3)]

    size = leaf.nbytes
    _, held = peak_of(losses)
    assert held < 3.1 * size + 3 * 64 * 64
    total = torch.stack(losses()).sum()
    total.backward()
    assert leaf.grad.isfinite().all()


def test_a_graph_of_the_gradient_holds_two():
    x, target = logits(256, 1000).requires_grad_(), indices((256, 1000))

    def graph():
        loss = softkern.cross_entropy(x, target)
        return loss, *torch.autograd.grad(loss, x, create_graph=True)

    most, _ = peak_of(graph)
    assert 2 * x.nbytes <= most < 2.1 * x.nbytes


def test_logits_modified_after_the_loss_matter_to_no_derivative():
    results = []
    for modify in (False, True):
        leaf = logits(4, 5, dtype=f64).requires_grad_()
        x = leaf * 1
        loss = softkern.cross_entropy(x, indices((4, 5)))
        if modify:
            with torch.no_grad():
                x.mul_(3)
        (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
        results.append((first.detach(), *torch.autograd.grad(first.square().sum(), leaf)))
    for kept, modified in zip(*results, strict=True):
        assert_same_bits(modified, kept)


@over_reductions
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=name)
def test_second_derivatives_in_low_precision(dtype, reduction):
    x, target, kwargs = problem((6, 10), dtype, weight=True, smoothing=0.1, ignore=2)
    direction = logits(6, 10, seed=4)
    got = []
    for module, t in ((softkern, dtype), (F, f64)):
        leaf = x.detach().to(t).requires_grad_()
        weight = kwargs["weight"].to(t)
        options = {**kwargs, "weight": weight, "reduction": reduction}
        loss = module.cross_entropy(leaf, target, **options).sum()
        (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
        got.append(torch.autograd.grad((first * direction.to(t)).sum(), leaf)[0].to(f64))
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got[0], got[1], rtol=8 * eps, atol=8 * eps * got[1].abs().max().item())


def test_ignored_rows_of_nan_have_second_derivatives_of_zero():
    x = logits(4, 5, dtype=f64)
    x[1] = float("nan")
    x.requires_grad_()
    target = torch.tensor([0, -100, 2, 3])
    (first,) = torch.autograd.grad(softkern.cross_entropy(x, target), x, create_graph=True)
    (second,) = torch.autograd.grad(first[[0, 2, 3]].square().sum(), x)
    assert not first[1].any() and not second[1].any() and second.isfinite().all()


KINDS = {
    "probabilities": ("target",),
    "weights": ("weight",),
    "both": ("target", "weight"),
    "all": ("x", "target", "weight"),
    "logits and probabilities": ("x", "target"),
}


def tensors(wanted, dtype, shape=(3, 7, 5)):
    t = {
        "x": logits(*shape, dtype=dtype),
        "target": probabilities(shape, dtype),
        "weight": class_weights(shape[1], dtype),
    }
    return t, [t[k].requires_grad_() for k in wanted]


@over_reductions
@pytest.mark.parametrize("smoothing", (0.0, 0.1))
@pytest.mark.parametrize("wanted", KINDS.values(), ids=KINDS)
def test_a_learned_teacher_is_computed_by_a_named_backend(wanted, smoothing, reduction, isa):
    results = []
    for module, dtype in ((softkern, torch.float32), (F, f64)):
        t, leaves = tensors(wanted, torch.float32)
        t = {k: v.detach().to(dtype) for k, v in t.items()}
        leaves = [t[k].requires_grad_() for k in wanted]
        loss = module.cross_entropy(
            **dict(zip(("input", "target", "weight"), t.values(), strict=True)),
            reduction=reduction,
            label_smoothing=smoothing,
        )
        upstream = logits(*loss.shape, seed=8).to(dtype)
        results.append([g.to(f64) for g in torch.autograd.grad(loss, leaves, upstream)])
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact, rtol=2e-6, atol=2e-6 * exact.abs().max().item())


@over_reductions
@pytest.mark.parametrize("smoothing", (0.0, 0.1))
@pytest.mark.parametrize("wanted", KINDS.values(), ids=KINDS)
def test_derivatives_of_a_learned_teacher_to_second_order(wanted, smoothing, reduction):
    t, _ = tensors((), f64, (2, 3, 2))

    def loss(*values):
        given = {**t, **dict(zip(wanted, values, strict=True))}
        return softkern.cross_entropy(
            given["x"], given["target"], given["weight"], reduction=reduction, label_smoothing=smoothing
        )

    leaves = tuple(t[k].detach().clone().requires_grad_() for k in wanted)
    assert torch.autograd.gradcheck(loss, leaves)
    assert torch.autograd.gradgradcheck(loss, leaves)


def test_a_teachers_gradient_survives_modified_logits():
    x, t = logits(4, 5), probabilities((4, 5), torch.float32).requires_grad_()
    expected = torch.autograd.grad(F.cross_entropy(x.clone(), t), t)[0]
    loss = softkern.cross_entropy(x, t)
    x.zero_()
    torch.testing.assert_close(torch.autograd.grad(loss, t)[0], expected)


def test_a_teachers_gradient_beside_the_gradient_over_the_logits():
    leaf, t = logits(4, 5).requires_grad_(), probabilities((4, 5), torch.float32).requires_grad_()
    expected = torch.autograd.grad(softkern.cross_entropy(leaf * 1, t), (leaf, t))
    x = leaf * 1
    got = torch.autograd.grad(softkern.cross_entropy(x, t, inplace_backward=True), (x, t))
    assert got[0].data_ptr() == x.data_ptr()
    for a, b in zip(got, expected, strict=True):
        assert_same_bits(a, b)


def test_weights_of_class_indices_have_no_gradient_in_torch_either():
    x, y = logits(4, 5), indices((4, 5))
    messages = []
    for module in (softkern, F):
        with pytest.raises(RuntimeError) as error:
            module.cross_entropy(x, y, class_weights(5).requires_grad_()).backward()
        messages.append(str(error.value))
    assert messages[0] == messages[1]
