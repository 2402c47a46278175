# SPDX-License-Identifier: Apache-2.0
"""Special tensors (subclasses, fake, nested), and modes that watch or change calls."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import LAYOUTS, upstream
from compare import assert_same_bits
from compatibility import OPS
from cross_entropy_cases import class_weights
from feature_cases import TARGET, Tagged, Wrapped, both, close, data, f64, leaf, over_ops
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import softkern


def value_and_gradient(f, x):
    y = f(x)
    return y.detach(), torch.autograd.grad(y, x, upstream(y.detach(), "random"))[0]


@pytest.mark.feature("any strides")
@pytest.mark.parametrize("layout", LAYOUTS)
@over_ops
def test_strides(op, layout, watch):
    ours, theirs = both(op)
    x = LAYOUTS[layout](data())
    with watch:
        got = value_and_gradient(ours, x.detach().requires_grad_())
    close(got, value_and_gradient(theirs, x.detach().requires_grad_()))


@pytest.mark.feature("nn.Parameter and nn.Buffer")
@over_ops
def test_parameters_and_buffers(op, watch):
    ours, theirs = both(op)
    with watch:
        got = value_and_gradient(ours, torch.nn.Parameter(data()))
        buffer = ours(torch.nn.Buffer(data()))
    close(got, value_and_gradient(theirs, leaf()))
    assert_same_bits(buffer, got[0])


@pytest.mark.feature("views with the negative bit")
@over_ops
def test_negative_bit(op, watch):
    """What the memory holds is the negative of what the tensor is."""
    ours, theirs = both(op)
    x = torch.complex(data(seed=1), -data()).conj().imag
    assert x.is_neg()
    with watch:
        got = ours(x)
    close(got, theirs(data()))


@pytest.mark.feature("zero tensors as upstream gradients")
@over_ops
def test_zero_tensors(op, watch):
    """Without memory, as forward-mode AD and torch.func make them."""
    ours, _ = both(op)
    x = leaf()
    with watch:
        y = ours(x)
        (dx,) = torch.autograd.grad(y, x, torch._efficientzerotensor(y.shape, dtype=f64))
    close(dx, torch.zeros_like(x))


@pytest.mark.feature("subclasses with __torch_function__")
@over_ops
def test_subclasses_with_torch_function(op, watch):
    ours, theirs = both(op)
    results = []
    for f, namespace in ((ours, softkern), (theirs, F)):
        Tagged.seen.clear()
        x = leaf().as_subclass(Tagged)
        y = watched(watch, f, x) if namespace is softkern else f(x)
        assert getattr(F, op) in Tagged.seen  # by which classes know what to do
        assert type(y) is Tagged
        results.append(y.as_subclass(torch.Tensor))
    close(*results)


def watched(watch, f, *args):
    with watch:
        return f(*args)


@pytest.mark.feature("subclasses with __torch_dispatch__")
@over_ops
def test_subclasses_with_torch_dispatch(op, watch):
    ours, theirs = both(op)
    x = Wrapped(data()).requires_grad_()
    with watch:
        y = ours(x)
        (dx,) = torch.autograd.grad(y, x, Wrapped(upstream(y.inner.detach(), "random")))
    assert type(y) is type(dx) is Wrapped
    close((y.inner.detach(), dx.inner), value_and_gradient(theirs, leaf()))


class Functions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **kwargs or {})


@pytest.mark.feature("TorchFunctionMode")
@over_ops
def test_torch_function_mode(op, watch):
    """The mode meets softkern's function, as it meets torch's."""
    ours, theirs = both(op)
    x = data()
    with watch, Functions() as mode:
        got = ours(x)
    assert mode.seen[0] is getattr(softkern, op)
    close(got, theirs(x))


class Halved(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        return result / 2 if func in (getattr(n, op) for n in (softkern, F) for op in OPS) else result


@pytest.mark.feature("TorchFunctionMode")
@over_ops
def test_torch_function_mode_may_change_the_result(op, watch):
    ours, theirs = both(op)
    with watch, Halved():
        got = ours(data())
    close(got, theirs(data()) / 2)


class Ops(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name())
        return func(*args, **kwargs or {})


@pytest.mark.feature("TorchDispatchMode")
@over_ops
def test_torch_dispatch_mode(op, watch):
    """Forward and backward are ops with names: profilers and checkpointing policies see them."""
    ours, theirs = both(op)
    with watch, Ops() as mode:
        got = value_and_gradient(ours, leaf())
    own = [name for name in mode.seen if name.startswith("softkern::")]
    forward = f"softkern::{op}" + "_forward" * (op == "cross_entropy")
    assert [name.rstrip("_") for name in own] == [forward, f"softkern::{op}_backward"]
    close(got, value_and_gradient(theirs, leaf()))


def call(op, namespace, x, target, weight):
    f = getattr(namespace, op)
    return f(x, target, weight) if op == "cross_entropy" else f(x, 1)


def like(t):
    return t.shape, t.dtype, t.stride(), t.device, t.requires_grad


@pytest.mark.feature("meta tensors, their backward too")
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@over_ops
def test_meta(op, dtype, watch):
    def both_ways(namespace):
        x = data(dtype).to("meta").requires_grad_()
        y = call(op, namespace, x, TARGET.to("meta"), class_weights(10, dtype).to("meta"))
        return y, torch.autograd.grad(y, x, torch.ones_like(y))[0]

    with watch:
        got = both_ways(softkern)
    watch.only_shapes(*got)
    assert [like(t) for t in got] == [like(t) for t in both_ways(F)]


@pytest.mark.feature("fake tensors, their backward too")
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@over_ops
def test_fake(op, dtype, watch):
    def both_ways(namespace):
        with FakeTensorMode() as mode:
            x = mode.from_tensor(data(dtype)).requires_grad_()
            others = (mode.from_tensor(t) for t in (TARGET, class_weights(10, dtype)))
            y = call(op, namespace, x, *others)
            return y, torch.autograd.grad(y, x, torch.ones_like(y))[0]

    with watch:
        got = both_ways(softkern)
    watch.only_shapes(*got)
    assert [like(t) for t in got] == [like(t) for t in both_ways(F)]
