# SPDX-License-Identifier: Apache-2.0
"""Features of torch's autograd around a backward: torch's values, and which kernels compute them."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from cases import UPSTREAM, upstream
from compare import assert_same_bits
from cross_entropy_cases import class_weights, probabilities
from feature_cases import SHAPE, TARGET, both, close, data, f64, leaf, over_ops

import softkern


def value_and_gradient(f, kind="random", x=None):
    x = leaf() if x is None else x
    y = f(x)
    return y.detach(), torch.autograd.grad(y, x, upstream(y, kind))[0]


@pytest.mark.feature("upstream gradients: ones, random, stride 0")
@pytest.mark.parametrize("kind", UPSTREAM)
@over_ops
def test_upstream_gradients(op, kind, watch):
    ours, theirs = both(op)
    with watch:
        got = value_and_gradient(ours, kind)
    close(got, value_and_gradient(theirs, kind))


@pytest.mark.feature("upstream gradients: transposed, of another dtype's cast")
@over_ops
def test_upstream_gradients_through_views_and_casts(op, watch):
    """What comes from above is neither contiguous nor made by hand."""
    ours, theirs = both(op)

    def gradient(f):
        x = leaf()
        y = f(x)
        y = y.t() if y.dim() else y
        (y.float().double() * torch.arange(1, y.numel() + 1).reshape(y.shape)).sum().backward()
        return x.grad

    with watch:
        got = gradient(ours)
    torch.testing.assert_close(got, gradient(theirs), rtol=1e-6, atol=1e-7)


@pytest.mark.feature("retain_graph")
@over_ops
def test_a_kept_graph_is_not_changed(op, watch):
    ours, theirs = both(op)

    def thrice(f):
        x = leaf()
        y = f(x)
        return [
            torch.autograd.grad(y, x, upstream(y, kind), retain_graph=True)[0]
            for kind in ("random", "ones", "random")
        ]

    with watch:
        got = thrice(ours)
    assert_same_bits(got[2], got[0], "the second backward changed what the third reads")
    close(got, thrice(theirs))


@pytest.mark.feature("a freed graph")
@over_ops
def test_a_freed_graph_says_so(op, watch):
    errors = []
    for f in both(op):
        x = leaf()
        y = f(x) if errors else watched(watch, f, x)
        y.sum().backward()
        with pytest.raises(RuntimeError, match="backward through the graph a second time") as error:
            y.sum().backward()
        errors.append(str(error.value))
    assert errors[0] == errors[1]


def watched(watch, f, *args):
    with watch:
        return f(*args)


@pytest.mark.feature("inputs that are not leaves, hooks on them")
@over_ops
def test_inputs_that_are_not_leaves(op, watch):
    def gradients(f):
        x, seen = leaf(), []
        hidden = (x @ torch.eye(10, dtype=f64) * 0.5).relu()
        hidden.retain_grad()
        hidden.register_hook(lambda g: seen.append(g.clone()) or g * 2)
        value_and_gradient(f, x=hidden)
        f(hidden).square().sum().backward()
        return x.grad, hidden.grad, *seen

    ours, theirs = both(op)
    with watch:
        got = gradients(ours)
    close(got, gradients(theirs))


@pytest.mark.feature("no_grad")
@over_ops
def test_no_grad(op, watch):
    ours, theirs = both(op)
    with torch.no_grad():
        with watch:
            got = ours(leaf())
        want = theirs(leaf())
    assert not got.requires_grad and got.grad_fn is None
    close(got, want)


@pytest.mark.feature("inference_mode")
@over_ops
def test_inference_mode(op, watch):
    ours, theirs = both(op)
    with torch.inference_mode():
        with watch:
            got = ours(leaf())
        want = theirs(leaf())
        assert got.is_inference() and want.is_inference()
        close(got, want)


@pytest.mark.feature("gradients in probabilities and weights", "cross_entropy")
@pytest.mark.parametrize("wanted", ("target", "weight"))
def test_gradients_in_probabilities_and_weights(wanted, watch):
    teacher = probabilities(SHAPE, f64)  # torch's softmax of something: not to be watched

    def gradients(f):
        given = {"input": data(), "target": teacher.clone(), "weight": class_weights(10, f64)}
        leaves = [given["input"].requires_grad_(), given[wanted].requires_grad_()]
        return torch.autograd.grad(f(**given, label_smoothing=0.1), leaves)

    with watch:
        got = gradients(softkern.cross_entropy)
    close(got, gradients(F.cross_entropy))


@pytest.mark.feature("saved-tensor hooks")
@over_ops
def test_saved_tensor_hooks(op, watch):
    """Kept as bytes elsewhere, all of it: what backward uses is what unpack returns."""
    packed, unpacked = [], []

    def pack(t):
        packed.append(t)
        return t.detach().numpy().tobytes(), t.dtype, t.shape

    def unpack(kept):
        unpacked.append(kept)
        return torch.frombuffer(bytearray(kept[0]), dtype=kept[1]).reshape(kept[2])

    ours, theirs = both(op)
    with watch, torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        got = value_and_gradient(ours)
    assert packed and unpacked
    close(got, value_and_gradient(theirs))


@pytest.mark.feature("saved-tensor hooks")
@over_ops
def test_saved_tensor_hooks_are_believed(op, watch):
    """Doubled on the way: the gradient is another one, so nothing went past the hooks."""
    ours, _ = both(op)
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda t: t, lambda t: t * 2 if t.is_floating_point() else t
    )
    with watch, hooks:
        got = value_and_gradient(ours)[1]
    assert not torch.allclose(got, value_and_gradient(ours)[1], rtol=1e-3)


@pytest.mark.feature("save_on_cpu")
@over_ops
def test_save_on_cpu(op, watch):
    ours, theirs = both(op)
    with watch, torch.autograd.graph.save_on_cpu():
        got = value_and_gradient(ours)
    close(got, value_and_gradient(theirs))


@pytest.mark.feature("allow_mutation_on_saved_tensors")
@over_ops
def test_mutation_of_saved_tensors(op, watch):
    ours, theirs = both(op)

    def gradient(f):
        x = leaf()
        hidden = x * 1.0
        y = f(hidden)
        loss = y.square().sum()
        with torch.no_grad():
            hidden.zero_()
            y.zero_()
        return torch.autograd.grad(loss, x)[0]

    with watch, torch.autograd.graph.allow_mutation_on_saved_tensors():
        got = gradient(ours)
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        want = gradient(theirs)
    assert want.abs().max() > 0
    close(got, want)


@pytest.mark.feature("detect_anomaly")
@over_ops
def test_anomaly_mode(op, watch):
    """The node is named, and the traceback leads to the call."""
    x = data()
    x[0, 2] = torch.nan
    x.requires_grad_()
    ours, _ = both(op)

    def a_forward_that_is_found():
        return ours(x)

    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("always")
        with torch.autograd.detect_anomaly(), watch:
            y = a_forward_that_is_found()
            node = y.grad_fn.name()
            with pytest.raises(RuntimeError, match=f"'{node}' returned nan values in its 0th output"):
                y.backward(torch.ones_like(y))
    assert node == "Softkern" + op.title().replace("_", "") + "Backward"
    assert any("a_forward_that_is_found" in str(w.message) for w in log)


@pytest.mark.feature("detect_anomaly")
@over_ops
def test_anomaly_mode_lets_numbers_pass(op, watch):
    ours, theirs = both(op)
    with pytest.warns(UserWarning, match="Anomaly Detection has been enabled"):
        context = torch.autograd.detect_anomaly()
    with context, watch:
        got = value_and_gradient(ours)
    close(got, value_and_gradient(theirs))


@pytest.mark.feature("deterministic algorithms")
@over_ops
def test_deterministic_algorithms(op, watch):
    """Of softkern's there are no others: nothing throws, nothing changes."""
    ours, theirs = both(op)
    before = value_and_gradient(ours)
    torch.use_deterministic_algorithms(True)
    try:
        with watch:
            got = value_and_gradient(ours)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same_bits(got[0], before[0])
    assert_same_bits(got[1], before[1])
    close(got, value_and_gradient(theirs))


@pytest.mark.parametrize("reduction", ("none", "mean", "sum"))
@pytest.mark.feature("deterministic algorithms", "cross_entropy")
def test_deterministic_algorithms_of_images(reduction, watch):
    """torch's nll_loss2d is one of those that throw on other devices."""
    x, target = data().reshape(1, 6, 10, 1), TARGET.new_tensor([[[0], [5]] * 5])
    torch.use_deterministic_algorithms(True)
    try:
        with watch:
            got = softkern.cross_entropy(x, target.reshape(1, 10, 1), reduction=reduction)
    finally:
        torch.use_deterministic_algorithms(False)
    close(got, F.cross_entropy(x, target.reshape(1, 10, 1), reduction=reduction))
