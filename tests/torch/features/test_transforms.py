# SPDX-License-Identifier: Apache-2.0
"""torch.func's transforms and all kinds of derivatives: torch's values, and which kernels compute them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cross_entropy_cases import class_weights, indices
from feature_cases import both, close, data, f64, leaf, over_ops, scalar
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

import softkern

# torch's own forward-mode decompositions are compiled with what torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def pair():
    return torch.stack([data(), data(seed=1)])


def pulled_back(y, backward):
    return y, *backward(2 * y + 1)


# row of the page: what is computed of a function and of one whose result is a number
TRANSFORMS = {
    "torch.func.grad": lambda f, number: grad(number)(data()),
    "torch.func.vjp": lambda f, number: pulled_back(*vjp(f, data())),
    "torch.func.jvp": lambda f, number: jvp(f, (data(),), (data(seed=3),)),
    "jacrev": lambda f, number: jacrev(f)(data()),
    "jacfwd": lambda f, number: jacfwd(f)(data()),
    "hessian": lambda f, number: hessian(number)(data()),
    "vmap": lambda f, number: vmap(f)(pair()),
    "vmap(grad)": lambda f, number: vmap(grad(number))(pair()),
    "vmap(vmap)": lambda f, number: vmap(vmap(f))(torch.stack([pair(), pair() - 1])),
    "grad(grad)": lambda f, number: grad(lambda x: grad(number)(x).sin().sum())(data()),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.feature(n)) for n in TRANSFORMS])
@over_ops
def test_transforms(op, name, watch):
    ours, theirs = both(op)
    with watch:
        got = TRANSFORMS[name](ours, scalar(ours))
    close(got, TRANSFORMS[name](theirs, scalar(theirs)))


@pytest.mark.feature("vmap over other dimensions")
@over_ops
def test_vmap_in_and_out_dims(op, watch):
    ours, theirs = (lambda x, f=f: f(x).expand(6, 10) for f in both(op))
    x = pair().permute(1, 2, 0)
    with watch:
        got = vmap(ours, in_dims=2, out_dims=1)(x)
    close(got, vmap(theirs, in_dims=2, out_dims=1)(x))


@pytest.mark.feature("vmap over targets and weights", "cross_entropy")
def test_vmap_over_targets_and_weights(watch):
    """The logits are not batched, what they are compared with is."""
    x, targets = data(), indices((12, 10)).reshape(2, 6)
    weights = torch.stack([class_weights(10, f64), class_weights(10, f64).flip(0)])
    with watch:
        got = vmap(softkern.cross_entropy, in_dims=(None, 0, 0))(x, targets, weights)
    close(got, torch.stack([F.cross_entropy(x, *other) for other in zip(targets, weights, strict=True)]))


@pytest.mark.feature("forward-mode dual numbers")
@over_ops
def test_dual_numbers(op, watch):
    ours, theirs = both(op)

    def parts(f):
        with forward_ad.dual_level():
            return tuple(forward_ad.unpack_dual(f(forward_ad.make_dual(data(), data(seed=3)))))

    with watch:
        got = parts(ours)
    assert got[1] is not None, "a tangent that vanishes is a derivative of zero"
    close(got, parts(theirs))


@pytest.mark.feature("forward over reverse, dual numbers through backward")
@over_ops
def test_dual_numbers_through_backward(op, watch):
    """A Hessian-vector product: the tangent of a gradient."""
    ours, theirs = (scalar(f) for f in both(op))

    def product(f):
        with forward_ad.dual_level():
            x = forward_ad.make_dual(leaf(), data(seed=3))
            (dx,) = torch.autograd.grad(f(x), x, create_graph=True)
            return forward_ad.unpack_dual(dx).tangent

    with watch:
        got = product(ours)
    close(got, product(theirs))


def first_and_second(f):
    x = leaf()
    (dx,) = torch.autograd.grad(f(x), x, create_graph=True)
    return dx, *torch.autograd.grad((dx * data(seed=2)).sum(), x)


@pytest.mark.feature("double backward")
@over_ops
def test_double_backward(op, watch):
    ours, theirs = (scalar(f) for f in both(op))
    with watch:
        got = first_and_second(ours)
    close(got, first_and_second(theirs))


@pytest.mark.feature("is_grads_batched")
@over_ops
def test_batched_upstream_gradients(op, watch):
    ours, theirs = both(op)

    def rows(f):
        x = leaf()
        y = f(x)
        upstream = torch.stack([torch.ones_like(y), y.detach() * 2 - 1, torch.zeros_like(y)])
        return torch.autograd.grad(y, x, upstream, is_grads_batched=True)[0]

    with watch:
        got = rows(ours)
    close(got, rows(theirs))


@pytest.mark.feature("torch.autograd.functional.hessian, vectorised and not")
@pytest.mark.parametrize("vectorize", (False, True))
@over_ops
def test_autograd_functional(op, vectorize, watch):
    ours, theirs = (scalar(f) for f in both(op))
    with watch:
        got = torch.autograd.functional.hessian(ours, data(), vectorize=vectorize)
    close(got, torch.autograd.functional.hessian(theirs, data(), vectorize=vectorize))


class Net(torch.nn.Module):
    def __init__(self, head):
        super().__init__()
        self.layer = torch.nn.Linear(10, 10, dtype=f64)
        self.head = head

    def forward(self, x):
        return self.head(self.layer(x))


@pytest.mark.feature("functional_call, ensembles of modules")
@over_ops
def test_functional_call(op, watch):
    """Per-member gradients of an ensemble: vmap over stacked parameters."""
    nets = [Net(None), Net(None)]
    parameters, buffers = stack_module_state(nets)

    def gradients(f):
        nets[0].head = f
        return vmap(
            grad(lambda p, b, x: functional_call(nets[0], (p, b), (x,)).square().sum()), in_dims=(0, 0, None)
        )(parameters, buffers, data())

    ours, theirs = both(op)
    with watch:
        got = gradients(ours)
    close(got, gradients(theirs))


@pytest.mark.feature("functionalize")
@over_ops
def test_functionalize(op, watch):
    """Views and in-place operations around it, too."""

    def around(f):
        def g(x):
            y = x.clone().view(6, 10)
            y[0].add_(1)
            return f(y).mul_(2)

        return g

    ours, theirs = both(op)
    with watch:
        got = torch.func.functionalize(around(ours))(data())
    close(got, around(theirs)(data()))
