# SPDX-License-Identifier: Apache-2.0
"""softkern.install under overrides, compilers and tracers; and fallbacks that do not recurse."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from cross_entropy_cases import problem
from install_checks import ops_run
from torch._dynamo.backends.common import aot_autograd
from torch.overrides import TorchFunctionMode

import softkern

X, Y, _ = problem((6, 10))

CALLS = {
    "F.softmax": lambda x: F.softmax(x, 1),
    "F.log_softmax": lambda x: F.log_softmax(x, 1),
    "F.cross_entropy": lambda x: F.cross_entropy(x, Y),
    "torch.softmax": lambda x: torch.softmax(x, 1),
    "torch.log_softmax": lambda x: torch.log_softmax(x, 1),
    "Tensor.softmax": lambda x: x.softmax(1),
    "Tensor.log_softmax": lambda x: x.log_softmax(1),
    "special.softmax": lambda x: torch.special.softmax(x, 1),
    "special.log_softmax": lambda x: torch.special.log_softmax(x, 1),
}
over_calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


class Logged(torch.Tensor):
    """Has an override for each function in HANDLED, which knows them as they were when it was made."""

    seen: list = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(func)
        if func in HANDLED:
            return f"handled {HANDLED[func]}"
        return super().__torch_function__(func, types, args, kwargs or {})


HANDLED = {
    F.softmax: "F.softmax",
    F.log_softmax: "F.log_softmax",
    F.cross_entropy: "F.cross_entropy",
    torch.softmax: "torch.softmax",
    torch.log_softmax: "torch.log_softmax",
    torch.Tensor.softmax: "Tensor.softmax",
    torch.Tensor.log_softmax: "Tensor.log_softmax",
    torch.special.softmax: "special.softmax",
    torch.special.log_softmax: "special.log_softmax",
}


@pytest.mark.parametrize("name", CALLS)
def test_overrides_keyed_on_torchs_functions_are_found(name):
    x = X.as_subclass(Logged)
    assert CALLS[name](x) == f"handled {name}"
    with softkern.installed():
        assert CALLS[name](x) == f"handled {name}"


@over_calls
def test_overrides_are_asked_as_often_and_for_the_same(call, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "HANDLED", {})
    monkeypatch.setattr(Logged, "seen", [])
    x = X.as_subclass(Logged)
    before, asked = call(x), list(Logged.seen)
    Logged.seen.clear()
    with softkern.installed():
        now = call(x)
        assert Logged.seen == asked
    assert type(now) is type(before) is Logged
    assert torch.equal(now.as_subclass(torch.Tensor), before.as_subclass(torch.Tensor))


def test_the_other_arguments_are_asked_too():
    with softkern.installed():
        assert F.cross_entropy(X, Y.as_subclass(Logged)) == "handled F.cross_entropy"
        assert F.cross_entropy(X, Y, torch.ones(10).as_subclass(Logged)) == "handled F.cross_entropy"


class Mode(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


@over_calls
def test_modes_see_torchs_function_and_calling_it_is_softkern(call):
    with softkern.installed():
        with Mode() as mode:
            _, ops = ops_run(call, X)
        assert sum("softkern" in op for op in ops) == 1
    assert mode.seen[0] in HANDLED


@over_calls
def test_a_default_device_does_not_switch_softkern_off(call):
    with softkern.installed(), torch.device("cpu"):
        _, ops = ops_run(call, X)
    assert sum("softkern" in op for op in ops) == 1


def test_a_mode_before_a_class_with_overrides():
    with softkern.installed(), Mode():
        for name, call in CALLS.items():
            assert call(X.as_subclass(Logged)) == f"handled {name}"


def graphs(call, *args):
    """The targets in the graph torch.compile makes of a call, and in the one below autograd."""
    upper, lower = [], []

    def record(targets):
        def compiler(graph, _):
            targets.extend(str(n.target) for n in graph.graph.nodes if n.op.startswith("call"))
            return graph

        return compiler

    below = aot_autograd(fw_compiler=record(lower))

    def backend(graph, example):
        record(upper)(graph, example)
        return below(graph, example)

    torch._dynamo.reset()
    torch.compile(call, fullgraph=True, backend=backend)(*args)
    return upper, lower


COMPILED = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning"
)  # what torch's compiler says about itself


@COMPILED
@over_calls
def test_compiled_graphs_hold_torchs_softmaxes_and_softkerns_loss(call):
    """Inductor fuses the softmaxes that it knows; the loss is faster as softkern's op."""
    loss = call is CALLS["F.cross_entropy"]
    with softkern.installed():
        ours = graphs(call, X)
    assert [any("softkern" in op for op in targets) for targets in ours] == [loss, loss]
    torchs = graphs(call, X)
    assert not any("softkern" in op for targets in torchs for op in targets)
    assert loss or ours == torchs


@COMPILED
def test_modules_and_training_in_one_graph():
    model = torch.nn.Sequential(torch.nn.Linear(10, 10), torch.nn.Softmax(1), torch.nn.LogSoftmax(1))
    loss = torch.nn.CrossEntropyLoss()

    def step(x):
        model.zero_grad()
        value = loss(model(x), Y)
        value.backward()
        return value.detach(), model[0].weight.grad.clone()

    with softkern.installed():
        upper, _ = graphs(lambda x: loss(model(x), Y), X)
        assert [op for op in upper if "softkern" in op] == ["softkern.cross_entropy"]
        torch._dynamo.reset()
        compiled = torch.compile(lambda x: loss(model(x), Y), fullgraph=True, backend="aot_eager")
        model.zero_grad()
        compiled(X).backward()
        gradient = model[0].weight.grad.clone()
    torch.testing.assert_close(gradient, step(X)[1])


