# SPDX-License-Identifier: Apache-2.0
"""cross_entropy with softkern's own options and statistics: special tensors, modes, autocast."""

from __future__ import annotations

import pytest
import torch
from cases import HALVES, LAYOUTS, name, upstream
from compare import assert_same_bits
from feature_cases import Wrapped, close, data, leaf
from row_losses_features import OPTIONS, ROWS, Y, feature, ours, theirs, value_and_gradient
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

# In tensors of other dtypes and kinds, the divisor comes from the weights of the rows.
BY_WEIGHT = {n: t for n, t in OPTIONS.items() if n != "num_items"}


@feature("any strides")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(layout, watch):
    x = LAYOUTS[layout](data())
    with watch:
        got = value_and_gradient(ours, x=x.detach().requires_grad_())
    close(got, value_and_gradient(theirs, x=x.detach().requires_grad_()))


@feature("views with the negative bit")
def test_negative_bit(watch):
    x = torch.complex(data(seed=1), -data()).conj().imag
    assert x.is_neg()
    with watch:
        got = ours(x)
    close(got, theirs(data()))


@feature("zero tensors as upstream gradients")
def test_zero_tensors(watch):
    x = leaf()
    with watch:
        y = ours(x)
        zeros = [torch._efficientzerotensor(t.shape, dtype=t.dtype) for t in y]
        (dx,) = torch.autograd.grad(y, x, zeros)
    close(dx, torch.zeros_like(x))


@feature("subclasses with __torch_dispatch__")
def test_subclasses_with_torch_dispatch(watch):
    x = Wrapped(data()).requires_grad_()
    with watch:
        y = ours(x)
        grads = [Wrapped(upstream(t.inner.detach(), "random")) for t in y]
        (dx,) = torch.autograd.grad(y, x, grads)
    assert all(type(t) is Wrapped for t in (*y, dx))
    close(([t.inner.detach() for t in y], dx.inner), value_and_gradient(theirs))


class Ops(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name())
        return func(*args, **kwargs or {})


@feature("TorchDispatchMode")
def test_torch_dispatch_mode(watch):
    """Forward and backward are ops with names; the loss alone needs no second look at the logits."""
    for parts, backward in ((4, "row_losses_backward"), (1, "cross_entropy_backward")):
        with watch, Ops() as mode:
            value_and_gradient(lambda x, n=parts: ours(x)[:n])
        own = [op.rstrip("_") for op in mode.seen if op.startswith("softkern::")]
        assert own == ["softkern::row_losses_forward", f"softkern::{backward}"]


def like(tensors):
    return [(t.shape, t.dtype, t.stride(), t.requires_grad) for t in tensors]


@feature("meta tensors, their backward too")
@feature("fake tensors, their backward too")
@pytest.mark.parametrize("kind", ("meta", "fake"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=name)
def test_without_values(dtype, kind, watch):
    def both_ways(x, y, rows, weight):
        leaf = x.requires_grad_()
        results = ours(leaf, y, weight, rows, BY_WEIGHT)
        return *results, torch.autograd.grad([t.sum() for t in results], leaf)[0]

    given = data(dtype), Y, ROWS.to(dtype), torch.ones(10, dtype=dtype)
    mode = FakeTensorMode()
    with watch:
        if kind == "meta":
            got = both_ways(*(t.to("meta") for t in given))
        else:
            moved = [mode.from_tensor(t) for t in given]
            with mode:
                got = both_ways(*moved)
    watch.only_shapes(*got)
    assert like(got) == like(both_ways(*given))


@feature("CPU autocast to bfloat16 and float16")
@pytest.mark.parametrize("given", (torch.float32, torch.float64, *HALVES), ids=name)
@pytest.mark.parametrize("auto", HALVES, ids=name)
def test_autocast(auto, given, watch):
    """As cross_entropy: 16-bit logits become float32, and float64 stays."""
    x = data(given)
    with torch.autocast("cpu", dtype=auto), watch:
        got, dx = value_and_gradient(lambda x: ours(x, options=BY_WEIGHT), x=x.clone().requires_grad_())
    expected = torch.float64 if given == torch.float64 else torch.float32
    assert {t.dtype for t in got} == {expected} and dx.dtype == given
    want, expected = value_and_gradient(lambda x: theirs(x, options=BY_WEIGHT), x=x.double().requires_grad_())
    torch.testing.assert_close([t.double() for t in got], want, rtol=1e-5, atol=1e-5)
    eps = max(torch.finfo(given).eps, 1e-6)
    torch.testing.assert_close(dx.double(), expected, rtol=4 * eps, atol=4 * eps)


@feature("autocast disabled within autocast")
@pytest.mark.parametrize("given", (torch.float32, *HALVES), ids=name)
def test_autocast_disabled_inside(given, watch):
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False), watch:
        got = ours(data(given), options=BY_WEIGHT)
    assert got[0].dtype == given
    for a, b in zip(got, ours(data(given), options=BY_WEIGHT), strict=True):
        assert_same_bits(a, b)
