# SPDX-License-Identifier: Apache-2.0
"""cross_entropy with softkern's own options and statistics: transforms, and features of torch's autograd."""

from __future__ import annotations

import warnings

import pytest
import row_losses_plain as plain
import torch
from cases import UPSTREAM, upstream
from compare import assert_same_bits
from cross_entropy_cases import class_weights, probabilities
from feature_cases import SHAPE, close, data, f64, leaf
from row_losses_features import OPTIONS, ROWS, Y, feature, number, ours, theirs, value_and_gradient
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import softkern

# What torch says about itself while it compiles, exports and differentiates forward.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning"),
]


def pair():
    return torch.stack([data(), data(seed=1)])


def pulled_back(y, backward):
    return y, *backward(tuple(2 * t + 1 for t in y))


TRANSFORMS = {
    "torch.func.grad": lambda f: grad(number(f))(data()),
    "torch.func.vjp": lambda f: pulled_back(*vjp(f, data())),
    "torch.func.jvp": lambda f: jvp(f, (data(),), (data(seed=3),)),
    "jacrev": lambda f: jacrev(f)(data()),
    "jacfwd": lambda f: jacfwd(f)(data()),
    "hessian": lambda f: hessian(number(f))(data()),
    "vmap": lambda f: vmap(f)(pair()),
    "vmap(grad)": lambda f: vmap(grad(number(f)))(pair()),
    "vmap(vmap)": lambda f: vmap(vmap(f))(torch.stack([pair(), pair() - 1])),
    "grad(grad)": lambda f: grad(lambda x: grad(number(f))(x).sin().sum())(data()),
    "vmap over other dimensions": lambda f: vmap(f, in_dims=2)(pair().permute(1, 2, 0)),
    "vmap over targets and weights": lambda f: vmap(f, in_dims=(None, 0, 0, 0))(
        data(),
        torch.stack([Y, Y.roll(1)]),
        torch.stack([class_weights(10, f64), class_weights(10, f64).flip(0)]),
        torch.stack([ROWS, ROWS + 1]),
    ),
    "torch.autograd.functional.hessian, vectorised and not": lambda f: [
        torch.autograd.functional.hessian(number(f), data(), vectorize=v) for v in (False, True)
    ],
}


@pytest.mark.parametrize("transform", [pytest.param(n, marks=feature(n)) for n in TRANSFORMS])
def test_transforms(transform, watch):
    with watch:
        got = TRANSFORMS[transform](ours)
    close(got, TRANSFORMS[transform](theirs))


@feature("functionalize")
def test_functionalize(watch):
    def around(f):
        def g(x):
            y = x.clone().view(6, 10)
            y[0].add_(1)
            return sum(t.mul_(2).sum() for t in f(y))

        return g

    with watch:
        got = torch.func.functionalize(around(ours))(data())
    close(got, around(lambda x: [t.clone() for t in theirs(x)])(data()))


@feature("forward-mode dual numbers")
def test_dual_numbers(watch):
    def parts(f):
        with forward_ad.dual_level():
            return [tuple(forward_ad.unpack_dual(t)) for t in f(forward_ad.make_dual(data(), data(seed=3)))]

    with watch:
        got = parts(ours)
    assert all(tangent is not None for _, tangent in got)
    close(got, parts(theirs))


@feature("forward over reverse, dual numbers through backward")
def test_dual_numbers_through_backward(watch):
    def product(f):
        with forward_ad.dual_level():
            x = forward_ad.make_dual(leaf(), data(seed=3))
            (dx,) = torch.autograd.grad(number(f)(x), x, create_graph=True)
            return forward_ad.unpack_dual(dx).tangent

    with watch:
        got = product(ours)
    close(got, product(theirs))


@feature("double backward")
def test_double_backward(watch):
    def first_and_second(f):
        x = leaf()
        (dx,) = torch.autograd.grad(number(f)(x), x, create_graph=True)
        return dx, *torch.autograd.grad((dx * data(seed=2)).sum(), x)

    with watch:
        got = first_and_second(ours)
    close(got, first_and_second(theirs))


@feature("is_grads_batched")
def test_batched_upstream_gradients(watch):
    def rows(f):
        x = leaf()
        y = f(x)
        grads = [torch.stack([torch.ones_like(t), t.detach() * 2 - 1, torch.zeros_like(t)]) for t in y]
        return torch.autograd.grad(y, x, grads, is_grads_batched=True)[0]

    with watch:
        got = rows(ours)
    close(got, rows(theirs))


@feature("upstream gradients: ones, random, stride 0")
@pytest.mark.parametrize("kind", UPSTREAM)
def test_upstream_gradients(kind, watch):
    with watch:
        got = value_and_gradient(ours, kind)
    close(got, value_and_gradient(theirs, kind))


@feature("inputs that are not leaves, hooks on them")
def test_inputs_that_are_not_leaves(watch):
    def gradients(f):
        x, seen = leaf(), []
        hidden = (x @ torch.eye(10, dtype=f64) * 0.5).relu()
        hidden.retain_grad()
        hidden.register_hook(lambda g: seen.append(g.clone()) or g * 2)
        number(f)(hidden).backward()
        return x.grad, hidden.grad, *seen

    with watch:
        got = gradients(ours)
    close(got, gradients(theirs))