@COMPILED
def test_compiled_code_follows_uninstall():
    """What F's functions were is guarded: one more compilation each way, none after that."""
    count = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    f = torch.compile(lambda x: F.cross_entropy(x, Y), backend=count)
    for _ in range(3):
        f(X)
        with softkern.installed():
            f(X)
        assert count.frame_count == 2
    targets = [{str(n.target) for n in g.graph.nodes} for g in count.graphs]
    assert ["softkern.cross_entropy" in t for t in targets] == [False, True]


class Model(torch.nn.Module):
    def forward(self, x):
        return F.cross_entropy(x, Y) + torch.softmax(x, 1).sum() + x.log_softmax(1).sum()


@COMPILED
@pytest.mark.parametrize("strict", (True, False))
def test_exported_programs_hold_torchs_ops(strict):
    """They may be loaded where softkern is not."""
    with softkern.installed():
        program = torch.export.export(Model(), (X,), strict=strict)
    targets = [str(node.target) for node in program.graph.nodes]
    assert not any("softkern" in target for target in targets), targets
    torch.testing.assert_close(program.module()(X), Model()(X))


@COMPILED
def test_traced_programs_hold_torchs_ops():
    with softkern.installed():
        traced = torch.jit.trace(Model(), (X,))
        graph = torch.fx.experimental.proxy_tensor.make_fx(Model())(X)
    kinds = [node.kind() for node in traced.inlined_graph.nodes()]
    assert not any("softkern" in kind for kind in kinds), kinds
    assert not any("softkern" in str(node.target) for node in graph.graph.nodes)
    torch.testing.assert_close(traced(X), Model()(X))


def scripted(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(x, y) + F.softmax(x, 1).sum() + torch.log_softmax(x, 1).sum() + x.softmax(1).sum()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torch_jit_script_compiles_torchs_functions():
    with softkern.installed():
        f = torch.jit.script(scripted)
        now = f(X, Y)
    assert "softkern::" not in str(f.inlined_graph)  # ops: its text holds paths, too
    torch.testing.assert_close(now, scripted(X, Y))


def test_fx_traces_torchs_functions():
    with softkern.installed():
        graph = torch.fx.symbolic_trace(scripted)
    assert {n.target for n in graph.graph.nodes} >= {F.cross_entropy, F.softmax, torch.log_softmax}
    torch.testing.assert_close(graph(X, Y), scripted(X, Y))
    with softkern.installed():  # called by name
        assert any("softkern.cross_entropy" in op for op in ops_run(graph, X, Y)[1])


class Foreign(torch.Tensor):
    """A class softkern leaves to torch: it dispatches by itself, and overrides no function."""

    __torch_function__ = torch._C._disabled_torch_function_impl


@over_calls
def test_fallbacks_do_not_come_back(call, monkeypatch):
    """softkern leaves these to F, whose functions call the methods, behind which softkern is."""
    x = X.as_subclass(Foreign)
    before = call(x)
    with softkern.installed():
        assert torch.equal(call(x).as_subclass(torch.Tensor), before.as_subclass(torch.Tensor))
        for f in (softkern.softmax, softkern.log_softmax):
            f(x, 1)
        softkern.cross_entropy(x, Y)


ALREADY_PATCHED = """
import torch
import torch.nn.functional as F

calls = []
def patch(name, original):
    def theirs(*args, **kwargs):
        calls.append(name)
        return original(*args, **kwargs)
    setattr(F, name, theirs)
for name in ("softmax", "log_softmax", "cross_entropy"):
    patch(name, getattr(F, name))

import softkern

class Foreign(torch.Tensor):
    __torch_function__ = torch._C._disabled_torch_function_impl

x, y = torch.zeros(2, 3), torch.tensor([0, 1])
def run(x):
    F.softmax(x, 1), F.log_softmax(x, 1), F.cross_entropy(x, y)
theirs = F.softmax
with softkern.installed():
    run(x)
    assert calls == [], calls
    run(x.as_subclass(Foreign))
    assert calls == ["softmax", "log_softmax", "cross_entropy"], calls
assert F.softmax is theirs
"""


def test_imported_after_another_library_patched_f():
    done = subprocess.run([sys.executable, "-c", ALREADY_PATCHED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@COMPILED
@pytest.mark.inductor
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs g++")
def test_inductor_recognises_attention():
    def attention(q, k, v):
        return F.softmax(q @ k.transpose(-1, -2) / 4.0, -1) @ v

    q, k, v = (torch.randn(1, 2, 8, 16) for _ in range(3))
    counters = torch._dynamo.utils.counters
    found = []
    for state in (contextlib.nullcontext, softkern.installed):
        torch._dynamo.reset()
        counters.clear()
        with state(), torch._inductor.utils.fresh_cache(), torch.no_grad():
            got = torch.compile(attention, fullgraph=True)(q, k, v)
        torch.testing.assert_close(got, attention(q, k, v))
        found.append(counters["inductor"]["fuse_attention"])
    assert found[0] == found[1] > 0
