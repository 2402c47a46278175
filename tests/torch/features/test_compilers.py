# SPDX-License-Identifier: Apache-2.0
"""torch.compile and its backends: torch's values, and softkern's ops in the compiled graphs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cross_entropy_cases import class_weights
from feature_cases import TARGET, both, close, data, f64, leaf, over_ops, scalar
from functorch.compile import make_boxed_func
from torch._dynamo import compiled_autograd
from torch._dynamo.backends.common import aot_autograd
from torch.func import functional_call, grad, vmap

import softkern

# What torch's own compiler says about itself while it compiles.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # its own look
]

INDUCTOR = pytest.param("inductor", marks=pytest.mark.inductor)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def value_and_gradient(f, x):
    x = x.detach().clone().requires_grad_()
    y = f(x)
    return y.detach(), torch.autograd.grad(y.square().sum(), x)[0]


def warm(f, x, watch):
    """Of the second call, which compiles nothing any more."""
    value_and_gradient(f, x)
    with watch:
        return value_and_gradient(f, x)


def compiled(f, **kwargs):
    return torch.compile(f, fullgraph=True, **kwargs)


@pytest.mark.feature("torch.compile(fullgraph), static shapes")
@pytest.mark.parametrize("backend", ("eager", "aot_eager", INDUCTOR))
@over_ops
def test_compile(op, backend, watch):
    ours, theirs = both(op)
    got = warm(compiled(lambda x: ours(x * 2).sin(), backend=backend, dynamic=False), data(), watch)
    close(got, value_and_gradient(lambda x: theirs(x * 2).sin(), data()))


def call(op, namespace, x, target):
    f = getattr(namespace, op)
    return f(x, target, label_smoothing=0.1) if op == "cross_entropy" else f(x, 1)


@pytest.mark.feature("torch.compile(fullgraph), dynamic shapes")
@pytest.mark.parametrize("backend", ("aot_eager", INDUCTOR))
@over_ops
def test_compile_with_dynamic_shapes(op, backend, watch):
    """One graph for all sizes."""
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    f = compiled(lambda x, y: call(op, softkern, x * 2, y), backend=counter, dynamic=True)
    for n, c in ((6, 10), (7, 12), (12, 5)):
        x, y = torch.randn(n, c, dtype=f64), torch.arange(n) % c
        got = warm(lambda x, y=y: f(x, y), x, watch)
        close(got, value_and_gradient(lambda x, y=y: call(op, torch.nn.functional, x * 2, y), x))
    assert counter.frame_count == 1, "recompiled for another size"


@pytest.mark.feature("softkern's ops in compiled graphs, forward and backward")
@over_ops
def test_the_graphs_hold_softkerns_ops(op, watch):
    code = []

    def compiler(graph, _):
        code.append(graph.code)
        return make_boxed_func(graph.forward)

    ours, theirs = both(op)
    backend = aot_autograd(fw_compiler=compiler, bw_compiler=compiler)
    got = warm(compiled(ours, backend=backend), data(), watch)
    forward, backward = code
    assert f"softkern.{op}" in forward and f"softkern.{op}_backward" in backward
    assert "log_softmax.int" not in forward and "aten._softmax" not in forward
    close(got, value_and_gradient(theirs, data()))


@pytest.mark.feature("torch.compile of torch.func.grad and vmap")
@over_ops
def test_compiled_transforms(op, watch):
    def transformed(f):
        return lambda x: vmap(grad(scalar(f)))(torch.stack([x, x * 2]))

    ours, theirs = both(op)
    f = compiled(transformed(ours), backend="aot_eager")
    f(data())
    with watch:
        got = f(data())
    close(got, transformed(theirs)(data()))


@pytest.mark.feature("torch.compile of a module's functional_call")
@over_ops
def test_compiled_functional_call(op, watch):
    """Parameters as arguments, gradients in them."""
    layer = torch.nn.Linear(10, 10, dtype=f64)

    def gradients(f, through):
        net = torch.nn.Sequential(layer, Head(f))
        parameters = {k: p.detach().clone().requires_grad_() for k, p in net.named_parameters()}
        loss = through(lambda p, x: functional_call(net, p, (x,)).square().sum())
        torch.autograd.grad(loss(parameters, data()), parameters.values())
        with watch if f is ours else torch.enable_grad():
            return torch.autograd.grad(loss(parameters, data()), parameters.values())

    ours, theirs = both(op)
    got = gradients(ours, lambda f: compiled(f, backend="aot_eager"))
    close(got, gradients(theirs, lambda f: f))


class Head(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.feature("torch.compile under autocast")
@over_ops
def test_compiled_under_autocast(op, watch):
    x = data(torch.bfloat16)
    f = compiled(lambda x: call(op, softkern, x, TARGET.abs() % 10), backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = warm(f, x, watch)
        want = value_and_gradient(lambda x: call(op, torch.nn.functional, x, TARGET.abs() % 10), x)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1.6e-2, atol=1e-2 * float(b.abs().max()))


@pytest.mark.feature("compiled autograd")
@pytest.mark.parametrize("backend", ("eager", "aot_eager", INDUCTOR))
@over_ops
def test_compiled_autograd(op, backend, watch):
    """The backward of an eager forward as one graph, twice, with another upstream gradient."""
    graphs = []

    def compiler(graph):
        graphs.append(graph)
        return torch.compile(graph, backend=backend, fullgraph=True)

    def gradients(f):
        found = []
        for factor in (1.0, 3.0):
            x = leaf()
            loss = (f(x * 2) ** 2).sum() * factor
            loss.backward()
            found.append(x.grad)
        return found

    ours, theirs = both(op)
    with compiled_autograd._enable(compiler):
        gradients(ours)
        with watch:
            got = gradients(ours)
    assert len(graphs) == 1, "captured anew for the same graph"
    assert f"softkern.{op}_backward" in graphs[0].code
    close(got, gradients(theirs))


MODIFICATIONS = {
    "nothing": lambda x: None,
    "past autograd": lambda x: x.detach().add_(5).mul_(-3),
    "without autograd": lambda x: torch.no_grad()(x.add_)(3),
    "by autograd": lambda x: x.mul_(2),
}


@pytest.mark.feature("compiled autograd", "cross_entropy")
@pytest.mark.parametrize("backend", ("eager", "aot_eager", INDUCTOR))
@pytest.mark.parametrize("modification", MODIFICATIONS)
def test_compiled_autograd_of_logits_that_were_modified(modification, backend, watch):
    compare_compiled_autograd(backend, modification, False, watch)


@pytest.mark.feature("compiled autograd", "cross_entropy")
@pytest.mark.parametrize("backend", ("eager", "aot_eager", INDUCTOR))
def test_compiled_autograd_of_logits_that_became_the_gradient(backend, watch):
    compare_compiled_autograd(backend, "nothing", True, watch)
    for modification in list(MODIFICATIONS)[1:]:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            compare_compiled_autograd(backend, modification, True, watch)


def compare_compiled_autograd(backend, modification, inplace, watch):
    """With torch's gradients, which no modification changes."""

    def gradient(f, reduction, factor, **kwargs):
        x = leaf()
        logits = x * 1
        weight = class_weights(10, f64)
        loss = f(logits, TARGET, weight, reduction=reduction, label_smoothing=0.1, **kwargs)
        MODIFICATIONS[modification](logits)
        weight.zero_()  # what the forward has used, no backward reads
        (loss.sum() * factor).backward()
        return x.grad

    for reduction in ("none", "mean", "sum"):
        for factor in (1.0, 3.0):
            torch._dynamo.reset()
            compiler = compiled_autograd._enable(lambda g: torch.compile(g, backend=backend, fullgraph=True))
            with compiler, watch:
                got = gradient(softkern.cross_entropy, reduction, factor, inplace_backward=inplace)
            expected = leaf()
            args = TARGET, class_weights(10, f64)
            loss = F.cross_entropy(expected * 1, *args, reduction=reduction, label_smoothing=0.1)
            (loss.sum() * factor).backward()
            close(got, expected.grad)


def test_compiled_autograd_through_its_configuration():
    """A training step that is compiled with its backward, in place and not."""

    def step(x, target, inplace):
        logits = x * 2
        loss = softkern.cross_entropy(logits, target, inplace_backward=inplace)
        loss.backward()
        return loss.detach()

    expected = leaf()
    want = F.cross_entropy(expected * 2, TARGET)
    want.backward()
    with torch._dynamo.config.patch(compiled_autograd=True):
        for inplace in (False, True):
            x = leaf()
            got = torch.compile(step, backend="aot_eager")(x, TARGET, inplace)
            close((got, x.grad), (want.detach(), expected.grad))
