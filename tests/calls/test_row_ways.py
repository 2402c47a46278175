# SPDX-License-Identifier: Apache-2.0
"""Ways of calling with softkern's own options: modules, tensor classes, modes, transforms, compilers."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from cases import name
from feature_cases import Tagged, Wrapped, close
from install_checks import ops_run
from messages import raised
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

import softkern

f64 = torch.float64
GENERATOR = torch.Generator().manual_seed(5)
N, C = 6, 10
X = torch.randn(N, C, generator=GENERATOR, dtype=f64)
Y = torch.tensor([0, 6, 2, -100, 4, 2])
R = torch.tensor([1.0, 0.5, 2.0, 3.0, 0.0, 0.25], dtype=f64)
K = torch.tensor([[0, 1], [6, 6], [2, 0], [3, 4], [5, 5], [1, 1]])
T = torch.linspace(0.1, 0.9, 2 * N, dtype=f64).reshape(N, 2)
ITEMS = torch.tensor(5)
OPTIONS = {"valid_classes": 7, "logit_scale": 0.9, "softcap": 3.0, "temperature": 1.5, "z_loss": 0.01}
STATS = ("log_prob", "lse", "entropy", "argmax", "correct")


def all_options(x, y=Y, r=R, n=ITEMS):
    loss, stats = softkern.cross_entropy(x, y, row_weight=r, num_items=n, stats=STATS, **OPTIONS)
    return (loss, *stats)


def k_indices(x, y=K, t=T, r=R):
    return softkern.cross_entropy(x, y, target_probs=t, row_weight=r, reduction="none", **OPTIONS)


def statistics(x, y=Y):
    return softkern.selective_log_softmax(x, y.clamp(min=0), softcap=3.0, entropy=True)


def entropy(x):
    return softkern.entropy_from_logits(x, 0, temperature=2.0)


# Calls, and all tensors that they take.
CALLS = {all_options: (X, Y, R, ITEMS), k_indices: (X, K, T, R), statistics: (X, Y), entropy: (X,)}
over_calls = pytest.mark.parametrize("call", CALLS)


def summed(f):
    """A function whose value is one number that every differentiable result moves."""

    def total(x):
        results = f(x)
        parts = results if isinstance(results, tuple) else (results,)
        return sum((i + 1) * y.square().sum() for i, y in enumerate(parts) if y.is_floating_point())

    return total


def gradient(f, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(summed(f)(x), x)[0]


def test_a_module_is_the_function():
    module = softkern.CrossEntropyLoss(stats=STATS, **OPTIONS)
    loss, stats = module(X, Y, row_weight=R, num_items=ITEMS)
    close((loss, *stats), all_options(X))
    module = softkern.CrossEntropyLoss(reduction="none", **OPTIONS)
    close(module(X, K, target_probs=T, row_weight=R), k_indices(X))
    for option, value in OPTIONS.items():
        module = softkern.CrossEntropyLoss()
        setattr(module, option, value)
        target = Y.clamp(max=6)
        close(module(X, target), softkern.cross_entropy(X, target, **{option: value}))
    assert softkern.CrossEntropyLoss(stats=iter(STATS)).stats == STATS
    assert not module.state_dict()


def test_modules_of_before_can_be_loaded():
    module = softkern.CrossEntropyLoss()
    for option in (*OPTIONS, "stats", "inplace_backward"):
        del module.__dict__[option]
    for old in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        close(old(X, Y), F.cross_entropy(X, Y))
        close(old(X, Y, row_weight=R), softkern.cross_entropy(X, Y, row_weight=R))


def test_a_loaded_module_keeps_its_options():
    module = pickle.loads(pickle.dumps(softkern.CrossEntropyLoss(stats=STATS, **OPTIONS)))
    loss, stats = module(X, Y, row_weight=R, num_items=ITEMS)
    close((loss, *stats), all_options(X))


@over_calls
def test_a_class_that_torchs_functions_keep(call):
    got = call(X.as_subclass(Tagged))
    assert all(type(y) is Tagged for y in (got if isinstance(got, tuple) else (got,)))
    plain = tuple(y.as_subclass(torch.Tensor) for y in (got if isinstance(got, tuple) else (got,)))
    close(plain if isinstance(got, tuple) else plain[0], call(X))


@over_calls
def test_a_class_that_knows_atens_ops_alone(call):
    got, want = call(Wrapped(X)), call(X)
    inner = tuple(y.inner for y in got) if isinstance(got, tuple) else got.inner
    close(inner, want)
    with softkern.use_backend("portable"), pytest.raises(RuntimeError, match="'portable' was asked for"):
        call(Wrapped(X))


class Refusing(torch.Tensor):
    """Knows torch's functions alone."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return (
            NotImplemented
            if func.__module__.startswith("softkern")
            else super().__torch_function__(func, types, args, kwargs or {})
        )


@over_calls
def test_a_class_that_knows_torchs_functions_alone(call):
    error = raised(call, X.as_subclass(Refusing))
    assert type(error) is TypeError and "softkern" in str(error), error


