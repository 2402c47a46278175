# SPDX-License-Identifier: Apache-2.0
"""Bad input: the exception type and text of torch.nn.functional, before anything is written."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from compare import assert_same_bits
from messages import X, Y, raised, text

import softkern

X3 = X.reshape(1, 3, 5).expand(2, 3, 5).contiguous()  # N = 2, C = 3, d1 = 5
Y3 = torch.tensor([[0, 1, 2, 0, 1], [2, 2, 2, 1, 0]])
P = X.softmax(1)
W = torch.tensor([1.0, 2.0, 0.5, 1.5, 3.0])

# name: (input, target, options) for cross_entropy
CROSS_ENTROPY = {
    "target too large": (X, Y + 5, {}),
    "target one too large, in the last row": (X, torch.tensor([0, 1, 5]), {}),
    "target negative": (X, Y - 1, {}),
    "target is the default ignore_index and that has changed": (
        X,
        torch.tensor([0, -100, 1]),
        {"ignore_index": 3},
    ),
    "target enormous": (X, torch.tensor([0, 2**62, 1]), {}),
    "target most negative": (X, torch.tensor([0, -(2**63), 1]), {}),
    "two bad targets": (X, torch.tensor([9, 0, -7]), {}),
    "target too large, none": (X, Y + 5, {"reduction": "none"}),
    "target too large, sum": (X, Y + 5, {"reduction": "sum"}),
    "target too large, weight": (X, Y + 5, {"weight": W}),
    "target negative, weight, smoothing": (X, Y - 1, {"weight": W, "label_smoothing": 0.1}),
    "target too large, smoothing": (X, Y + 5, {"label_smoothing": 0.1}),
    "target too large, 3-d": (X3, Y3 + 3, {}),
    "target negative, 3-d, weight": (X3, Y3 - 1, {"weight": W[:3], "reduction": "none"}),
    "target too large, uint8": (X, torch.tensor([0, 1, 255], dtype=torch.uint8), {}),
    "target too large, no batch": (X[0], torch.tensor(5), {}),
    "no classes": (X[:, :0], Y, {}),
    "input int64": (X.long(), Y, {}),
    "input bool": (X.bool(), Y, {}),
    "input complex": (X.cfloat(), Y, {}),
    "target int16": (X, Y.short(), {}),
    "target int8": (X, Y.to(torch.int8), {}),
    "target bool": (X, Y.bool(), {}),
    "target float of one per row": (X, Y.float(), {}),
    "target complex": (X, P.cfloat(), {}),
    "target int64 of the shape of the input": (X, torch.zeros(3, 5, dtype=torch.long), {}),
    "target int32 of the shape of the input": (X, torch.zeros(3, 5, dtype=torch.int32), {}),
    "batch sizes differ": (X, Y[:2], {}),
    "batch sizes differ, probabilities": (X, P[:2], {}),
    "class numbers differ, probabilities": (X, P[:, :4], {}),
    "no batch and two targets": (X[0], Y[:2], {}),
    "target of one number for a batch": (X, Y[0], {}),
    "target with one dimension too many": (X, Y.unsqueeze(1), {}),
    "spatial sizes differ": (X3, Y3[:, :4], {}),
    "spatial dimension missing": (X3, Y3[:, 0], {}),
    "batch sizes differ, 3-d": (X3, Y3[:1], {}),
    "input of no dimension": (X[0, 0], Y[0], {}),
    "probabilities with ignore_index": (X, P, {"ignore_index": 0}),
    "smoothing above 1": (X, Y, {"label_smoothing": 1.1}),
    "smoothing infinite": (X, Y, {"label_smoothing": float("inf")}),
    "smoothing above 1, probabilities": (X, P, {"label_smoothing": 1.5}),
    "weight too short": (X, Y, {"weight": W[:4]}),
    "weight too short, smoothing": (X, Y, {"weight": W[:4], "label_smoothing": 0.1}),
    "weight too short, probabilities": (X, P, {"weight": W[:4]}),
    "weight too long, 3-d": (X3, Y3, {"weight": W}),
    "weight 2-d": (X, Y, {"weight": W.unsqueeze(0)}),
    "weight a number": (X, Y, {"weight": W[0]}),
    "weight float64": (X, Y, {"weight": W.double()}),
    "weight bf16": (X, Y, {"weight": W.bfloat16()}),
    "weight int64": (X, Y, {"weight": W.long()}),
    "weight float64, smoothing": (X, Y, {"weight": W.double(), "label_smoothing": 0.1}),
    "weight float32 for bf16": (X.bfloat16(), Y, {"weight": W}),
    "weight that requires grad": (X, Y, {"weight": W.clone().requires_grad_()}),
    "target on another device": (X, Y.to("meta"), {}),
    "input on another device": (X.to("meta"), Y, {}),
    "weight on another device": (X, Y, {"weight": W.to("meta")}),
    "probabilities on another device": (X, P.to("meta"), {}),
    "reduction unknown": (X, Y, {"reduction": "average"}),
    "reduction None": (X, Y, {"reduction": None}),
    "reduction int": (X, Y, {"reduction": 1}),
    "input a list": ([1.0, 2.0], Y, {}),
    "input None": (None, Y, {}),
    "target None": (X, None, {}),
    "target a list": (X, [0, 4, 2], {}),
    "target a number": (X, 1, {}),
    "weight a list": (X, Y, {"weight": [1.0] * 5}),
    "ignore_index a float": (X, Y, {"ignore_index": 1.5}),
    "ignore_index None": (X, Y, {"ignore_index": None}),
    "ignore_index too large for int64": (X, Y, {"ignore_index": 2**63}),
    "smoothing a string": (X, Y, {"label_smoothing": "0.1"}),
    "smoothing None": (X, Y, {"label_smoothing": None}),
    "sparse": (X.to_sparse(), Y, {}),
    "float8": (X.to(torch.float8_e4m3fn), Y, {}),
}

# name: (input, options) for softmax and log_softmax
SOFTMAX = {
    "dim too large": (X, {"dim": 2}),
    "dim too small": (X, {"dim": -3}),
    "dim of a number": (X[0, 0], {"dim": 1}),
    "dim of nothing": (X[:0], {"dim": 2}),
    "dim a string": (X, {"dim": "batch"}),
    "dim a float": (X, {"dim": 1.0}),
    "dim a bool": (X, {"dim": True}),
    "dim enormous": (X, {"dim": 2**70}),
    "input int64": (X.long(), {"dim": 1}),
    "input bool": (X.bool(), {"dim": 0}),
    "input complex": (X.cfloat(), {"dim": 1}),
    "dtype int64": (X, {"dim": 1, "dtype": torch.int64}),
    "dtype complex": (X, {"dim": 1, "dtype": torch.complex64}),
    "dtype a string": (X, {"dim": 1, "dtype": "float32"}),
    "input a list": ([1.0, 2.0], {"dim": 0}),
    "input None": (None, {"dim": 0}),
    "input a number": (1.5, {"dim": 0}),
    "sparse": (X.to_sparse(), {"dim": 1}),
    "float8": (X.to(torch.float8_e4m3fn), {"dim": 1}),
}


def assert_same_error(ours, theirs, args, kwargs):
    tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
    before = [t.detach().clone() for t in tensors]
    want = raised(theirs, *args, **kwargs)
    got = raised(ours, *args, **kwargs)
    assert (type(got), text(got)) == (type(want), text(want))
    for old, new in zip(before, tensors, strict=True):
        if old.device.type == "cpu" and old.layout == torch.strided:
            assert old.equal(new), "an argument was changed"


@pytest.mark.parametrize("grad", (False, True), ids=("", "requires_grad"))
@pytest.mark.parametrize("case", CROSS_ENTROPY)
def test_cross_entropy_raises_what_torch_raises(case, grad):
    x, target, kwargs = CROSS_ENTROPY[case]
    if grad and isinstance(x, torch.Tensor) and x.is_floating_point() and x.layout == torch.strided:
        x = x.clone().requires_grad_()
    assert_same_error(softkern.cross_entropy, F.cross_entropy, (x, target), kwargs)


@pytest.mark.parametrize("op", ("softmax", "log_softmax"))
@pytest.mark.parametrize("case", SOFTMAX)
def test_softmax_raises_what_torch_raises(case, op):
    x, kwargs = SOFTMAX[case]
    assert_same_error(getattr(softkern, op), getattr(F, op), (x,), kwargs)


def test_the_modules_raise_what_torchs_raise():
    ours, theirs = softkern.CrossEntropyLoss(weight=W), torch.nn.CrossEntropyLoss(weight=W)
    assert_same_error(ours.forward, theirs.forward, (X, Y + 5), {})
    assert_same_error(softkern.Softmax(4).forward, torch.nn.Softmax(4).forward, (X,), {})
    assert_same_error(softkern.LogSoftmax(4).forward, torch.nn.LogSoftmax(4).forward, (X,), {})


@pytest.mark.parametrize("position", (0, 4999, 9999))
def test_a_bad_target_anywhere_is_found_before_anything_is_written(position):
    """Also in the last share of the last thread, and with the logits' storage left as it was."""
    x, target = torch.randn(10000, 16, requires_grad=True), torch.zeros(10000, dtype=torch.long)
    before = x.detach().clone()
    target[position] = 16
    with pytest.raises(IndexError, match=r"^Target 16 is out of bounds\.$"):
        softkern.cross_entropy(x, target)
    assert_same_bits(x, before)