@feature("retain_graph")
def test_a_kept_graph_is_not_changed(watch):
    x = leaf()
    with watch:
        y = ours(x)
        grads = [upstream(t.detach(), "random") for t in y]
        first, alone, again = (
            torch.autograd.grad(y[:n], x, grads[:n], retain_graph=True)[0] for n in (4, 1, 4)
        )
    assert_same_bits(again, first)
    close((first, alone), (value_and_gradient(theirs)[1], value_and_gradient(lambda x: theirs(x)[:1])[1]))


@feature("a freed graph")
def test_a_freed_graph_says_so(watch):
    with watch:
        total = number(ours)(leaf())
    total.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        total.backward()


@feature("no_grad")
@feature("inference_mode")
@pytest.mark.parametrize("mode", (torch.no_grad, torch.inference_mode))
def test_without_gradients(mode, watch):
    with mode():
        with watch:
            got = ours(leaf())
        assert not any(t.requires_grad for t in got)
        close(got, theirs(leaf()))


@feature("gradients in probabilities and weights")
@pytest.mark.parametrize("target", ("probabilities", "indices"))
def test_gradients_in_probabilities_and_weights(target, watch):
    """And in the weights of rows, and in the divisor."""
    k = torch.tensor([[0, 1], [6, 6], [2, 0], [3, 4], [5, 5], [1, 1]])
    teacher = probabilities(SHAPE, f64) if target == "probabilities" else torch.rand(6, 2, dtype=f64)

    def gradients(f):
        given = {
            "x": data(),
            "t": teacher,
            "w": class_weights(10, f64),
            "r": ROWS,
            "n": torch.tensor(2.5, dtype=f64),
        }
        given = {k: v.clone().requires_grad_() for k, v in given.items()}
        x, t, w, r, n = given.values()
        y = (t, None) if target == "probabilities" else (k, t)
        options = {**OPTIONS, "num_items": n}
        loss = f(x, y[0], w, row_weight=r, target_probs=y[1], **options)
        loss = loss if f is softkern.cross_entropy else loss.loss
        return torch.autograd.grad(loss, given.values())

    with watch:
        got = gradients(softkern.cross_entropy)
    close(got, gradients(plain.row_losses))


@feature("saved-tensor hooks")
def test_saved_tensor_hooks(watch):
    """Kept as bytes elsewhere, all of it: what backward uses is what unpack returns."""
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda t: (t.detach().numpy().tobytes(), t.dtype, t.shape),
        lambda kept: torch.frombuffer(bytearray(kept[0]), dtype=kept[1]).reshape(kept[2]),
    )
    with watch, hooks:
        got = value_and_gradient(ours)
    close(got, value_and_gradient(theirs))
    doubled = torch.autograd.graph.saved_tensors_hooks(
        lambda t: t, lambda t: t * 2 if t.is_floating_point() else t
    )
    for f in (ours, lambda x: ours(x)[:1]):
        with doubled:
            other = value_and_gradient(f)[1]
        assert not torch.allclose(other, value_and_gradient(f)[1], rtol=1e-3), "something went past the hooks"


@feature("save_on_cpu")
def test_save_on_cpu(watch):
    with watch, torch.autograd.graph.save_on_cpu():
        got = value_and_gradient(ours)
    close(got, value_and_gradient(theirs))


@feature("allow_mutation_on_saved_tensors")
def test_mutation_of_saved_tensors(watch):
    def gradient(f):
        x = leaf()
        hidden = x * 1.0
        y = f(hidden)
        with torch.no_grad():
            hidden.zero_()
        return torch.autograd.grad(sum(t.sum() for t in y), x)[0]

    with watch, torch.autograd.graph.allow_mutation_on_saved_tensors():
        got = gradient(ours)
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        close(got, gradient(theirs))


@feature("activation checkpointing, reentrant and not")
@pytest.mark.parametrize("use_reentrant", (True, False))
def test_checkpoint(use_reentrant, watch):
    def gradient(f):
        x = leaf()
        y = checkpoint(lambda x: f(x * 2), x * 1, use_reentrant=use_reentrant)
        sum((t**2).sum() for t in y).backward()
        return [t.detach() for t in y], x.grad

    with watch:
        got = gradient(ours)
    close(got, gradient(theirs))


class Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **kwargs or {})


@feature("selective checkpointing")
@pytest.mark.parametrize("keep", (True, False))
def test_selective_checkpoint(keep, watch):
    op = "softkern::row_losses_forward"

    def policy(ctx, func, *args, **kwargs):
        kept = keep and func.name() == op
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    def gradient(f):
        x = leaf()
        context = lambda: create_selective_checkpoint_contexts(policy)  # noqa: E731
        y = checkpoint(lambda x: number(f)(x * 2), x, use_reentrant=False, context_fn=context)
        y.backward()
        return y.detach(), x.grad

    calls = Calls()
    with watch, calls:
        got = gradient(ours)
    assert calls.names.count(op) == (1 if keep else 2)
    close(got, gradient(theirs))


@feature("detect_anomaly")
def test_anomaly_mode(watch):
    x = data()
    x[0, 2] = torch.nan
    x.requires_grad_()
    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("always")
        with torch.autograd.detect_anomaly(), watch:
            loss = ours(x)[0]
            assert loss.grad_fn.name() == "SoftkernRowLossesBackward"
            with pytest.raises(RuntimeError, match="'SoftkernRowLossesBackward' returned nan values"):
                loss.backward()
    assert any("in ours" in str(w.message) for w in log)
