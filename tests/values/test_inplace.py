# SPDX-License-Identifier: Apache-2.0
"""cross_entropy(inplace_backward=True): the same numbers, over the logits, and no silent misuse."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from cases import LAYOUTS, name
from compare import assert_same_bits
from cross_entropy_cases import OPTIONS, problem
from tolerances import DTYPES

import softkern

over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=name)
over_options = pytest.mark.parametrize("options", OPTIONS, ids=name)


def loss_and_gradient(x, target, upstream=None, inplace=False, **kwargs):
    """Loss, gradient, and the logits that the loss was taken of."""
    leaf = x.detach().requires_grad_()
    logits = Source.apply(leaf)
    loss = softkern.cross_entropy(logits, target, inplace_backward=inplace, **kwargs)
    gradient = torch.ones_like(loss) if upstream is None else upstream.expand_as(loss)
    loss.backward(gradient)
    return loss.detach(), leaf.grad, logits.detach()


class Source(torch.autograd.Function):
    """The identity; its result has the strides of its argument and memory of its own."""

    @staticmethod
    def forward(ctx, leaf):
        return torch.empty_strided(leaf.size(), leaf.stride(), dtype=leaf.dtype).copy_(leaf)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


@over_dtypes
@over_options
@pytest.mark.parametrize("shape", ((7, 10), (5, 65), (3, 7, 20), (3, 65, 20)), ids=name)
@pytest.mark.parametrize("reduction", ("none", "mean", "sum"))
def test_bits_are_those_of_a_gradient_of_its_own(shape, dtype, options, reduction):
    x, target, kwargs = problem(shape, dtype, **options)
    kwargs["reduction"] = reduction
    for upstream in (None, torch.tensor(0.5, dtype=dtype)):
        loss, gradient, _ = loss_and_gradient(x, target, upstream, **kwargs)
        own_loss, own_gradient, logits = loss_and_gradient(x, target, upstream, inplace=True, **kwargs)
        assert_same_bits(own_loss, loss, "loss")
        assert_same_bits(own_gradient, gradient, "gradient")
        assert own_gradient.data_ptr() == logits.data_ptr(), "the gradient has memory of its own"


@pytest.mark.parametrize("layout", [n for n in LAYOUTS if not n.startswith("expanded")])
@pytest.mark.parametrize("shape", ((5, 37), (3, 37, 5), (2, 9, 6, 7)), ids=name)
def test_any_layout(layout, shape):
    x, target, kwargs = problem(shape)
    x = LAYOUTS[layout](x)
    loss, gradient, _ = loss_and_gradient(x, target, **kwargs)
    own_loss, own_gradient, _ = loss_and_gradient(x, target, inplace=True, **kwargs)
    assert_same_bits(own_loss, loss, layout)
    assert_same_bits(own_gradient.contiguous(), gradient.contiguous(), layout)


def a_loss(through=torch.clone, classes=5, **kwargs):
    leaf = torch.randn(4, classes, requires_grad=True)
    logits = through(leaf)
    return leaf, logits, softkern.cross_entropy(logits, torch.arange(4), inplace_backward=True, **kwargs)


def test_no_memory_beside_the_logits():
    leaf = torch.randn(64, 4096, requires_grad=True)
    logits = leaf.clone()
    target = torch.randint(0, 4096, (64,))
    with torch.profiler.profile(profile_memory=True) as profile:
        softkern.cross_entropy(logits, target, inplace_backward=True).backward()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < logits.nbytes / 16, f"{largest} bytes"


@pytest.mark.parametrize(
    ("through", "message"),
    [
        (lambda leaf: leaf, "a leaf Variable that requires grad"),
        (lambda leaf: leaf.view(4, 5), "a view of a leaf Variable that requires grad"),
        (lambda leaf: leaf.clone()[:1].expand(4, 5), "more than one element of the written-to tensor"),
    ],
    ids=("leaf", "view", "expanded"),
)
def test_memory_that_must_not_be_overwritten_is_refused(through, message):
    with pytest.raises(RuntimeError, match=message):
        a_loss(through)


def test_a_bad_target_raises_before_anything_is_written():
    logits = torch.randn(4, 5, requires_grad=True).clone()
    before = logits.detach().clone()
    with pytest.raises(IndexError, match="Target 9 is out of bounds"):
        softkern.cross_entropy(logits, torch.tensor([0, 1, 2, 9]), inplace_backward=True)
    assert_same_bits(logits.detach(), before)
    assert logits._version == 0


MODIFIED = "modified by an inplace operation"


def test_logits_that_an_operation_needs_are_missed_in_backward():
    _, _, loss = a_loss(torch.exp)  # exp's gradient is its result
    with pytest.raises(RuntimeError, match=MODIFIED):
        loss.backward()


def test_a_gradient_that_was_written_over_is_no_gradient():
    _, logits, loss = a_loss()
    with torch.no_grad():
        logits.add_(1)
    with pytest.raises(RuntimeError, match=MODIFIED):
        loss.backward()


def test_double_backward_as_without():
    """The gradient in the logits' memory is all that second derivatives are made of, and stays for them."""
    results = []
    for inplace in (False, True):
        torch.manual_seed(3)
        leaf = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
        loss = softkern.cross_entropy(leaf * 2, torch.arange(4), inplace_backward=inplace)
        (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
        (again,) = torch.autograd.grad(loss, leaf, torch.tensor(3.0, dtype=torch.float64), retain_graph=True)
        results.append((first, again, *torch.autograd.grad(first.square().sum(), leaf)))
    for with_own, over_logits in zip(*results, strict=True):
        assert_same_bits(over_logits.detach(), with_own.detach())


def test_a_retained_graph_gives_the_same_gradient_again():
    leaf, _, loss = a_loss()
    twice = torch.tensor(2.0)
    first = torch.autograd.grad(loss, leaf, twice, retain_graph=True)[0].clone()
    second = torch.autograd.grad(loss, leaf, twice)[0]
    assert_same_bits(second, first)


def test_logits_without_a_gradient_stay_what_they_are():
    logits = torch.randn(4, 5)
    before = logits.clone()
    softkern.cross_entropy(logits, torch.arange(4), inplace_backward=True)
    with torch.no_grad():
        softkern.cross_entropy(logits.requires_grad_(), torch.arange(4), inplace_backward=True)
    assert_same_bits(logits.detach(), before)


def test_under_transforms_it_is_the_ordinary_loss():
    x, target = torch.randn(4, 5), torch.arange(4)

    def loss(x):
        return softkern.cross_entropy(x, target, inplace_backward=True)

    expected = loss_and_gradient(x, target)[1]
    torch.testing.assert_close(torch.func.grad(loss)(x), expected)
    compiled = torch.compile(lambda x: loss(x * 1), fullgraph=True, backend="aot_eager")
    leaf = x.clone().requires_grad_()
    compiled(leaf).backward()
    assert_same_bits(leaf.grad, expected)


def test_under_autocast_the_16_bit_logits_stay():
    leaf = torch.randn(4, 5, requires_grad=True)
    with torch.autocast("cpu"):
        logits = leaf.to(torch.bfloat16)
        before = logits.detach().clone()
        loss = softkern.cross_entropy(logits, torch.arange(4), inplace_backward=True)
        assert loss.dtype == torch.float32
    loss.backward()
    assert_same_bits(logits.detach(), before)


def test_the_module_hands_it_on():
    module = softkern.CrossEntropyLoss(reduction="sum", inplace_backward=True)
    for same in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        leaf = torch.randn(4, 5, requires_grad=True)
        logits = leaf.clone()
        same(logits, torch.arange(4)).backward()
        assert leaf.grad.data_ptr() == logits.data_ptr()


def _two_results(x, target):
    logits = x * 1
    return softkern.cross_entropy(logits, target, inplace_backward=True), logits


@pytest.mark.parametrize("remove", ("mutations", "mutations_and_views"))
@pytest.mark.parametrize("mode", (torch.enable_grad, torch.no_grad, torch.inference_mode))
@pytest.mark.parametrize("index", (torch.int64, torch.int32), ids=name)
def test_under_functionalize_the_logits_stay(index, mode, remove):
    x, target = torch.randn(4, 5), torch.arange(4).to(index)
    expected = softkern.cross_entropy(x, target)
    functional = torch.func.functionalize(_two_results, remove=remove)
    with mode():
        for wanted in (False, True):
            loss, logits = functional(x.clone().requires_grad_(wanted), target)
            assert torch.equal(logits, x)
            assert torch.equal(loss, expected)
    # Leaves too: nothing is written to.
    alone = torch.func.functionalize(lambda x: softkern.cross_entropy(x, target, inplace_backward=True))
    leaf = x.clone().requires_grad_()
    alone(leaf).backward()
    assert torch.equal(leaf.detach(), x)
    assert_same_bits(leaf.grad, loss_and_gradient(x, target)[1])


def test_functionalize_among_other_transforms():
    x, target = torch.randn(3, 4, 5), torch.arange(4)

    def loss(x):
        return softkern.cross_entropy(x * 1, target, inplace_backward=True)

    functionalize, grad, vmap = torch.func.functionalize, torch.func.grad, torch.func.vmap
    expected = torch.stack([loss_and_gradient(row, target)[1] for row in x])
    for f in (
        vmap(functionalize(grad(loss))),
        vmap(grad(functionalize(loss))),
        functionalize(vmap(grad(loss))),
    ):
        torch.testing.assert_close(f(x), expected)


def test_the_op_that_may_write_does_not_under_functionalize():
    x, target = torch.randn(4, 5), torch.arange(4)
    before = x.clone()
    loss = torch.func.functionalize(torch.ops.softkern.cross_entropy_)(x, target)
    assert torch.equal(x, before) and torch.equal(loss, softkern.cross_entropy(x, target))