def caught(f, *args, **kwargs):
    """The warnings of a call as (category, text, the file they point at), and its result."""
    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("always")
        result = f(*args, **kwargs)
    return [(w.category, str(w.message)) for w in log], [w.filename for w in log], result


@pytest.mark.parametrize("size_average", (None, True, False))
@pytest.mark.parametrize("reduce", (None, True, False))
def test_the_legacy_arguments_warn_and_mean_the_same(size_average, reduce):
    kwargs = {"size_average": size_average, "reduce": reduce, "reduction": "sum"}
    ours, _, loss = caught(softkern.cross_entropy, X, Y, **kwargs)
    theirs, _, expected = caught(F.cross_entropy, X, Y, **kwargs)
    assert ours == theirs
    torch.testing.assert_close(loss, expected)
    assert len(ours) == (size_average is not None or reduce is not None)


def test_the_deprecated_name_of_the_mean_warns_and_works():
    ours, _, loss = caught(softkern.cross_entropy, X, Y, reduction="elementwise_mean")
    theirs, _, expected = caught(F.cross_entropy, X, Y, reduction="elementwise_mean")
    assert ours == theirs and len(ours) == 1
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("op", ("softmax", "log_softmax"))
@pytest.mark.parametrize("shape", ((), (4,), (3, 4), (2, 3, 4), (2, 2, 3, 4)))
def test_no_dim_warns_and_chooses_the_same(op, shape):
    x = torch.randn(shape)
    ours, our_files, y = caught(getattr(softkern, op), x)
    theirs, their_files, expected = caught(getattr(F, op), x)
    assert ours == theirs and len(ours) == 1
    assert our_files == their_files, "the warning must point at the caller's line"
    torch.testing.assert_close(y, expected)
