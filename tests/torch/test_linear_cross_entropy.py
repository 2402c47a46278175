# SPDX-License-Identifier: Apache-2.0
"""linear_cross_entropy and torch: derivatives, transforms, autograd, autocast, training."""

from __future__ import annotations

import warnings

import pytest
import row_losses_plain as plain
import torch
import torch.nn.functional as F
from cases import HALVES, LAYOUTS, UPSTREAM, logits, upstream
from cases import name as id_of
from compare import assert_same_bits
from feature_cases import close, f64
from linear_features import OPS, B, W, X, Y, ours, pinned, theirs, weights
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import softkern

# What torch says about itself while it differentiates forward.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning"),
]


def feature(row: str):
    """The mark of a test for this row of docs/compatibility.md."""
    return pytest.mark.feature(row, "linear_cross_entropy")


def number(f):
    """One number that all results move, with derivatives of all orders."""
    return lambda *args: sum((t**2).sum() for t in f(*args))


def leaves():
    return [t.clone().requires_grad_() for t in (X, W, B)]


def both_ways(f, kind="random", layer=None):
    layer = leaves() if layer is None else layer
    found = f(*layer)
    grads = [upstream(t.detach(), kind) for t in found]
    return [t.detach() for t in found], torch.autograd.grad(found, layer, grads)


@pytest.mark.parametrize("plan", ("fast", "lean"))
@pytest.mark.parametrize("reduction", ("mean", "none"))
def test_gradcheck(reduction, plan):
    """First derivatives by the kernels; second ones, and those in forward mode, by ATen's ops."""
    f = pinned(plan, reduction)
    assert gradcheck(f, leaves())
    assert gradgradcheck(f, leaves())
    assert gradcheck(
        f, leaves(), check_forward_ad=True, check_backward_ad=False, check_batched_forward_grad=True
    )


def two(t):
    return torch.stack([t, t.flip(0)])


TRANSFORMS = {
    "torch.func.grad": lambda f: grad(number(f), (0, 1, 2))(X, W, B),
    "torch.func.vjp": lambda f: (lambda y, back: (y, *back(tuple(2 * t + 1 for t in y))))(*vjp(f, X, W, B)),
    "torch.func.jvp": lambda f: jvp(f, (X, W, B), (X.flip(0), W + 1, B * B)),
    "jacrev": lambda f: jacrev(f, (0, 1))(X, W, B),
    "jacfwd": lambda f: jacfwd(f)(X, W, B),
    "hessian": lambda f: hessian(lambda x, b: number(f)(x, W, b), (0, 1))(X, B),
    "vmap": lambda f: vmap(f, in_dims=(0, None, 0))(two(X), W, two(B)),
    "vmap(grad)": lambda f: vmap(grad(number(f), 1), in_dims=(None, 0, None))(X, two(W), B),
    "grad(grad)": lambda f: grad(lambda x: grad(number(f))(x, W, B).sin().sum())(X),
}


@pytest.mark.parametrize("transform", [pytest.param(n, marks=feature(n)) for n in TRANSFORMS])
def test_transforms(transform, watch):
    with watch:
        got = TRANSFORMS[transform](ours)
    close(got, TRANSFORMS[transform](theirs))


@feature("forward-mode dual numbers")
@pytest.mark.parametrize("moved", range(3))
def test_dual_numbers(moved, watch):
    def parts(f):
        with forward_ad.dual_level():
            layer = [X, W, B]
            layer[moved] = forward_ad.make_dual(layer[moved], layer[moved].sin())
            return [tuple(forward_ad.unpack_dual(t)) for t in f(*layer)]

    with watch:
        got = parts(ours)
    assert all(tangent is not None for _, tangent in got)
    close(got, parts(theirs))


@feature("double backward")
def test_double_backward(watch):
    def first_and_second(f):
        layer = leaves()
        first = torch.autograd.grad(number(f)(*layer), layer, create_graph=True)
        return first, torch.autograd.grad(sum(t.sin().sum() for t in first), layer)

    with watch:
        got = first_and_second(ours)
    close(got, first_and_second(theirs))


@feature("is_grads_batched")
def test_batched_upstream_gradients(watch):
    def rows(f):
        layer = leaves()
        y = f(*layer)
        grads = [torch.stack([torch.ones_like(t), t.detach() * 2 - 1, torch.zeros_like(t)]) for t in y]
        return torch.autograd.grad(y, layer, grads, is_grads_batched=True)

    with watch:
        got = rows(ours)
    close(got, rows(theirs))


@feature("upstream gradients: ones, random, stride 0")
@pytest.mark.parametrize("kind", UPSTREAM)
def test_upstream_gradients(kind, watch):
    with watch:
        got = both_ways(ours, kind)
    close(got, both_ways(theirs, kind))


