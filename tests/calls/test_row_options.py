# SPDX-License-Identifier: Apache-2.0
"""softkern's own options of cross_entropy: each does what it says, in every form of a call."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import LAYOUTS, name
from feature_cases import close
from install_checks import ops_run

import softkern

f64 = torch.float64
N, C = 6, 10
GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(N, C, generator=GENERATOR, dtype=f64) * 3
Y = torch.tensor([0, 9, 2, -100, 4, 2])
R = torch.tensor([1.0, 0.5, 2.0, 3.0, 0.0, 0.25], dtype=f64)
W = torch.linspace(0.5, 2.0, C, dtype=f64)
K = torch.tensor([[0, 1], [9, 9], [2, 0], [3, 4], [5, 5], [8, 1]])
T = torch.linspace(0.1, 0.9, 2 * N, dtype=f64).reshape(N, 2)
P = torch.zeros(N, C, dtype=f64).scatter_add(1, K, T)  # K and T as class probabilities
COUNTED = Y != -100
OWN = W[Y.clamp(min=0)]


def losses(x):
    return F.cross_entropy(x, Y, reduction="none")


def zero_where_ignored(x):
    return torch.where(COUNTED, x, 0)


# options of a call with the targets Y (or those given), and the same in torch
SAYS = {
    "row_weight": ({"row_weight": R}, lambda x: (losses(x) * R).sum() / R[COUNTED].sum()),
    "row_weight, weight": (
        {"row_weight": R, "weight": W},
        lambda x: (F.cross_entropy(x, Y, W, reduction="none") * R).sum() / (R * OWN)[COUNTED].sum(),
    ),
    "row_weight, none": ({"row_weight": R, "reduction": "none"}, lambda x: losses(x) * R),
    "row_weight, probabilities": (
        {"row_weight": R, "target": P},
        lambda x: (F.cross_entropy(x, P, reduction="none") * R).sum() / R.sum(),
    ),
    "num_items": ({"num_items": 7}, lambda x: losses(x).sum() / 7),
    "num_items, row_weight": ({"num_items": 7, "row_weight": R}, lambda x: (losses(x) * R).sum() / 7),
    "num_items, sum": ({"num_items": 7, "reduction": "sum"}, lambda x: losses(x).sum()),
    "valid_classes": (
        {"valid_classes": 4, "target": Y % 4, "label_smoothing": 0.1, "weight": W},
        lambda x: F.cross_entropy(x[:, :4], Y % 4, W[:4], label_smoothing=0.1),
    ),
    "all classes are valid": ({"valid_classes": C}, lambda x: losses(x).sum() / COUNTED.sum()),
    "target_probs": (
        {"target": K, "target_probs": T, "weight": W, "label_smoothing": 0.1},
        lambda x: F.cross_entropy(x, P, W, label_smoothing=0.1),
    ),
    "target_probs, row_weight": (
        {"target": K, "target_probs": T, "row_weight": R},
        lambda x: (F.cross_entropy(x, P, reduction="none") * R).sum() / R.sum(),
    ),
    "logit_scale": ({"logit_scale": 0.3}, lambda x: F.cross_entropy(0.3 * x, Y)),
    "softcap": ({"softcap": 2.5}, lambda x: F.cross_entropy(2.5 * torch.tanh(x / 2.5), Y)),
    "temperature": ({"temperature": 2}, lambda x: F.cross_entropy(x / 2, Y)),
    "all three": (
        {"logit_scale": 0.3, "softcap": 2.5, "temperature": 2.0},
        lambda x: F.cross_entropy(2.5 * torch.tanh(0.3 * x / 2.5) / 2, Y),
    ),
    "z_loss": (
        {"z_loss": 0.1},
        lambda x: F.cross_entropy(x, Y) + 0.1 * x.logsumexp(1).square()[COUNTED].mean(),
    ),
    "z_loss, weight, row_weight": (
        {"z_loss": 0.1, "weight": W, "row_weight": R, "reduction": "sum"},
        lambda x: (
            F.cross_entropy(x, Y, W, reduction="none") * R
            + zero_where_ignored(0.1 * R * OWN * x.logsumexp(1).square())
        ).sum(),
    ),
}


@pytest.mark.parametrize("option", SAYS)
def test_each_option_does_what_it_says(option):
    options, formula = SAYS[option]
    options = {"target": Y, **options}
    ours, plain = (X.clone().requires_grad_() for _ in range(2))
    loss, want = softkern.cross_entropy(ours, **options), formula(plain)
    close(loss, want)
    close(*(torch.autograd.grad(y.sum(), x)[0] for y, x in ((loss, ours), (want, plain))))


def test_every_option_is_tried():
    parameters = inspect.signature(softkern.cross_entropy).parameters
    named = {key for options, _ in SAYS.values() for key in options} | {"stats", "inplace_backward"}
    assert {key for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY} <= named


def statistics(x):
    log_p = x.log_softmax(1)
    chosen = log_p.gather(1, Y.clamp(min=0)[:, None])[:, 0]
    correct = x.argmax(1) == Y
    return softkern.RowStats(
        zero_where_ignored(chosen),
        zero_where_ignored(x.logsumexp(1)),
        zero_where_ignored(-(log_p.exp() * log_p).sum(1)),
        torch.where(COUNTED, x.argmax(1), -1),
        correct,
    )


@pytest.mark.parametrize("reduction", ("none", "mean", "sum"))
@pytest.mark.parametrize(
    "stats",
    (("lse",), ["entropy", "log_prob"], ("correct", "argmax"), softkern.RowStats._fields),
    ids=("tuple", "list", "no-gradient", "all"),
)
def test_statistics(stats, reduction):
    names = list(stats)
    loss, found = softkern.cross_entropy(X, Y, reduction=reduction, stats=iter(names))
    close(loss, F.cross_entropy(X, Y, reduction=reduction))
    assert isinstance(found, softkern.RowStats)
    for field, value, want in zip(found._fields, found, statistics(X), strict=True):
        if field in names:
            close(value, want)
        else:
            assert value is None


@pytest.mark.parametrize("upstream", ({"loss"}, {"log_prob"}, {"lse", "entropy"}, {"loss", "entropy", "lse"}))
def test_gradients_of_any_mix(upstream):
    ours, plain = (X.clone().requires_grad_() for _ in range(2))
    loss, found = softkern.cross_entropy(ours, Y, stats=("log_prob", "lse", "entropy"), softcap=5.0)
    z = 5 * torch.tanh(plain / 5)
    results = {"loss": (loss, F.cross_entropy(z, Y))}
    results |= {n: (getattr(found, n), getattr(statistics(z), n)) for n in ("log_prob", "lse", "entropy")}
    sums = (sum((results[n][i] * (1 + len(n))).sum() for n in sorted(upstream)) for i in range(2))
    close(*(torch.autograd.grad(y, x)[0] for y, x in zip(sums, (ours, plain), strict=True)))


def test_no_statistics_give_the_loss_alone():
    for stats in ((), [], iter(())):
        assert isinstance(softkern.cross_entropy(X, Y, stats=stats, z_loss=0.1), torch.Tensor)


DEFAULTS = {
    "row_weight": None,
    "num_items": None,
    "valid_classes": None,
    "target_probs": None,
    "logit_scale": 1,
    "softcap": None,
    "temperature": np.float32(1),
    "z_loss": 0,
    "stats": [],
}


@pytest.mark.parametrize(
    "options", ({}, DEFAULTS, *({key: value} for key, value in DEFAULTS.items())), ids=name
)
def test_defaults_run_the_op_of_torchs_options(options):
    for call in (softkern.cross_entropy, softkern.CrossEntropyLoss()):
        if (
            options.keys() - {"row_weight", "num_items", "target_probs"}
            and call is not softkern.cross_entropy
        ):
            continue
        loss, ops = ops_run(lambda call=call: call(X, Y, **options))
        assert any("softkern.cross_entropy" in op for op in ops)
        assert not any("row_losses" in op for op in ops)
        close(loss, F.cross_entropy(X, Y))


@pytest.mark.filterwarnings("ignore:size_average and reduce args will be deprecated")
@pytest.mark.parametrize(
    "reduction",
    ({"reduction": "none"}, {"reduction": "sum"}, {"size_average": False}, {"reduce": False}),
    ids=name,
)
def test_defaults_keep_torchs_options(reduction):
    options = {**reduction, "weight": W, "ignore_index": 2, "label_smoothing": 0.1}
    target = Y.clamp(min=0)
    want = F.cross_entropy(X, target, **options)
    close(softkern.cross_entropy(X, target, z_loss=0.0, **options), want)
    close(softkern.cross_entropy(X, target, valid_classes=C, **options), want)


def test_the_signature_names_all_keywords():
    parameters = inspect.signature(softkern.cross_entropy).parameters
    assert list(parameters)[:9] == [*inspect.signature(F.cross_entropy).parameters, "inplace_backward"]
    assert list(parameters)[9:] == list(DEFAULTS)
    assert all(parameters[key].kind is inspect.Parameter.KEYWORD_ONLY for key in DEFAULTS)
    constructor = inspect.signature(softkern.CrossEntropyLoss).parameters
    call = inspect.signature(softkern.CrossEntropyLoss.forward).parameters
    assert {*constructor, *call} >= DEFAULTS.keys()
    for key in DEFAULTS:
        p = constructor[key] if key in constructor else call[key]
        assert (p.kind, p.default) == (parameters[key].kind, parameters[key].default)


NUMBERS = {
    "int": 7,
    "float": 7.0,
    "int32 of numpy": np.int32(7),
    "float32 of numpy": np.float32(7),
    "a tensor": torch.tensor(7.0),
    "a tensor of int64": torch.tensor(7),
    "a tensor of uint8": torch.tensor(7, dtype=torch.uint8),
    "a tensor of bfloat16": torch.tensor(7.0).bfloat16(),
    "a tensor of one": torch.tensor([[7]]),
}


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("dtype", (f64, torch.float32, torch.bfloat16, torch.float16), ids=name)
def test_numbers_of_items(number, dtype):
    loss = softkern.cross_entropy(X.to(dtype), Y, num_items=NUMBERS[number])
    want = softkern.cross_entropy(X.to(dtype), Y, reduction="sum").double() / 7
    assert loss.dtype == dtype and loss.shape == ()
    torch.testing.assert_close(loss.double(), want, rtol=2 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("number", ("int", "float", "int32 of numpy", "float32 of numpy", "a tensor"))
def test_numbers_of_the_other_options(number):
    value = NUMBERS[number]
    for option in ("logit_scale", "softcap", "temperature", "z_loss"):
        close(softkern.cross_entropy(X, Y, **{option: value}), softkern.cross_entropy(X, Y, **{option: 7.0}))
    if not isinstance(value, (float, np.floating)) and number != "a tensor":
        target = Y.clamp(max=6)
        close(softkern.cross_entropy(X, target, valid_classes=value), F.cross_entropy(X[:, :7], target))


@pytest.mark.parametrize("shape", ((C,), (N, C), (2, C, 3), (2, C, 3, 2), (0, C), (2, C, 0)), ids=name)
def test_shapes_and_dtypes_of_the_results(shape):
    """Also of tensors without values."""
    rows = (*shape[:-1],) if len(shape) < 3 else (shape[0], *shape[2:])
    for dtype in (f64, torch.float32, torch.bfloat16, torch.float16):
        compute = f64 if dtype == f64 else torch.float32
        for device in ("cpu", "meta"):
            x = torch.ones(shape, dtype=dtype, device=device)
            y = torch.zeros(rows, dtype=torch.long, device=device)
            loss, found = softkern.cross_entropy(x, y, reduction="none", stats=softkern.RowStats._fields)
            assert (loss.shape, loss.dtype, loss.device) == (rows, dtype, x.device)
            assert all(s.shape == rows and s.device == x.device for s in found)
            assert [s.dtype for s in found] == [*[compute] * 3, torch.int64, torch.bool]
            weight = torch.ones(rows, device=device)
            assert softkern.cross_entropy(x, y, row_weight=weight, num_items=2).shape == ()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    x = LAYOUTS[layout](torch.randn(2, 5, 3, 4, generator=GENERATOR, dtype=f64))
    plain = x.clone(memory_format=torch.contiguous_format)
    target = torch.randint(5, (2, 3, 4), generator=GENERATOR)
    k = torch.randint(5, (2, 2, 3, 4), generator=GENERATOR)
    weight = torch.rand(2, 3, 4, generator=GENERATOR, dtype=f64)
    probs = torch.rand(2, 2, 3, 4, generator=GENERATOR, dtype=f64)
    for arguments in (
        (target, {}),
        (k, {"target_probs": probs.transpose(2, 3).contiguous().transpose(2, 3)}),
    ):
        y, options = arguments
        row = weight.permute(2, 0, 1).contiguous().permute(1, 2, 0)
        got = softkern.cross_entropy(x, y, row_weight=row, z_loss=0.1, **options)
        want = softkern.cross_entropy(plain, y.clone(), row_weight=weight, z_loss=0.1, **options)
        close(got, want)