@pytest.mark.parametrize("option", ("row_weight", "num_items", "target_probs"))
def test_a_class_among_the_options(option):
    value = {"row_weight": R, "num_items": ITEMS, "target_probs": T}[option]
    target = K if option == "target_probs" else Y
    got = softkern.cross_entropy(X, target, **{option: value.as_subclass(Tagged)})
    assert type(got) is Tagged
    close(got.as_subclass(torch.Tensor), softkern.cross_entropy(X, target, **{option: value}))


def test_a_mode_gets_the_public_function():
    seen = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append((func, kwargs))
            return func(*args, **(kwargs or {}))

    for call in CALLS:
        with Mode():
            got = call(X)
        close(got, call(X))
    called = {func: kwargs for func, kwargs in seen}
    assert called[softkern.cross_entropy].keys() >= {"stats", *OPTIONS}
    assert called[softkern.selective_log_softmax]["softcap"] == 3.0
    assert called[softkern.entropy_from_logits]["temperature"] == 2.0


def test_fx_records_the_public_functions():
    class Model(torch.nn.Module):
        def forward(self, x):
            loss = softkern.cross_entropy(x, Y, row_weight=R, stats=STATS, **OPTIONS)
            return loss, softkern.selective_log_softmax(x, K), softkern.entropy_from_logits(x)

    traced = torch.fx.symbolic_trace(Model())
    functions = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert functions == [softkern.cross_entropy, softkern.selective_log_softmax, softkern.entropy_from_logits]
    close(traced(X), Model()(X))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@over_calls
def test_transforms(call):
    total = summed(call)
    close(torch.func.grad(total)(X), gradient(call, X))
    close(torch.func.jvp(total, (X,), (X.cos(),))[1], (gradient(call, X) * X.cos()).sum())
    stacked = torch.stack([X, X.sin()])
    close(torch.vmap(call)(stacked), tuple_of(call, stacked))
    close(torch.vmap(torch.func.grad(total))(stacked), torch.stack([gradient(call, x) for x in stacked]))
    hessian = torch.func.hessian(total)(X)
    close(hessian, torch.autograd.functional.hessian(total, X))


def tuple_of(call, stacked):
    found = [call(x) for x in stacked]
    if not isinstance(found[0], tuple):
        return torch.stack(found)
    return tuple(torch.stack(parts) for parts in zip(*found, strict=True))


@over_calls
def test_traced_by_make_fx(call):
    for mode in ("real", "fake", "symbolic"):
        graph = make_fx(lambda *given: call(*given), tracing_mode=mode)(*CALLS[call])
        assert any("softkern.row_losses" in str(node.target) for node in graph.graph.nodes)
        close(graph(*CALLS[call]), call(X))


@over_calls
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_compiled(call):
    """In one graph, with static sizes and with sizes as symbols."""
    for dynamic in (False, True):
        torch._dynamo.reset()
        compiled = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=dynamic)
        close(compiled(X), call(X))
        close(gradient(compiled, X), gradient(call, X))
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_compiled_by_inductor():
    def all_calls(x):
        return (*all_options(x), k_indices(x), *statistics(x), entropy(x))

    torch._dynamo.reset()
    compiled = torch.compile(all_calls, fullgraph=True)
    close(compiled(X), all_calls(X))
    close(gradient(compiled, X), gradient(all_calls, X))
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_compiled_with_arguments():
    """Numbers, and sizes that only a run knows."""

    def loss(x, y, r, n, scale, classes):
        kept = y >= 0
        return softkern.cross_entropy(
            x[kept], y[kept], row_weight=r[kept], num_items=n, logit_scale=scale, valid_classes=classes
        )

    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=True)
        for arguments in ((ITEMS, 0.9, 8), (6, 0.8, 9), (4.5, 2.0, 7)):
            close(compiled(X, Y, R, *arguments), loss(X, Y, R, *arguments))
    torch._dynamo.reset()


@over_calls
@pytest.mark.parametrize("strict", (False, True))
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*", "ignore:`isinstance:FutureWarning")
def test_exported(call, strict):
    class Model(torch.nn.Module):
        def forward(self, x):
            return call(x)

    program = torch.export.export(Model(), (X,), strict=strict)
    assert any("softkern.row_losses" in str(node.target) for node in program.graph.nodes)
    close(program.module()(X), call(X))
    program = program.run_decompositions(softkern.decompositions())
    assert not any("softkern" in str(node.target) for node in program.graph.nodes)
    close(program.module()(X), call(X))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@over_calls
def test_traced_by_jit(call):
    close(torch.jit.trace(call, X)(X.sin()), call(X.sin()))


def test_a_backend_that_was_named_takes_them():
    with softkern.use_backend("portable"):
        for call in CALLS:
            call(X)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=name)
def test_autocast(dtype):
    x, r = X.to(dtype), R.to(dtype)
    with torch.autocast("cpu", dtype):
        results = all_options(x, r=r)
        assert all(y.dtype == torch.float32 for y in results[:4])
    torch.testing.assert_close(results, all_options(x.float(), r=r.float()))


def test_only_the_op_runs():
    """Without a gradient: no op of torch beside it, whatever the options."""
    _, ops = ops_run(lambda: all_options(X.float(), r=R.float(), n=ITEMS.double()))
    assert [op for op in ops if op.startswith("softkern.")][:1] == ["softkern.row_losses.default"]
