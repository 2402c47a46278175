# SPDX-License-Identifier: Apache-2.0
"""Derivatives of every kind and order, compared with numerical ones and with torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import logits, name
from cross_entropy_cases import OPTIONS, REDUCTIONS, class_weights, indices, probabilities, problem
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import softkern

# torch's own forward-mode decompositions are compiled with what torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

over_reductions = pytest.mark.parametrize("reduction", REDUCTIONS)
over_options = pytest.mark.parametrize("options", OPTIONS, ids=name)
over_softmaxes = pytest.mark.parametrize("op", ("softmax", "log_softmax"))
f64 = torch.float64
SHAPES = ((3, 4), (2, 3, 2))
FUNCTORCH = (
    "torch.func.grad",
    "torch.func.vjp",
    "torch.func.jvp",
    "jacrev",
    "jacfwd",
    "hessian",
    "vmap",
    "vmap(grad)",
)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


def bound(namespace, target, kwargs, reduction):
    """cross_entropy as a function of the logits alone."""
    return lambda x: namespace.cross_entropy(x, target, reduction=reduction, **kwargs)


def both(shape, options, reduction):
    x, target, kwargs = problem(shape, f64, **options)
    ours, theirs = (bound(n, target, kwargs, reduction) for n in (softkern, F))
    return ours, theirs, x


@pytest.mark.feature("double backward")
@over_softmaxes
@pytest.mark.parametrize("dim", (0, 1))
def test_softmax_numerically(op, dim):
    x = logits(3, 4, dtype=f64).requires_grad_()
    f = getattr(softkern, op)
    assert gradcheck(lambda t: f(t, dim), x, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(lambda t: f(t, dim), x)


@over_options
@over_reductions
@pytest.mark.parametrize("shape", SHAPES, ids=name)
def test_cross_entropy_numerically(shape, options, reduction):
    ours, _, x = both(shape, options, reduction)
    x.requires_grad_()
    assert gradcheck(ours, x, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(ours, x)


def second_derivatives(f, x):
    """The gradient, and the gradient of a weighted sum of it."""
    x = x.clone().requires_grad_()
    y = f(x)
    upstream = logits(*y.shape, dtype=f64, seed=1).requires_grad_()
    (dx,) = torch.autograd.grad(y, x, upstream, create_graph=True)
    direction = logits(*x.shape, dtype=f64, seed=2)
    return dx, *torch.autograd.grad((dx * direction).sum(), (x, upstream))


@pytest.mark.feature("double backward", "cross_entropy")
@over_options
@over_reductions
def test_double_backward_as_torch(options, reduction):
    ours, theirs, x = both((4, 5, 3), options, reduction)
    close(second_derivatives(ours, x), second_derivatives(theirs, x))


@pytest.mark.feature("double backward")
@over_softmaxes
def test_softmax_double_backward_as_torch(op):
    x = logits(4, 5, 3, dtype=f64)
    ours, theirs = (lambda t, n=n: getattr(n, op)(t, 1) for n in (softkern, F))
    close(second_derivatives(ours, x), second_derivatives(theirs, x))


def test_third_derivatives_as_torch():
    ours, theirs, x = both((2, 3), {"weight": True, "smoothing": 0.1}, "mean")

    def third(f):
        t = x.clone().requires_grad_()
        d = f(t)
        for _ in range(3):
            (d,) = torch.autograd.grad(d.sin().sum(), t, create_graph=True)
        return d

    close(third(ours), third(theirs))


def features(*names, ops):
    """Rows of docs/compatibility.md that a test speaks for."""
    return lambda test: [pytest.mark.feature(name, *ops)(test) for name in names][-1]


@features(*FUNCTORCH, ops=("cross_entropy",))
@over_options
@over_reductions
def test_functorch_as_torch(options, reduction):
    ours, theirs, x = both((3, 4), options, reduction)
    tangent = logits(3, 4, dtype=f64, seed=6)
    transforms = (
        lambda f: torch.func.grad(lambda t: f(t).sum())(x),
        lambda f: torch.func.jvp(f, (x,), (tangent,)),
        lambda f: torch.func.vjp(f, x)[1](torch.ones_like(f(x))),
        lambda f: torch.func.vmap(f)(torch.stack([x, x * 2, x - 1])),
        lambda f: torch.func.vmap(torch.func.grad(lambda t: f(t).sum()))(torch.stack([x, -x])),
        lambda f: torch.func.jacrev(f)(x),
        lambda f: torch.func.jacfwd(f)(x),
        lambda f: torch.func.hessian(lambda t: f(t).sum())(x),
    )
    for transform in transforms:
        close(transform(ours), transform(theirs))


@features("torch.func.jvp", "vmap", "vmap(grad)", "hessian", ops=("softmax", "log_softmax"))
@over_softmaxes
def test_softmax_functorch_as_torch(op):
    x, tangent = logits(3, 4, dtype=f64), logits(3, 4, dtype=f64, seed=6)
    ours, theirs = (lambda t, n=n: getattr(n, op)(t, -1) for n in (softkern, F))
    for transform in (
        lambda f: torch.func.jvp(f, (x,), (tangent,)),
        lambda f: torch.func.vmap(f)(x),
        lambda f: torch.func.vmap(f, in_dims=1, out_dims=1)(x),
        lambda f: torch.func.vmap(torch.func.grad(lambda t: (f(t) ** 2).sum()))(x),
        lambda f: torch.func.hessian(lambda t: (f(t) ** 2).sum())(x),
    ):
        close(transform(ours), transform(theirs))


@pytest.mark.feature("vmap over targets and weights", "cross_entropy")
def test_vmap_over_targets_and_weights():
    x, target, w = logits(3, 4, 5), indices((12, 5)).reshape(3, 4), class_weights(15).reshape(3, 5)
    ours, theirs = (torch.func.vmap(n.cross_entropy)(x, target, w) for n in (softkern, F))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.feature("forward-mode dual numbers", "cross_entropy")
@over_options
def test_forward_mode_tangents_are_not_dropped(options):
    """A tangent that silently vanishes is a wrong derivative of zero."""
    ours, theirs, x = both((3, 4), options, "mean")
    tangents = []
    for f in (ours, theirs):
        with forward_ad.dual_level():
            dual = f(forward_ad.make_dual(x, logits(3, 4, dtype=f64, seed=6)))
            tangents.append(forward_ad.unpack_dual(dual).tangent)
    assert tangents[0] is not None
    close(tangents[0], tangents[1])


@pytest.mark.feature("gradients in probabilities and weights", "cross_entropy")
@over_reductions
@pytest.mark.parametrize("smoothing", (0.0, 0.1))
@pytest.mark.parametrize("also", ((), ("x",), ("weight",), ("x", "weight")), ids=name)
def test_gradients_in_probabilities_and_weights_as_torch(also, smoothing, reduction):
    results = []
    for namespace in (softkern, F):
        t = {
            "target": probabilities((3, 4), f64),
            "x": logits(3, 4, dtype=f64),
            "weight": class_weights(4, f64),
        }
        wanted = [t[k].requires_grad_() for k in ("target", *also)]
        loss = namespace.cross_entropy(
            t["x"], t["target"], t["weight"], reduction=reduction, label_smoothing=smoothing
        )
        upstream = logits(*loss.shape, dtype=f64, seed=8)
        results.append(torch.autograd.grad(loss, wanted, upstream))
    close(*results)


def test_the_graph_is_not_kept_when_nothing_asks_for_it():
    """Saved tensors are freed by backward, so a loop does not pile them up."""
    x = logits(4, 5).requires_grad_()
    loss = softkern.cross_entropy(x, indices((4, 5)))
    (dx,) = torch.autograd.grad(loss, x)
    assert not dx.requires_grad and dx.grad_fn is None


@pytest.mark.parametrize("given", (torch.float32, torch.bfloat16, torch.float16), ids=name)
@pytest.mark.parametrize("auto", (torch.bfloat16, torch.float16), ids=name)
def test_autocast_gives_torchs_dtypes(given, auto):
    """On the CPU: softmax keeps its input's dtype, cross_entropy is computed in float32."""
    x, y, p = logits(4, 5, dtype=given), indices((4, 5)), probabilities((4, 5), given)
    with torch.autocast("cpu", dtype=auto):
        for ours, theirs in (
            (softkern.softmax(x, 1), F.softmax(x, 1)),
            (softkern.log_softmax(x, 1), F.log_softmax(x, 1)),
            (softkern.cross_entropy(x, y), F.cross_entropy(x, y)),
            (softkern.cross_entropy(x, p), F.cross_entropy(x, p)),
            (
                softkern.cross_entropy(x, y, class_weights(5, given)),
                F.cross_entropy(x, y, class_weights(5, given)),
            ),
        ):
            assert ours.dtype == theirs.dtype
            torch.testing.assert_close(ours, theirs, rtol=1.6e-2, atol=1e-2)


def test_autocast_trains_like_torch():
    layer = torch.nn.Linear(8, 5)
    x, y, grads = logits(16, 8), indices((16, 5)), []
    for namespace in (softkern, F):
        layer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = namespace.cross_entropy(layer(x), y)
        loss.backward()
        grads.append([p.grad.clone() for p in layer.parameters()])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-2, atol=1e-3)
