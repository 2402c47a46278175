# SPDX-License-Identifier: Apache-2.0
"""Everything except the numbers: signatures, modules, dtypes, strides, autograd's bookkeeping."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from cases import LAYOUTS, logits, name
from compare import assert_same_bits
from cross_entropy_cases import REDUCTIONS, class_weights, indices, probabilities
from tolerances import DTYPES

import softkern

FUNCTIONS = ("softmax", "log_softmax", "cross_entropy")
over_functions = pytest.mark.parametrize("function", FUNCTIONS)
over_softmaxes = pytest.mark.parametrize("op", ("softmax", "log_softmax"))
over_reductions = pytest.mark.parametrize("reduction", REDUCTIONS)

X, Y, W = logits(6, 10), indices((6, 10)), class_weights(10)


def call(function, x, namespace=softkern, **kwargs):
    f = getattr(namespace, function)
    return f(x, Y, **kwargs) if function == "cross_entropy" else f(x, 1, **kwargs)


@over_functions
def test_signatures_are_torchs_and_more_comes_keyword_only_after(function):
    ours = list(inspect.signature(getattr(softkern, function)).parameters.values())
    theirs = list(inspect.signature(getattr(F, function)).parameters.values())

    def shape(parameters):
        return [(p.name, p.kind, p.default) for p in parameters]

    assert shape(ours[: len(theirs)]) == shape(theirs)
    assert all(p.kind is p.KEYWORD_ONLY for p in ours[len(theirs) :])


@pytest.mark.parametrize("module", ("CrossEntropyLoss", "Softmax", "LogSoftmax"))
def test_modules_are_torchs_with_torchs_signature(module):
    ours, theirs = getattr(softkern, module), getattr(torch.nn, module)
    assert issubclass(ours, theirs) and ours is not theirs
    want = list(inspect.signature(theirs).parameters.values())
    got = list(inspect.signature(ours).parameters.values())[: len(want)]
    assert [(p.name, p.default) for p in got] == [(p.name, p.default) for p in want]
    assert ours.__name__ == module


LOSSES = (
    {},
    {"reduction": "sum"},
    {"reduction": "none", "ignore_index": 3},
    {"label_smoothing": 0.1},
    {"weight": W, "ignore_index": 2, "label_smoothing": 0.2},
)


@pytest.mark.parametrize("kwargs", LOSSES, ids=range(len(LOSSES)))
def test_the_loss_module(kwargs):
    ours, theirs = softkern.CrossEntropyLoss(**kwargs), torch.nn.CrossEntropyLoss(**kwargs)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict()) == ["weight"] * ("weight" in kwargs)
    torch.testing.assert_close(ours(X, Y), theirs(X, Y))
    assert_same_bits(ours(X, Y), softkern.cross_entropy(X, Y, **kwargs))
    for twin in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
        assert type(twin) is softkern.CrossEntropyLoss
        assert_same_bits(twin(X, Y), ours(X, Y))


def test_the_loss_module_takes_the_state_of_torchs():
    ours, theirs = softkern.CrossEntropyLoss(torch.ones(10)), torch.nn.CrossEntropyLoss(W)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(X, Y), theirs(X, Y))
    assert ours.double().weight.dtype == torch.float64
    torch.testing.assert_close(ours(X.double(), Y), theirs.double()(X.double(), Y))


@pytest.mark.parametrize("kwargs", ({"size_average": False}, {"reduce": False}), ids=str)
def test_the_loss_module_takes_the_legacy_arguments(kwargs):
    with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
        ours = softkern.CrossEntropyLoss(**kwargs)
    with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
        theirs = torch.nn.CrossEntropyLoss(**kwargs)
    assert ours.reduction == theirs.reduction
    torch.testing.assert_close(ours(X, Y), theirs(X, Y))


@pytest.mark.parametrize("module", ("Softmax", "LogSoftmax"))
def test_the_softmax_modules(module):
    ours, theirs = getattr(softkern, module)(dim=0), getattr(torch.nn, module)(dim=0)
    assert repr(ours) == repr(theirs) and not ours.state_dict()
    torch.testing.assert_close(ours(X), theirs(X))
    twin = pickle.loads(pickle.dumps(ours))
    assert type(twin) is getattr(softkern, module) and twin.dim == 0
    ours, theirs = getattr(softkern, module)(), getattr(torch.nn, module)()
    assert repr(ours) == repr(theirs)
    with pytest.warns(UserWarning, match="Implicit dimension choice"):
        y = ours(X)
    assert_same_bits(y, getattr(softkern, module)(1)(X))


@over_softmaxes
@pytest.mark.parametrize("out", (*DTYPES, None), ids=name)
@pytest.mark.parametrize("given", (*DTYPES, torch.int64, torch.bool), ids=name)
def test_the_dtype_argument_casts_first(op, given, out):
    if out is None and not given.is_floating_point:
        out = torch.float32
    x = logits(3, 9).to(given)
    ours = getattr(softkern, op)(x, 1, dtype=out)
    assert_same_bits(ours, getattr(softkern, op)(x if out is None else x.to(out), 1))
    assert ours.dtype == getattr(F, op)(x, 1, dtype=out).dtype
    if given.is_floating_point:
        x.requires_grad_()
        y = getattr(softkern, op)(x, 1, dtype=out)
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert dx.dtype == given


@over_softmaxes
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", ((6, 10), (3, 4, 5), (2, 3, 4, 5), (2, 1, 4, 5)), ids=name)
def test_results_have_torchs_strides(op, layout, shape):
    x = LAYOUTS[layout](logits(*shape)).requires_grad_()
    for dim in range(len(shape)):
        ours, theirs = getattr(softkern, op)(x, dim), getattr(F, op)(x, dim)
        assert ours.stride() == theirs.stride()


@over_functions
def test_gradients_are_tracked_when_and_only_when_torch_does(function):
    leaf = X.clone().requires_grad_()
    assert not call(function, X).requires_grad
    tracked = call(function, leaf)
    assert tracked.requires_grad and tracked.grad_fn is not None and not tracked.is_leaf
    with torch.no_grad():
        assert not call(function, leaf).requires_grad
    with torch.inference_mode():
        y = call(function, leaf)
        assert y.is_inference() and not y.requires_grad
    torch.testing.assert_close(call(function, leaf), call(function, X))


@over_functions
def test_tensors_made_in_inference_mode_are_taken(function):
    with torch.inference_mode():
        x = X.clone()
    assert_same_bits(call(function, x), call(function, X))


@over_functions
def test_results_are_new_tensors(function):
    x = X.clone()
    y = call(function, x)
    assert y.data_ptr() != x.data_ptr()
    y.zero_()
    assert torch.equal(x, X)


@over_functions
def test_an_out_of_place_result_may_be_changed_by_its_owner_when_torch_allows_it(function):
    """Softmax's backward needs its output, so changing that raises; a loss may be changed."""
    for namespace in (F, softkern):
        y = call(function, X.clone().requires_grad_(), namespace)
        y.mul_(2)
        if function == "cross_entropy":
            y.backward()
        else:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                y.sum().backward()


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@over_reductions
def test_the_loss_has_the_dtype_and_shape_of_torchs(dtype, reduction):
    for target in (Y, probabilities((6, 10), dtype)):
        ours = softkern.cross_entropy(X.to(dtype), target, reduction=reduction)
        theirs = F.cross_entropy(X.to(dtype), target, reduction=reduction)
        assert (ours.dtype, ours.shape, ours.stride()) == (
            theirs.dtype,
            theirs.shape,
            theirs.stride(),
        )


class Tagged(torch.Tensor):
    """A subclass that does nothing but stay one."""


@over_functions
def test_subclasses_survive_as_with_torch(function):
    ours, theirs = call(function, X.as_subclass(Tagged)), call(function, X.as_subclass(Tagged), F)
    assert type(ours) is type(theirs) is Tagged
    torch.testing.assert_close(ours.as_subclass(torch.Tensor), theirs.as_subclass(torch.Tensor))


@over_functions
def test_meta_tensors_give_shapes(function):
    if function == "cross_entropy":
        ours = softkern.cross_entropy(X.to("meta"), Y.to("meta"), reduction="none")
        theirs = F.cross_entropy(X.to("meta"), Y.to("meta"), reduction="none")
    else:
        ours, theirs = (call(function, X.to("meta"), n) for n in (softkern, F))
    assert ours.is_meta and (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
