# SPDX-License-Identifier: Apache-2.0
"""cross_entropy with softkern's own options and statistics: compilers and exporters."""

from __future__ import annotations

import io

import pytest
import torch
from cross_entropy_cases import class_weights
from feature_cases import close, data, f64, leaf
from functorch.compile import make_boxed_func
from row_losses_features import OPTIONS, ROWS, STATS, Y, feature, number, ours, theirs, value_and_gradient
from torch._dynamo import compiled_autograd
from torch._dynamo.backends.common import aot_autograd
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import softkern

# What torch says about itself while it compiles and exports.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]
INDUCTOR = pytest.param("inductor", marks=pytest.mark.inductor)
WARM = {n: t for n, t in OPTIONS.items() if n != "num_items"}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(f, **kwargs):
    return torch.compile(f, fullgraph=True, **kwargs)


def warm(f, x, watch):
    """Of the second call, which compiles nothing any more."""
    value_and_gradient(f, x=x.detach().clone().requires_grad_())
    with watch:
        return value_and_gradient(f, x=x.detach().clone().requires_grad_())


@feature("torch.compile(fullgraph), static shapes")
@pytest.mark.parametrize("backend", ("eager", "aot_eager", INDUCTOR))
def test_compile(backend, watch):
    f = compiled(lambda x: [t.sin() for t in ours(x * 2)], backend=backend, dynamic=False)
    close(warm(f, data(), watch), value_and_gradient(lambda x: [t.sin() for t in theirs(x * 2)]))


def of_any_size(x, y, rows, f=ours):
    return f(x * 2, y, torch.ones_like(x[0]), rows, {**WARM, "valid_classes": 5})


