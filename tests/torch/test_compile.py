# SPDX-License-Identifier: Apache-2.0
"""torch.compile and torch.export: one graph, the same numbers."""

from __future__ import annotations

import pytest
import torch
from cases import logits, name
from cross_entropy_cases import OPTIONS, REDUCTIONS, problem

import softkern

# What torch's own compiler says about itself while it compiles.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.*"),
]

over_softmaxes = pytest.mark.parametrize("op", ("softmax", "log_softmax"))


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def loss_and_gradient(f, x, *args):
    x = x.detach().clone().requires_grad_()
    loss = f(x, *args)
    return loss.detach(), torch.autograd.grad((loss * loss).sum(), x)[0]


def compiled(f, **kwargs):
    return torch.compile(f, fullgraph=True, **{"backend": "aot_eager", **kwargs})


@pytest.mark.feature("torch.compile(fullgraph), static shapes", "cross_entropy")
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", (OPTIONS[0], OPTIONS[7], OPTIONS[-1]), ids=name)
def test_cross_entropy_in_one_graph(options, reduction):
    x, target, kwargs = problem((6, 10), **options)
    weight = kwargs.pop("weight", None)

    def f(x, target, weight):
        return softkern.cross_entropy(x * 2, target, weight, reduction=reduction, **kwargs)

    got = loss_and_gradient(compiled(f), x, target, weight)
    torch.testing.assert_close(got, loss_and_gradient(f, x, target, weight))


@pytest.mark.feature("torch.compile(fullgraph), static shapes")
@over_softmaxes
@pytest.mark.parametrize("dim", (0, -1))
def test_softmax_in_one_graph(op, dim):
    def f(x):
        return getattr(softkern, op)(x + 1, dim)

    x = logits(3, 4, 5)
    torch.testing.assert_close(loss_and_gradient(compiled(f), x), loss_and_gradient(f, x))


@over_softmaxes
@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
def test_an_implicit_dimension_in_one_graph(op):
    def f(x):
        return getattr(softkern, op)(x + 1)

    x = logits(4, 5)
    torch.testing.assert_close(loss_and_gradient(compiled(f), x), loss_and_gradient(f, x))


@pytest.mark.feature("torch.compile(fullgraph), dynamic shapes", "softmax", "cross_entropy")
def test_one_dynamic_graph_for_every_size():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def f(x, target):
        return softkern.cross_entropy(x, target, label_smoothing=0.1) + softkern.softmax(x, 1).max()

    g = compiled(f, backend=counter, dynamic=True)
    for n, c in ((6, 10), (7, 33), (12, 5)):
        x, target, _ = problem((n, c))
        torch.testing.assert_close(loss_and_gradient(g, x, target), loss_and_gradient(f, x, target))
    assert counter.frame_count == 1, "recompiled for another size"


@pytest.mark.parametrize("module", ("CrossEntropyLoss", "Softmax", "LogSoftmax"))
def test_modules_in_one_graph(module):
    x, target, _ = problem((6, 10))
    loss = module == "CrossEntropyLoss"
    m = softkern.CrossEntropyLoss(torch.ones(10)) if loss else getattr(softkern, module)(1)
    args = (target,) if loss else ()
    torch.testing.assert_close(loss_and_gradient(compiled(m), x, *args), loss_and_gradient(m, x, *args))


def test_the_graph_holds_softkerns_own_ops():
    """Not decomposed into torch's: what is compiled is what was tested."""
    seen = []

    def backend(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    x, target, _ = problem((6, 10))

    def f(x, target):
        return softkern.cross_entropy(softkern.log_softmax(softkern.softmax(x, 1), 1), target)

    compiled(f, backend=backend)(x, target)
    text = " ".join(seen)
    for op in ("softkern.softmax", "softkern.log_softmax", "softkern.cross_entropy"):
        assert op in text, text


def test_export_keeps_the_op_and_the_answer():
    class Model(torch.nn.Module):
        def forward(self, x, target):
            return softkern.cross_entropy(x, target, ignore_index=2)

    x, target, _ = problem((6, 10), ignore=2)
    program = torch.export.export(Model(), (x, target))
    assert "softkern.cross_entropy" in str(program.graph)
    torch.testing.assert_close(program.module()(x, target), Model()(x, target))


@pytest.mark.inductor
def test_inductor():
    x, target, kwargs = problem((6, 10), **OPTIONS[5])

    def f(x):
        return softkern.cross_entropy(x.relu(), target, **kwargs) + softkern.softmax(x, 1).sum()

    got = loss_and_gradient(compiled(f, backend="inductor"), x)
    torch.testing.assert_close(got, loss_and_gradient(f, x))