@feature("inputs that are not leaves, hooks on them")
def test_inputs_that_are_not_leaves(watch):
    """A head tied to an embedding: its weight is used twice."""

    def gradients(f):
        x, w, b = leaves()
        seen = []
        hidden = (x + w[Y.clamp_min(0)]).tanh()
        hidden.register_hook(lambda g: seen.append(g.clone()) or g * 2)
        number(f)(hidden, w * 1.5, b).backward()
        return x.grad, w.grad, b.grad, *seen

    with watch:
        got = gradients(ours)
    close(got, gradients(theirs))


@feature("retain_graph")
def test_a_kept_graph_is_not_changed(watch):
    layer = leaves()
    with watch:
        y = ours(*layer)
        grads = [upstream(t.detach(), "random") for t in y]
        first, alone, again = (
            torch.autograd.grad(y[:n], layer, grads[:n], retain_graph=True) for n in (len(y), 1, len(y))
        )
    for a, b in zip(again, first, strict=True):
        assert_same_bits(a, b)
    close((first, alone), (both_ways(theirs)[1], both_ways(lambda *layer: theirs(*layer)[:1])[1]))


@feature("a freed graph")
def test_a_freed_graph_says_so(watch):
    with watch:
        total = number(ours)(*leaves())
    total.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        total.backward()


@feature("no_grad")
@feature("inference_mode")
@pytest.mark.parametrize("mode", (torch.no_grad, torch.inference_mode))
def test_without_gradients(mode, watch):
    with mode():
        with watch:
            got = ours(*leaves())
        assert not any(t.requires_grad for t in got)
        close(got, theirs(*leaves()))


@feature("gradients in probabilities and weights")
def test_gradients_in_probabilities_and_weights(watch):
    """And in weights of rows, and in the divisor."""
    teacher = logits(len(X), len(W), dtype=f64, seed=4).softmax(1)

    def gradients(f):
        given = [
            t.clone().requires_grad_() for t in (X, W, B, teacher, *weights(), torch.tensor(2.5, dtype=f64))
        ]
        x, w, b, t, of_classes, of_rows, items = given
        options = {"row_weight": of_rows, "num_items": items, "z_loss": 0.1}
        if f is theirs:
            loss = plain.row_losses(F.linear(x, w, b), t, of_classes, **options).loss
        else:
            loss = softkern.linear_cross_entropy(x, w, t, linear_bias=b, weight=of_classes, **options)
        return torch.autograd.grad(loss, given)

    with watch:
        got = gradients(ours)
    close(got, gradients(theirs))


@feature("saved-tensor hooks")
def test_saved_tensor_hooks(watch):
    """Kept as bytes elsewhere, all of it: what backward uses is what unpack returns."""
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda t: (t.detach().numpy().tobytes(), t.dtype, t.shape),
        lambda kept: torch.frombuffer(bytearray(kept[0]), dtype=kept[1]).reshape(kept[2]),
    )
    with watch, hooks:
        got = both_ways(ours)
    close(got, both_ways(theirs))


@feature("activation checkpointing, reentrant and not")
@pytest.mark.parametrize("use_reentrant", (True, False))
def test_checkpoint(use_reentrant, watch):
    def gradients(f):
        layer = leaves()
        y = checkpoint(lambda x, w, b: f(x * 2, w, b), *layer, use_reentrant=use_reentrant)
        sum((t**2).sum() for t in y).backward()
        return [t.detach() for t in y], [t.grad for t in layer]

    with watch:
        got = gradients(ours)
    close(got, gradients(theirs))


@feature("detect_anomaly")
def test_anomaly_mode(watch):
    x, w, b = leaves()
    with torch.no_grad():
        x[0, 1] = torch.nan
    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("always")
        with torch.autograd.detect_anomaly(), watch:
            loss = ours(x, w, b)[0]
            node = "SoftkernLinearCrossEntropyBackward"
            assert loss.grad_fn.name() == node
            with pytest.raises(RuntimeError, match=f"'{node}' returned nan values"):
                loss.backward()
    assert any("in ours" in str(w.message) for w in log)


@feature("any strides")
@pytest.mark.parametrize("layout", [n for n in LAYOUTS if n != "channels_last"])
def test_strides(layout, watch):
    layer = [LAYOUTS[layout](t).detach() for t in (X, W)]
    with watch:
        got = both_ways(ours, layer=[*(t.requires_grad_() for t in layer), B.clone().requires_grad_()])
    close(got, both_ways(theirs, layer=[*layer, B.clone().requires_grad_()]))


class Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "softkern":
            self.names.append(func.name().removeprefix("softkern::"))
        return func(*args, **kwargs or {})


@feature("TorchDispatchMode")
@pytest.mark.parametrize(
    ("plan", "backward"), (("fast", "cross_entropy_backward"), ("lean", "linear_cross_entropy_backward"))
)
def test_torch_dispatch_mode(plan, backward, watch):
    """Forward and backward are ops with names. A backward of fast scales what the forward has saved."""
    with watch, Calls() as mode:
        both_ways(lambda *layer: (pinned(plan, "mean")(*layer),))
    assert [n.rstrip("_") for n in dict.fromkeys(mode.names)] == ["linear_cross_entropy_forward", backward]


