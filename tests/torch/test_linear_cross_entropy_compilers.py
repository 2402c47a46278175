# SPDX-License-Identifier: Apache-2.0
"""linear_cross_entropy in torch.compile, compiled autograd, torch.export and make_fx."""

from __future__ import annotations

import io

import pytest
import torch
from cases import logits
from feature_cases import close, f64
from functorch.compile import make_boxed_func
from linear_features import FEATURES, OPTIONS, B, W, X, Y, ours, theirs
from torch._dynamo import compiled_autograd
from torch._dynamo.backends.common import aot_autograd
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
WARM = {n: t for n, t in OPTIONS.items() if n != "num_items"}


def feature(row: str):
    """The mark of a test for this row of docs/compatibility.md."""
    return pytest.mark.feature(row, "linear_cross_entropy")


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def both_ways(f, x=X, y=Y):
    layer = [t.detach().clone().requires_grad_() for t in (x, W, B)]
    found = f(*layer, y)
    return [t.detach() for t in found], torch.autograd.grad(sum((t**2).sum() for t in found), layer)


def warm(f, watch, *args):
    """Of the second call, which compiles nothing any more."""
    both_ways(f, *args)
    with watch:
        return both_ways(f, *args)


def around(f):
    return lambda x, w, b, y: [t.sin() for t in f(x * 2, w, b, y, WARM)]


@feature("softkern's ops in compiled graphs, forward and backward")
@feature("torch.compile(fullgraph), static shapes")
def test_the_graphs_hold_softkerns_ops(watch):
    code = []

    def compiler(graph, _):
        code.append(graph.code)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=compiler, bw_compiler=compiler)
    got = warm(torch.compile(around(ours), fullgraph=True, dynamic=False, backend=backend), watch)
    forward, backward = code
    assert forward.count("softkern.linear_cross_entropy_forward") == 2
    assert backward.count("softkern.linear_cross_entropy_backward") == 1  # the other one scales
    assert not any(op in forward + backward for op in ("log_softmax", "logsumexp", "aten.addmm", "aten.mm."))
    close(got, both_ways(around(theirs)))


@feature("torch.compile(fullgraph), dynamic shapes")
def test_compile_with_dynamic_shapes(watch):
    """One graph for all numbers of rows."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    f = torch.compile(around(ours), fullgraph=True, dynamic=True, backend=counter)
    compilations = set()
    for n in (6, 4, 5):
        x, y = logits(n, FEATURES, dtype=f64), torch.arange(n) % 10
        got = warm(f, watch, x, y)
        compilations.add(counter.frame_count)
        close(got, both_ways(around(theirs), x, y))
    assert len(compilations) == 1, "recompiled for another size"


@feature("torch.compile(fullgraph) and torch.export of rows that a mask selects")
def test_compile_of_selected_rows(watch):
    """Their number is known only to the data."""

    def selected(f):
        def of(x, w, b, y):
            keep = y != -100
            return f(x[keep], w, b, y[keep])

        return of

    def plain(x, w, b, y):
        return [softkern.linear_cross_entropy(x, w, y, linear_bias=b, z_loss=0.1)]

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        got = warm(torch.compile(selected(plain), fullgraph=True, backend="aot_eager"), watch)
    close(got, both_ways(plain))


@feature("torch.compile under autocast")
def test_compiled_under_autocast(watch):
    layer = [t.float().requires_grad_() for t in (X, W, B)]

    def f(x, w, b):
        return softkern.linear_cross_entropy(x, w, Y, linear_bias=b)

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        compiled(*layer)
        with watch:
            got = compiled(*layer)
        want = f(*layer)
    close([got, *torch.autograd.grad(got, layer)], [want, *torch.autograd.grad(want, layer)])


@feature("compiled autograd")
@pytest.mark.parametrize("parts", (1, 5))
def test_compiled_autograd(parts, watch):
    """The backward of an eager forward as one graph: of fast, and of lean."""

    def gradients(f):
        layer = [t.clone().requires_grad_() for t in (X, W, B)]
        (3 * sum((t**2).sum() for t in f(*layer)[:parts])).backward()
        return [t.grad for t in layer]

    enabled = compiled_autograd._enable(lambda g: torch.compile(g, backend="aot_eager", fullgraph=True))
    with enabled, watch:
        got = gradients(ours)
    close(got, gradients(theirs))


class Model(torch.nn.Module):
    def __init__(self, f=ours):
        super().__init__()
        self.function = f

    def forward(self, x, w, b, y):
        return tuple(around(self.function)(x, w, b, y))


def exported(dynamic):
    auto = {0: torch.export.Dim.DYNAMIC}
    return torch.export.export(
        Model(), (X, W, B, Y), dynamic_shapes=(auto, {}, {}, auto) if dynamic else None
    )


@feature("torch.export, static and dynamic shapes")
@pytest.mark.parametrize("dynamic", (False, True))
def test_export(dynamic, watch):
    program = exported(dynamic)
    assert program.graph_module.code.count("softkern.linear_cross_entropy.default") == 2
    rows = 5 if dynamic else 6
    with watch:
        got = both_ways(program.module(), X[:rows], Y[:rows])
    close(got, both_ways(Model(theirs), X[:rows], Y[:rows]))


@feature("torch.export: save, load, run_decompositions")
def test_an_exported_program_is_kept(watch):
    """As softkern's op, and as torch's."""
    file = io.BytesIO()
    torch.export.save(exported(True), file)
    file.seek(0)
    program = torch.export.load(file).run_decompositions()
    assert "softkern.linear_cross_entropy" in program.graph_module.code
    with watch:
        got = program.module()(X[:5], W, B, Y[:5])
    close(got, Model(theirs)(X[:5], W, B, Y[:5]))
    decomposed = program.run_decompositions(softkern.decompositions())
    assert "softkern" not in " ".join(str(n.target) for n in decomposed.graph.nodes)
    close(decomposed.module()(X[:5], W, B, Y[:5]), Model(theirs)(X[:5], W, B, Y[:5]))


@feature("make_fx, of gradients too")
def test_make_fx(watch):
    def differentiated(f):
        def of(x, w, b, y):
            layer = [t.detach().clone().requires_grad_() for t in (x, w, b)]
            return torch.autograd.grad(sum((t**2).sum() for t in f(*layer, y)), layer)

        return of

    graph = make_fx(differentiated(Model()), tracing_mode="symbolic")(X, W, B, Y)
    assert "softkern.linear_cross_entropy_forward" in graph.code
    with watch:
        got = graph(X[:5], W, B, Y[:5])
    close(got, differentiated(Model(theirs))(X[:5], W, B, Y[:5]))