@feature("torch.compile(fullgraph), dynamic shapes")
def test_compile_with_dynamic_shapes(watch):
    """One graph for all sizes. dynamo hands it over twice at first, because the options are floats."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    f = compiled(of_any_size, backend=counter, dynamic=True)
    compilations = set()
    for n, c in ((6, 10), (7, 12), (12, 6)):
        x, y, rows = torch.randn(n, c, dtype=f64), torch.arange(n) % 5, torch.rand(n, dtype=f64)
        got = warm(lambda x, y=y, rows=rows: f(x, y, rows), x, watch)
        compilations.add(counter.frame_count)
        exact = value_and_gradient(
            lambda x, y=y, rows=rows: of_any_size(x, y, rows, theirs), x=x.requires_grad_()
        )
        close(got, exact)
    assert len(compilations) == 1, "recompiled for another size"


@feature("softkern's ops in compiled graphs, forward and backward")
def test_the_graphs_hold_softkerns_ops(watch):
    code = []

    def compiler(graph, _):
        code.append(graph.code)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=compiler, bw_compiler=compiler)
    got = warm(compiled(ours, backend=backend), data(), watch)
    forward, backward = code
    assert "softkern.row_losses" in forward and "softkern.row_losses_backward" in backward
    assert "log_softmax" not in forward + backward and "logsumexp" not in forward + backward
    close(got, value_and_gradient(theirs))


@feature("torch.compile of torch.func.grad and vmap")
def test_compiled_transforms(watch):
    def transformed(f):
        return lambda x: vmap(grad(number(f)))(torch.stack([x, x * 2]))

    f = compiled(transformed(ours), backend="aot_eager")
    f(data())
    with watch:
        got = f(data())
    close(got, transformed(theirs)(data()))


@feature("torch.compile under autocast")
def test_compiled_under_autocast(watch):
    x = data(torch.bfloat16)
    f = compiled(lambda x: ours(x, options=WARM), backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, dx = warm(f, x, watch)
    want, expected = value_and_gradient(lambda x: theirs(x, options=WARM), x=x.double().requires_grad_())
    assert all(t.dtype == torch.float32 for t in got)
    torch.testing.assert_close([t.double() for t in got], want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dx.double(), expected, rtol=2**-7, atol=2**-7)


@feature("compiled autograd")
@pytest.mark.parametrize("backend", ("eager", "aot_eager"))
@pytest.mark.parametrize("inplace", (False, True))
def test_compiled_autograd(inplace, backend, watch):
    """The backward of an eager forward as one graph: of the loss alone, and of statistics."""

    def gradients(parts):
        x, weight = leaf(), class_weights(10, f64)
        options = {**OPTIONS, "weight": weight, "row_weight": ROWS, "inplace_backward": inplace}
        if parts == 1:
            results = (softkern.cross_entropy(x * 2, Y, **options),)
            weight.zero_()  # what the forward has used, no backward of the loss reads
        else:
            loss, stats = softkern.cross_entropy(x * 2, Y, stats=STATS, **options)
            results = (loss, *stats[:3])
        (3 * sum((t**2).sum() for t in results)).backward()
        return x.grad

    for parts in (1, 4):
        torch._dynamo.reset()
        compiler = compiled_autograd._enable(lambda g: torch.compile(g, backend=backend, fullgraph=True))
        with compiler, watch:
            got = gradients(parts)
        x = leaf()
        (3 * sum((t**2).sum() for t in theirs(x * 2)[:parts])).backward()
        close(got, x.grad)


class Model(torch.nn.Module):
    def __init__(self, f=ours):
        super().__init__()
        self.function = f

    def forward(self, x, y, rows):
        return tuple(of_any_size(x, y, rows, self.function))


def arguments(n=6, c=10):
    return torch.randn(n, c, dtype=f64), torch.arange(n) % 5, torch.rand(n, dtype=f64)


def exported(dynamic=True):
    auto = {0: torch.export.Dim.DYNAMIC}
    return torch.export.export(Model(), arguments(), dynamic_shapes=(auto,) * 3 if dynamic else None)


def differentiated(f, x, *args):
    x = x.detach().clone().requires_grad_()
    y = f(x, *args)
    return [t.detach() for t in y], torch.autograd.grad(sum((t * t).sum() for t in y), x)[0]


@feature("torch.export, static and dynamic shapes")
@pytest.mark.parametrize("dynamic", (False, True))
def test_export(dynamic, watch):
    program = exported(dynamic)
    assert "softkern.row_losses.default" in program.graph_module.code
    for n in (6, 9) if dynamic else (6,):
        given = arguments(n)
        with watch:
            got = differentiated(program.module(), *given)
        close(got, differentiated(Model(theirs), *given))


@feature("torch.export: save, load, run_decompositions")
def test_an_exported_program_is_kept(watch):
    """As softkern's op, and as torch's."""
    file = io.BytesIO()
    torch.export.save(exported(), file)
    file.seek(0)
    program = torch.export.load(file).run_decompositions()
    assert "softkern.row_losses" in program.graph_module.code
    given = arguments(8)
    with watch:
        got = program.module()(*given)
    close(got, Model(theirs)(*given))
    decomposed = program.run_decompositions(softkern.decompositions())
    assert "softkern" not in " ".join(str(n.target) for n in decomposed.graph.nodes)
    close(decomposed.module()(*given), Model(theirs)(*given))


@feature("make_fx, of gradients too")
@pytest.mark.parametrize("mode", ("real", "fake", "symbolic"))
def test_make_fx(mode, watch):
    graph = make_fx(lambda *given: differentiated(Model(), *given), tracing_mode=mode)(*arguments())
    assert "softkern.row_losses" in graph.code and "softkern.row_losses_backward" in graph.code
    given = arguments()
    with watch:
        got = graph(*given)
    close(got, differentiated(Model(theirs), *given))


@feature("make_fx of torch.func.grad")
def test_make_fx_of_a_transform(watch):
    graph = make_fx(grad(number(ours)))(data())
    with watch:
        got = graph(data(seed=1))
    close(got, grad(number(theirs))(data(seed=1)))


@feature("torch.jit.trace, saved and loaded")
def test_jit_trace(watch):
    traced = torch.jit.trace(Model(), arguments())
    assert "softkern::row_losses" in str(traced.inlined_graph)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    given = arguments(8)
    with watch:
        got = [differentiated(f, *given) for f in (traced, torch.jit.load(file))]
    close(got, [differentiated(Model(theirs), *given)] * 2)
