# SPDX-License-Identifier: Apache-2.0
"""Class indices of int32 and uint8 work like those of int64, also if a call goes through torch."""

from __future__ import annotations

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from cases import name
from cross_entropy_cases import REDUCTIONS, problem
from feature_cases import Tagged, Wrapped, close
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import softkern

# ignore_index -100 is no uint8, and 156 is the uint8 of its bits: a row with it must not be ignored.
OPTIONS = ({}, {"ignore": 2}, {"smoothing": 0.1}, {"weight": True, "ignore": 1, "smoothing": 0.2})
over_options = pytest.mark.parametrize("options", OPTIONS, ids=name)
over_dtypes = pytest.mark.parametrize("dtype", (torch.int32, torch.uint8), ids=name)
over_reductions = pytest.mark.parametrize("reduction", REDUCTIONS)
f64 = torch.float64


def plain(f, x, y):
    return f(x, y)


def gradient(f, x, y):
    return torch.func.grad(lambda x: f(x, y).sum())(x)


def vjp(f, x, y):
    value, back = torch.func.vjp(lambda x: f(x, y), x)
    return value, back(torch.ones_like(value))


def jvp(f, x, y):
    return torch.func.jvp(lambda x: f(x, y), (x,), (x.cos(),))


def hessian(f, x, y):
    return torch.func.hessian(lambda x: f(x, y).sum())(x)


def vmap(f, x, y):
    return torch.vmap(f)(torch.stack([x, x + 1]), torch.stack([y, y.flip(0)]))


def vmap_over_logits(f, x, y):
    return torch.vmap(f, (0, None))(torch.stack([x, x.sin()]), y)


def vmap_of_grad(f, x, y):
    each = torch.func.grad(lambda x, y: f(x[None], y[None]).sum())
    return torch.vmap(each)(x, y)


def functionalize(f, x, y):
    return torch.func.functionalize(f)(x, y)


def forward_mode(f, x, y):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, x.cos()), y))


def double_backward(f, x, y):
    x = x.clone().requires_grad_()
    (dx,) = torch.autograd.grad(f(x, y).sum(), x, create_graph=True)
    return torch.autograd.grad(dx.square().sum(), x)


def wrapped(f, x, y):
    return f(Wrapped(x), Wrapped(y)).inner


def wrapped_logits(f, x, y):
    return f(Wrapped(x), y).inner


def tagged(f, x, y):
    return f(x.as_subclass(Tagged), y.as_subclass(Tagged)).as_subclass(torch.Tensor)


def inference(f, x, y):
    with torch.inference_mode():
        return f(x, y).clone()


def traced(f, x, y):
    return make_fx(f)(x, y)(x, y)


def traced_gradient(f, x, y):
    return make_fx(lambda x, y: gradient(f, x, y))(x, y)(x, y)


def compiled(f, x, y):
    torch._dynamo.reset()
    return torch.compile(f, backend="aot_eager", fullgraph=True)(x, y)


def compiled_gradient(f, x, y):
    torch._dynamo.reset()
    return torch.compile(lambda x, y: gradient(f, x, y), backend="aot_eager", fullgraph=True)(x, y)


WAYS = (
    plain,
    gradient,
    vjp,
    jvp,
    hessian,
    vmap,
    vmap_over_logits,
    vmap_of_grad,
    functionalize,
    forward_mode,
    double_backward,
    wrapped,
    wrapped_logits,
    tagged,
    inference,
    traced,
    traced_gradient,
    compiled,
    compiled_gradient,
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@over_reductions
@over_dtypes
@pytest.mark.parametrize("way", WAYS)
def test_every_way_takes_them(way, dtype, reduction):
    for shape in ((6, 10), (3, 5, 4)):
        for options in OPTIONS:
            x, y, kwargs = problem(shape, f64, **options)
            y = y.clamp(min=0)
            if reduction == "mean" and "smoothing" in options and way in (vmap, vmap_of_grad):
                continue  # torch itself can't: it selects the rows that count by a mask
            kwargs["reduction"] = reduction
            got = way(lambda *args, kwargs=kwargs: softkern.cross_entropy(*args, **kwargs), x, y.to(dtype))
            expected = way(lambda *args, kwargs=kwargs: F.cross_entropy(*args, **kwargs), x, y)
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11, equal_nan=True)


@over_dtypes
def test_one_row(dtype):
    """(C) logits and a target without dimensions."""
    x, y, _ = problem((7,), f64)
    for way in (plain, gradient, hessian, wrapped, jvp):
        close(way(softkern.cross_entropy, x, y.to(dtype)), way(F.cross_entropy, x, y))


@over_dtypes
@over_reductions
def test_without_values(reduction, dtype):
    x, y, _ = problem((6, 10))
    narrow = y.to(dtype)
    with FakeTensorMode() as mode:
        fakes = mode.from_tensor(x), mode.from_tensor(narrow)
        faked = softkern.cross_entropy(*fakes, reduction=reduction)
    meta = softkern.cross_entropy(x.to("meta"), narrow.to("meta"), reduction=reduction)
    assert faked.shape == meta.shape == F.cross_entropy(x, y, reduction=reduction).shape


@over_dtypes
def test_a_uint8_of_156_is_not_ignored(dtype):
    x = torch.randn(3, 200, dtype=f64)
    y = torch.tensor([156, 0, 199])
    for way in (plain, gradient, jvp, wrapped, compiled):
        close(way(softkern.cross_entropy, x, y.to(dtype)), way(F.cross_entropy, x, y))


@pytest.mark.parametrize("dtype", (torch.int32, torch.uint8, torch.int16, torch.bool), ids=name)
@pytest.mark.parametrize(
    "logits",
    (lambda: torch.randn(3, 4), lambda: torch.randn(3, 4).cfloat(), lambda: torch.randn(3, 4).to_sparse()),
)
def test_what_torch_refuses_it_refuses_in_its_words(logits, dtype):
    """Targets of the logits' shape are probabilities, and no integers; some logits nobody takes."""
    x = logits()
    for y in (torch.ones(3, 4).to(dtype), torch.ones(2).to(dtype), torch.ones(3, 1, 1).to(dtype)):
        texts = []
        for f in (softkern.cross_entropy, F.cross_entropy):
            with pytest.raises((RuntimeError, ValueError, NotImplementedError)) as error:
                f(x, y)
            texts.append((error.type, str(error.value)))
        assert texts[0] == texts[1]