@feature("CPU autocast to bfloat16 and float16")
@pytest.mark.parametrize("given", (torch.float32, *HALVES), ids=id_of)
@pytest.mark.parametrize("auto", HALVES, ids=id_of)
def test_autocast(auto, given, watch):
    """The layer as F.linear, in autocast's dtype, the loss as F.cross_entropy, in float32.

    Nearer to float64 than the two, since no logits are rounded.
    """

    def gradients(f, layer):
        layer = [t.detach().clone().requires_grad_() for t in layer]
        with torch.autocast("cpu", dtype=auto):
            loss = f(*layer)
        loss.backward()
        return loss.detach(), *(t.grad for t in layer)

    layer = [t.to(given) for t in (X, W, B)]
    exact = [t.to(auto).double().requires_grad_() for t in layer]
    F.cross_entropy(F.linear(*exact), Y).backward()
    with watch:
        got = gradients(lambda x, w, b: softkern.linear_cross_entropy(x, w, Y, linear_bias=b), layer)
    want = gradients(lambda x, w, b: F.cross_entropy(F.linear(x, w, b), Y), layer)
    assert [t.dtype for t in got] == [t.dtype for t in want] == [torch.float32, given, given, given]
    loss = F.cross_entropy(F.linear(*exact), Y)
    torch.testing.assert_close(got[0].double(), loss.detach(), rtol=1e-6, atol=0)
    eps = max(torch.finfo(auto).eps, torch.finfo(given).eps)
    for a, t in zip(got[1:], exact, strict=True):
        torch.testing.assert_close(a.double(), t.grad, rtol=eps, atol=eps * float(t.grad.abs().max()))


@feature("autocast disabled within autocast")
@pytest.mark.parametrize("given", (torch.float32, *HALVES), ids=id_of)
def test_autocast_disabled_inside(given, watch):
    layer = [t.to(given) for t in (X, W)]
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False), watch:
        got = softkern.linear_cross_entropy(*layer, Y)
    assert_same_bits(got, softkern.linear_cross_entropy(*layer, Y))
    assert got.dtype == given


@pytest.mark.parametrize("plan", ("fast", "lean"))
def test_micro_batches_that_are_accumulated(plan):
    """With the whole batch's divisor; one of them has no rows, and one only ignored ones."""
    whole, parts = leaves(), leaves()
    loss = pinned(plan, "mean")(*whole)
    loss.backward()
    items, total = (Y != -100).sum(), 0
    ignored = (Y == -100).nonzero()[0, 0]
    assert 1 < ignored < 5
    for rows in (
        slice(0, 1),
        slice(1, ignored),
        slice(ignored, ignored + 1),
        slice(ignored + 1, 6),
        slice(6, 6),
    ):
        x, w, b = parts
        part = softkern.linear_cross_entropy(
            x[rows],
            w,
            Y[rows],
            linear_bias=b,
            num_items=items,
            options=softkern.LinearCrossEntropyOptions(plan=plan),
        )
        part.backward()
        total += part.detach()
    close(total, loss.detach())
    close([t.grad for t in parts], [t.grad for t in whole])


# Nothing differentiates the ops below.
CHECKS = ("test_schema", "test_faketensor")


@pytest.mark.parametrize(("plan", "target"), ((1, "index"), (2, "index"), (0, "indices"), (2, "probs")))
def test_opcheck(plan, target):
    """Of the three ops; the results that backward reads are those of forward."""
    x, w, b = leaves()
    y, probs = Y, None
    if target == "indices":
        y, probs = torch.stack([Y.clamp_min(0), Y.clamp_min(1)], 1), torch.rand(6, 2, dtype=f64)
    elif target == "probs":
        y = logits(6, len(W), dtype=f64).softmax(1)
    outputs = 13 if target == "probs" else 15  # no log_prob
    tensors = (y, weights()[0], weights()[1], torch.tensor(3.5, dtype=f64), probs)
    options = softkern.options.LinearOptions(outputs=outputs, plan=plan, softcap=4.0, z_loss=0.1)
    torch.library.opcheck(OPS.linear_cross_entropy.default, (x, w, b, *tensors, *options))
    with torch.no_grad():
        forward = (x, w, b, *tensors, *options)
        for needs in (0, 3):
            torch.library.opcheck(
                OPS.linear_cross_entropy_forward.default, (*forward, needs), test_utils=CHECKS
            )
        found = OPS.linear_cross_entropy_forward(x, w, b, *tensors, *options, 7)
        grads = [t.cos() if t.dim() != 1 or len(t) else None for t in found[:4]]
        backward = (*grads, found[-1], *forward, 5)
        torch.library.opcheck(OPS.linear_cross_entropy_backward.default, backward, test_utils=CHECKS)
