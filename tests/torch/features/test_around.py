# SPDX-License-Identifier: Apache-2.0
"""Autocast, modules kept and copied, and warnings: as with torch."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from cases import HALVES, name, upstream
from cross_entropy_cases import class_weights
from feature_cases import TARGET, both, close, data, f64, function, leaf, over_ops

import softkern

MODULES = {"softmax": "Softmax", "log_softmax": "LogSoftmax", "cross_entropy": "CrossEntropyLoss"}


def nearly(actual, expected):
    """Of the same dtype, and as near as torch's roundings to 16 bits allow."""
    eps = torch.finfo(expected.dtype).eps
    torch.testing.assert_close(actual, expected, rtol=4 * eps, atol=4 * eps)


def value_and_gradient(f, dtype):
    x = leaf(dtype)
    y = f(x)
    return y.detach(), torch.autograd.grad(y, x, upstream(y, "ones"))[0]


@pytest.mark.feature("CPU autocast to bfloat16 and float16")
@pytest.mark.parametrize("given", (torch.float32, torch.float64, *HALVES), ids=name)
@pytest.mark.parametrize("auto", HALVES, ids=name)
@over_ops
def test_autocast(op, auto, given, watch):
    """F's rule on the CPU: both softmaxes keep their input's dtype, cross_entropy is computed in float32."""
    ours, theirs = both(op, given)
    with torch.autocast("cpu", dtype=auto):
        with watch:
            got = value_and_gradient(ours, given)
        want = value_and_gradient(theirs, given)
    for a, b in zip(got, want, strict=True):
        nearly(a, b)


@pytest.mark.feature("autocast disabled within autocast")
@pytest.mark.parametrize("given", (torch.float32, *HALVES), ids=name)
@over_ops
def test_autocast_disabled_inside(op, given, watch):
    ours, theirs = both(op, given)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False):
        with watch:
            got = ours(data(given))
        want = theirs(data(given))
    assert got.dtype == given
    nearly(got, want)


@pytest.mark.feature("autocast around a layer, gradients of its parameters")
@over_ops
def test_autocast_of_a_network(op, watch):
    torch.manual_seed(1)
    layer = torch.nn.Linear(10, 10)

    def gradients(f):
        layer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = f(layer(data(torch.float32)))
        y.float().square().sum().backward()
        return y.detach(), *(p.grad.clone() for p in layer.parameters())

    ours, theirs = both(op, torch.float32)
    with watch:
        got = gradients(ours)
    for a, b in zip(got, gradients(theirs), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2 * float(b.abs().max()))


def module(op, namespace=softkern):
    made = getattr(namespace, MODULES[op])
    if op == "cross_entropy":
        return made(class_weights(10, f64), ignore_index=-100, label_smoothing=0.1)
    return made(dim=1)


def arguments(op):
    return (data(), TARGET) if op == "cross_entropy" else (data(),)


def saved_and_loaded(m):
    file = io.BytesIO()
    torch.save(m, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "copy.deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save and torch.load": saved_and_loaded,
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.feature(f"modules: {n}")) for n in COPIES]
)
@over_ops
def test_copies_of_modules(op, name, watch):
    original = module(op)
    twin = COPIES[name](original)
    assert type(twin) is type(original) is getattr(softkern, MODULES[op])
    with watch:
        got = twin(*arguments(op))
    close(got, module(op, torch.nn)(*arguments(op)))
    # Within a model, whose state is torch's.
    model = COPIES[name](torch.nn.Sequential(torch.nn.Identity(), original))
    assert list(model.state_dict()) == [f"1.{key}" for key in module(op, torch.nn).state_dict()]


@pytest.mark.feature("modules: state_dict loaded with weights_only")
@over_ops
def test_state_dicts_go_both_ways(op, watch):
    file = io.BytesIO()
    torch.save(module(op, torch.nn).state_dict(), file)
    file.seek(0)
    ours = module(op)
    if op == "cross_entropy":
        ours.weight = torch.ones(10, dtype=f64)
    ours.load_state_dict(torch.load(file, weights_only=True))
    with watch:
        got = ours(*arguments(op))
    close(got, module(op, torch.nn)(*arguments(op)))


@pytest.mark.feature("results: torch.save and copy.deepcopy")
@over_ops
def test_results_are_kept_and_copied(op, watch):
    ours, theirs = both(op)
    with watch:
        y = ours(leaf())
    want = theirs(leaf())
    for kept in (saved_and_loaded(y.detach()), copy.deepcopy(y.detach())):
        close(kept, want.detach())
    errors = []
    for result in (y, want):
        with pytest.raises(RuntimeError, match="Only Tensors created explicitly by the user") as error:
            copy.deepcopy(result)
        errors.append(str(error.value))
    assert errors[0] == errors[1]


@pytest.mark.feature("modules: hooks, to(), half(), train and eval")
@over_ops
def test_modules_are_moved_and_hooked(op, watch):
    """What torch.nn.Module gives, with a dtype that the module's own state follows."""

    def through(namespace):
        m, seen = module(op, namespace), []
        m.register_forward_pre_hook(lambda m, args: (args[0] * 2, *args[1:]))
        m.register_forward_hook(lambda m, args, y: y + 1)
        m.register_full_backward_hook(lambda m, gin, gout: seen.append(gin[0].clone()))
        m.to(torch.bfloat16).eval().float()
        x = leaf(torch.float32)
        y = m(x, *arguments(op)[1:])
        y.sum().mul(3).backward()
        return y.detach(), x.grad, *seen

    with watch:
        got = through(softkern)
    for a, b in zip(got, through(torch.nn), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def caught(f, *args):
    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("always")
        f(*args)
    return [(w.category, str(w.message)) for w in log]


SITUATIONS = {
    "backward": lambda f: f(leaf()).sum().backward(),
    "double backward": lambda f: torch.autograd.grad(f(x := leaf()).sum(), x, create_graph=True),
    "vmap": lambda f: torch.func.vmap(f)(torch.stack([data(), data()])),
    "jvp": lambda f: torch.func.jvp(f, (data(),), (data(),)),
    "batched gradients": lambda f: torch.autograd.grad(
        y := f(x := leaf()), x, torch.stack([y, y]).detach(), is_grads_batched=True
    ),
    "no_grad": lambda f: torch.no_grad()(f)(data()),
    "autocast": lambda f: torch.autocast("cpu")(f)(data()),
    "torch.func.grad": lambda f: torch.func.grad(lambda x: f(x).sum())(data()),
}


@pytest.mark.feature("no warnings but torch's")
@pytest.mark.parametrize("situation", SITUATIONS)
@over_ops
def test_warnings_are_torchs(op, situation, watch):
    with watch:
        function(op)(data())
    ours, theirs = both(op)
    caught(SITUATIONS[situation], theirs)  # what torch says once a process, while it compiles its formulas
    assert caught(SITUATIONS[situation], ours) == caught(SITUATIONS[situation], theirs)


@pytest.mark.feature("no warnings but torch's", "softmax", "log_softmax")
def test_the_warning_for_no_dim_is_torchs(watch):
    for op in ("softmax", "log_softmax"):
        with watch:
            ours = caught(getattr(softkern, op), data())
        assert ours == caught(getattr(F, op), data()) and len(ours) == 1
