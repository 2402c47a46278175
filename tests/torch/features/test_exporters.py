# SPDX-License-Identifier: Apache-2.0
"""Graphs that leave the process or are looked at: export, AOTInductor, make_fx, fx and jit traces."""

from __future__ import annotations

import io

import pytest
import torch
import torch.nn.functional as F
from feature_cases import both, close, data, f64, over_ops, scalar
from torch.fx.experimental.proxy_tensor import make_fx

import softkern

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning"),  # of torch.export.save
]


class Model(torch.nn.Module):
    def __init__(self, op, namespace=softkern):
        super().__init__()
        self.op, self.function = op, getattr(namespace, op)

    def forward(self, x, target):
        if self.op == "cross_entropy":
            return self.function(x * 2, target, label_smoothing=0.1)
        return self.function(x * 2, 1)


def arguments(n=6, c=10):
    return torch.randn(n, c, dtype=f64), torch.arange(n) % c


def exported(op, dynamic=True):
    auto = {0: torch.export.Dim.DYNAMIC}
    return torch.export.export(Model(op), arguments(), dynamic_shapes=(auto, auto) if dynamic else None)


def value_and_gradient(f, x, *args):
    x = x.detach().clone().requires_grad_()
    y = f(x, *args)
    return y.detach(), torch.autograd.grad((y * y).sum(), x)[0]


@pytest.mark.feature("torch.export, static and dynamic shapes")
@pytest.mark.parametrize("dynamic", (False, True))
@over_ops
def test_export(op, dynamic, watch):
    program = exported(op, dynamic)
    assert f"softkern.{op}.default" in program.graph_module.code
    for n in (6, 9) if dynamic else (6,):
        x, y = arguments(n)
        with watch:
            got = value_and_gradient(program.module(), x, y)
        close(got, value_and_gradient(Model(op, F), x, y))


@pytest.mark.feature("torch.export: save, load, run_decompositions")
@over_ops
def test_an_exported_program_is_kept(op, watch):
    file = io.BytesIO()
    torch.export.save(exported(op), file)
    file.seek(0)
    program = torch.export.load(file).run_decompositions()
    assert f"softkern.{op}" in program.graph_module.code
    with watch:
        got = program.module()(*(given := arguments(8)))
    close(got, Model(op, F)(*given))


@pytest.mark.inductor
@pytest.mark.feature("AOTInductor packages")
@over_ops
def test_aot_inductor(op, watch, tmp_path):
    path = torch._inductor.aoti_compile_and_package(exported(op), package_path=str(tmp_path / "model.pt2"))
    model = torch._inductor.aoti_load_package(path)
    for n in (6, 9):
        x, y = arguments(n)
        with watch:
            got = model(x, y)
        close(got, Model(op, F)(x, y))


@pytest.mark.feature("make_fx, of gradients too")
@pytest.mark.parametrize("mode", ("real", "fake", "symbolic"))
@over_ops
def test_make_fx(op, mode, watch):
    model = Model(op)
    graph = make_fx(lambda x, y: value_and_gradient(model, x, y), tracing_mode=mode)(*arguments())
    assert f"softkern.{op}" in graph.code and f"softkern.{op}_backward" in graph.code
    x, y = arguments()
    with watch:
        got = graph(x, y)
    close(got, value_and_gradient(Model(op, F), x, y))


@pytest.mark.feature("make_fx of torch.func.grad")
@over_ops
def test_make_fx_of_a_transform(op, watch):
    ours, theirs = both(op)
    graph = make_fx(torch.func.grad(scalar(ours)))(data())
    with watch:
        got = graph(data(seed=1))
    close(got, torch.func.grad(scalar(theirs))(data(seed=1)))


@pytest.mark.feature("torch.fx.symbolic_trace")
@over_ops
def test_fx(op, watch):
    """One node that calls softkern's function, as torch's would be one."""
    graph = torch.fx.symbolic_trace(Model(op))
    assert [n.target for n in graph.graph.nodes if n.op == "call_function"][-1] is getattr(softkern, op)
    x, y = arguments()
    with watch:
        got = value_and_gradient(graph, x, y)
    close(got, value_and_gradient(Model(op, F), x, y))


@pytest.mark.feature("torch.jit.trace, saved and loaded")
@over_ops
def test_jit_trace(op, watch):
    traced = torch.jit.trace(Model(op), arguments())
    assert f"softkern::{op}" in str(traced.inlined_graph)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    x, y = arguments(8)
    with watch:
        got = [value_and_gradient(f, x, y) for f in (traced, torch.jit.load(file))]
    close(got, [value_and_gradient(Model(op, F), x, y)] * 2)


MODULES = {"softmax": "Softmax", "log_softmax": "LogSoftmax", "cross_entropy": "CrossEntropyLoss"}


@pytest.mark.feature("torch.jit.script")
@over_ops
def test_jit_script_is_refused_when_it_compiles(op, watch):
    """Before a call could give anything else than torch's."""
    torch.jit.script(getattr(torch.nn, MODULES[op])())
    with (
        watch,
        pytest.raises(
            (RuntimeError, ValueError, torch.jit.frontend.NotSupportedError),
            match=r"Unknown type|keyword-only arguments",
        ),
    ):
        torch.jit.script(getattr(softkern, MODULES[op])())
    watch.refused()
