# SPDX-License-Identifier: Apache-2.0
"""Calls of linear_cross_entropy: shapes, options objects, torch's function and module."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from cases import name
from feature_cases import close
from messages import raised, text
from torch import nn

import softkern
from softkern import linear_losses

f64 = torch.float64
N, H, C, K = 6, 4, 5, 2
GENERATOR = torch.Generator().manual_seed(3)


def randn(*shape):
    return torch.randn(*shape, generator=GENERATOR, dtype=f64)


X, W, B = randn(N, H), randn(C, H), randn(C)
Y = torch.tensor([0, 4, 2, -100, 3, 2])
P = randn(N, C).softmax(1)
R, CLASSES = torch.linspace(0.5, 2, N, dtype=f64), torch.linspace(0.5, 2, C, dtype=f64)
PAIRS, SHARES = (
    torch.arange(N * K).reshape(N, K) % C,
    torch.linspace(0.1, 0.9, N * K, dtype=f64).reshape(N, K),
)
LEAD = X.view(2, 3, H)
OWN = {"softcap": 3.0, "temperature": 1.5, "z_loss": 0.1, "num_items": 7, "valid_classes": 5}

torchs_function = getattr(F, "linear_cross_entropy", None)
TorchsOptions = getattr(nn, "LinearCrossEntropyOptions", None)
needs_torchs = pytest.mark.skipif(torchs_function is None, reason="this torch has no linear_cross_entropy")


def of_logits(x, w, target, *, linear_bias=None, **options):
    """The same without the fusion, of two dims."""
    return softkern.cross_entropy(F.linear(x, w, linear_bias), target, **options)


# name: (target, options)
CALLS = {
    "class indices": (Y, {"label_smoothing": 0.1, "weight": CLASSES}),
    "uint8": (Y.clamp(min=0).byte(), {"ignore_index": 2}),
    "int32": (Y.int(), {}),
    "probabilities": (P, {"row_weight": R}),
    "K indices": (PAIRS, {"target_probs": SHARES}),
    "own options": (Y, {**OWN, "row_weight": R.float(), "stats": softkern.RowStats._fields}),
}


def results(result):
    loss, stats = result if isinstance(result, tuple) else (result, ())
    return [loss, *(s for s in stats if s is not None)]


@pytest.mark.parametrize("reduction", ("none", "mean", "sum"))
@pytest.mark.parametrize("case", CALLS)
def test_rows_of_any_shape(case, reduction):
    target, options = CALLS[case]
    options = {**options, "reduction": reduction}
    want = results(of_logits(X, W, target, linear_bias=B, **options))
    for lead in ((N,), (2, 3), (1, 2, 3), (N, 1)):
        of_rows = {
            n: v.reshape(*lead, *v.shape[1:])
            for n, v in options.items()
            if n in ("row_weight", "target_probs")
        }
        got = softkern.linear_cross_entropy(
            X.view(*lead, H),
            W,
            target.reshape(*lead, *target.shape[1:]),
            linear_bias=B,
            **{**options, **of_rows},
        )
        for a, b in zip(results(got), want, strict=True):
            close(a, b.reshape(lead) if b.dim() else b)
    one = {n: v[0] if n in ("row_weight", "target_probs") else v for n, v in options.items()}
    got = softkern.linear_cross_entropy(X[0], W, target[0], linear_bias=B, **one)
    for a, b in zip(results(got), results(of_logits(X[0], W, target[0], linear_bias=B, **one)), strict=True):
        close(a, b)


def test_an_index_of_one_row_may_have_a_dim():
    close(softkern.linear_cross_entropy(X[0], W, Y[:1]), F.cross_entropy(X[0] @ W.T, Y[0]))


@pytest.mark.parametrize("probabilities", (False, True), ids=("indices", "probabilities"))
def test_a_k_dimensional_loss(probabilities):
    w, b = randn(C, 2, 3, H), randn(C, 2, 3)
    target = torch.arange(N * 6).reshape(N, 2, 3) % C
    if probabilities:
        target = randn(N, C, 2, 3).softmax(1)
    logits = torch.einsum("nh,cdeh->ncde", X, w) + b
    own = {"softcap": 3.0, "stats": ("lse",), "row_weight": torch.rand(N, 2, 3, dtype=f64)}
    for options in ({}, {"reduction": "none", **own}):
        got = softkern.linear_cross_entropy(X, w, target, linear_bias=b, **options)
        for a, e in zip(
            results(got), results(softkern.cross_entropy(logits, target, **options)), strict=True
        ):
            close(a, e)


# What the chunks of torch's own options are for 4096 rows, 256 features and 5000 classes.
CHUNKS = {
    "auto": ({}, 0),
    "a size": ({"batch_chunk_size": 96}, 96),
    "a size, no method": ({"batch_chunk_size": 96, "chunking_method": None}, 96),
    "aspect_ratio": ({"chunking_method": "aspect_ratio"}, None),
    "aspect_ratio:8": ({"chunking_method": "aspect_ratio:8"}, None),
    "aspect_ratio:99999": ({"chunking_method": "aspect_ratio:99999"}, None),
    "both": ({"chunking_method": "aspect_ratio", "batch_chunk_size": 256}, None),
}


@needs_torchs
@pytest.mark.parametrize("case", CHUNKS)
def test_chunks_of_torchs_options(case):
    given, want = CHUNKS[case]
    options = TorchsOptions(**given)
    if want is None:
        want = options._adjust(4096, 256, 5000, torch.float32).batch_chunk_size
    x = torch.empty(4096, 256, device="meta")
    assert linear_losses._plan_of(options, x, 5000) == (0, -1, want)


@needs_torchs
def test_other_options_of_torch():
    x = torch.empty(64, 32, 256, device="meta")
    _, _, rows = linear_losses._plan_of(TorchsOptions(chunking_method=None), x, 5000)
    assert rows >= 64 * 32, "one chunk"
    both = TorchsOptions(chunking_method="aspect_ratio", batch_chunk_size=100)
    with pytest.raises(ValueError, match=r"\(100 vs 128\); pass only one"):
        linear_losses._plan_of(both, x, 5000)
    # Its restrictions are those of torch's kernels.
    for target, options in ((P, {}), (Y, {"label_smoothing": 0.1})):
        got = softkern.linear_cross_entropy(
            X, W, target, options=TorchsOptions(batch_chunk_size=2), **options
        )
        close(got, of_logits(X, W, target, **options))


def test_options_are_values():
    options = softkern.LinearCrossEntropyOptions("lean", max_bytes=1 << 30)
    assert options == softkern.LinearCrossEntropyOptions(plan="lean", max_bytes=1 << 30, chunk_rows=None)
    assert pickle.loads(pickle.dumps(options)) == options and hash(options) is not None
    assert linear_losses._plan_of(options, X, C) == (2, 1 << 30, 0)
    assert linear_losses._plan_of(softkern.LinearCrossEntropyOptions(chunk_rows=64), X, C) == (0, -1, 64)
    assert linear_losses._plan_of(None, X, C) == (0, -1, 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.plan = "fast"


@pytest.mark.parametrize("plan", ("auto", "fast", "lean", "reference"))
@pytest.mark.parametrize("reduction", ("none", "mean"))
def test_every_plan_serves_every_call(plan, reduction):
    options = softkern.LinearCrossEntropyOptions(plan, chunk_rows=2)
    for target, given in CALLS.values():
        ours, plain = ([t.clone().requires_grad_() for t in (X, W, B)] for _ in range(2))
        got = results(
            softkern.linear_cross_entropy(
                *ours[:2], target, linear_bias=ours[2], reduction=reduction, options=options, **given
            )
        )
        want = results(of_logits(*plain[:2], target, linear_bias=plain[2], reduction=reduction, **given))
        sums = [sum((t * t).sum() for t in side if t.requires_grad) for side in (got, want)]
        for a, b in zip(torch.autograd.grad(sums[0], ours), torch.autograd.grad(sums[1], plain), strict=True):
            close(a, b)


def test_a_graph_has_a_plan_that_does_not_depend_on_data():
    """Here lean fits into max_bytes and fast does not."""
    x, w = (t.bfloat16().requires_grad_() for t in (randn(200, 16), randn(2000, 16)))
    target = torch.arange(200)
    options = softkern.LinearCrossEntropyOptions(max_bytes=700_000)

    def loss(x, w):
        return softkern.linear_cross_entropy(x, w, target, options=options)

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for got, want in zip(*(torch.autograd.grad(f(x, w), (x, w)) for f in (compiled, loss)), strict=True):
        assert torch.equal(got, want)


@needs_torchs
def test_the_signature_is_torchs_and_the_keywords_of_cross_entropy():
    ours = inspect.signature(softkern.linear_cross_entropy).parameters
    torchs = inspect.signature(torchs_function).parameters
    assert list(ours)[: len(torchs)] == list(torchs)
    assert all((ours[n].kind, ours[n].default) == (p.kind, p.default) for n, p in torchs.items())
    of_rows = inspect.signature(softkern.cross_entropy).parameters
    own = [*ours][len(torchs) :]
    assert own == [n for n in of_rows if n not in inspect.signature(F.cross_entropy).parameters][1:]
    assert all((ours[n].kind, ours[n].default) == (of_rows[n].kind, of_rows[n].default) for n in own)


@needs_torchs
@pytest.mark.parametrize("bias", (False, True), ids=("", "bias"))
@pytest.mark.parametrize("out_features", ((), (2, 3)), ids=name)
def test_the_module_is_torchs(out_features, bias):
    options = {
        "out_features": out_features,
        "bias": bias,
        "weight": CLASSES,
        "label_smoothing": 0.1,
        "dtype": f64,
        "ignore_index": 1,
    }
    theirs = nn.LinearCrossEntropyLoss(H, C, **options)
    ours = softkern.LinearCrossEntropyLoss(H, C, **options)
    assert isinstance(ours, nn.LinearCrossEntropyLoss)
    ours.load_state_dict(theirs.state_dict())
    target = Y.clamp(min=0)[(...,) + (None,) * len(out_features)].expand(N, *out_features)
    close(ours(X, target), theirs(X, target))
    of_module = inspect.signature(softkern.LinearCrossEntropyLoss).parameters
    for key, p in inspect.signature(nn.LinearCrossEntropyLoss).parameters.items():
        assert (of_module[key].kind, of_module[key].default) == (p.kind, p.default)
    assert repr(ours).startswith("LinearCrossEntropyLoss(\n  in_features=4, num_classes=5")


def test_own_keywords_of_the_module():
    head = softkern.LinearCrossEntropyLoss(
        H, C, bias=True, dtype=f64, softcap=3.0, z_loss=0.1, stats=("lse",)
    )
    loss, stats = pickle.loads(pickle.dumps(head))(LEAD, Y.view(2, 3), num_items=7, row_weight=R.view(2, 3))
    want, expected = of_logits(
        X,
        head.linear.weight,
        Y,
        linear_bias=head.linear.bias,
        softcap=3.0,
        z_loss=0.1,
        stats=("lse",),
        num_items=7,
        row_weight=R,
    )
    close(loss, want)
    close(stats.lse, expected.lse.view(2, 3))
    pairs = softkern.LinearCrossEntropyLoss(H, C, dtype=f64)
    close(pairs(X, PAIRS, target_probs=SHARES), of_logits(X, pairs.linear.weight, PAIRS, target_probs=SHARES))


@pytest.mark.parametrize("options", ({"weight": CLASSES[:4]}, {"label_smoothing": 2.0}), ids=name)
def test_what_the_modules_refuse(options):
    base = softkern.modules._LinearCrossEntropyLoss  # of a torch without the module
    error = raised(base, H, C, **options)
    assert isinstance(error, RuntimeError)
    for module in (softkern.LinearCrossEntropyLoss, getattr(nn, "LinearCrossEntropyLoss", base)):
        assert text(raised(module, H, C, **options)) == text(error)


def test_the_module_of_a_torch_without_it():
    base = softkern.modules._LinearCrossEntropyLoss(H, C, out_features=(2, 3), bias=True, weight=CLASSES)
    assert {n: tuple(t.shape) for n, t in base.state_dict().items()} == {
        "weight": (C,),
        "linear.weight": (C * 6, H),
        "linear.bias": (C * 6,),
    }
    of_torch = getattr(nn, "LinearCrossEntropyLoss", softkern.modules._LinearCrossEntropyLoss)
    assert vars(base).keys() == vars(of_torch(H, C)).keys()


class Tagged(torch.Tensor):
    """Writes down the functions that it gets."""

    calls: ClassVar[list] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.calls.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_class_gets_torchs_function_where_it_knows_the_call():
    own = {"softcap": 3.0, "stats": ("lse",)}
    for options, x in (({}, X), (own, X), ({}, LEAD)):
        Tagged.calls.clear()
        target = Y.reshape(x.shape[:-1])
        got = results(softkern.linear_cross_entropy(x.as_subclass(Tagged), W, target, **options))
        torchs = torchs_function is not None and x is X and not options
        assert Tagged.calls[0] is (torchs_function if torchs else softkern.linear_cross_entropy)
        with torch._C.DisableTorchFunctionSubclass():
            for a, b in zip(
                got, results(softkern.linear_cross_entropy(x, W, target, **options)), strict=True
            ):
                close(a.as_subclass(torch.Tensor), b)
