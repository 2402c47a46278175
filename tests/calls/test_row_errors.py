# SPDX-License-Identifier: Apache-2.0
"""Bad input of softkern's own options: errors that name the argument, before anything is written."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from compare import assert_same_bits
from messages import X, Y, raised, text

import softkern

INF, NAN = float("inf"), float("nan")
R = torch.tensor([1.0, 0.5, 2.0])
W = torch.tensor([1.0, 2.0, 0.5, 1.5, 3.0])
P = X.softmax(1)
X3, Y3 = X.reshape(1, 3, 5).expand(2, 3, 5).contiguous(), torch.tensor([[0, 1, 2, 0, 1], [2, 2, 2, 1, 0]])
K, T = torch.tensor([[0, 1], [4, 4], [2, 0]]), torch.tensor([[0.5, 0.5], [0.1, 0.2], [1.0, 0.0]])

# name: (input, target, options, exception, pattern of the whole text)
REFUSED = {
    "softcap 0": (X, Y, {"softcap": 0}, ValueError, r"softcap must be greater than 0, got 0\.0"),
    "softcap -1": (X, Y, {"softcap": -1.0}, ValueError, r"softcap must be greater than 0, got -1\.0"),
    "softcap inf": (X, Y, {"softcap": INF}, ValueError, "softcap must be finite, got inf"),
    "softcap NaN": (X, Y, {"softcap": NAN}, ValueError, "softcap must be finite, got nan"),
    "temperature 0": (X, Y, {"temperature": 0.0}, ValueError, r"temperature must be .* than 0, got 0\.0"),
    "temperature -inf": (X, Y, {"temperature": -INF}, ValueError, "temperature must be finite, got -inf"),
    "logit_scale NaN": (X, Y, {"logit_scale": NAN}, ValueError, "logit_scale must be finite, got nan"),
    "z_loss inf": (X, Y, {"z_loss": INF}, ValueError, "z_loss must be finite, got inf"),
    "temperature None": (X, Y, {"temperature": None}, TypeError, "temperature must be a number .*, got None"),
    "z_loss str": (X, Y, {"z_loss": "0.1"}, TypeError, "z_loss must be a number .*, got '0.1'"),
    "softcap list": (X, Y, {"softcap": [30.0]}, TypeError, r"softcap must be a number .*, got \[30\.0\]"),
    "logit_scale complex": (X, Y, {"logit_scale": 1j}, TypeError, "logit_scale must be a number .*, got 1j"),
    "logit_scale with a graph": (
        X,
        Y,
        {"logit_scale": torch.tensor(2.0, requires_grad=True)},
        TypeError,
        r"logit_scale must be .* without a gradient.* tensor of torch.float32 .* requires a gradient",
    ),
    "valid_classes 0": (X, Y, {"valid_classes": 0}, ValueError, "valid_classes .* 1 and .* 5; got 0"),
    "valid_classes 6": (X, Y, {"valid_classes": 6}, ValueError, "valid_classes .* 1 and .* 5; got 6"),
    "valid_classes -1": (X, Y, {"valid_classes": -1}, ValueError, "valid_classes .* 1 and .* 5; got -1"),
    "valid_classes 4, 3-d": (X3, Y3, {"valid_classes": 4}, ValueError, "valid_classes .* 3; got 4"),
    "valid_classes a float": (X, Y, {"valid_classes": 3.0}, TypeError, "valid_classes must be an int.* 3.0"),
    "valid_classes a bool": (X, Y, {"valid_classes": True}, TypeError, "valid_classes must be an int.* True"),
    "stats unknown": (
        X,
        Y,
        {"stats": ("lse", "accuracy")},
        ValueError,
        "stats .* 'accuracy'; choose from log_prob, lse, entropy, argmax, correct",
    ),
    "stats of the loss": (X, Y, {"stats": ("loss",)}, ValueError, "stats .* 'loss'; choose from .*"),
    "stats a string": (X, Y, {"stats": "lse"}, TypeError, "stats must be a sequence of names, got 'lse'"),
    "stats None": (X, Y, {"stats": None}, TypeError, "stats must be a sequence of names, got None"),
    "log_prob of probabilities": (X, P, {"stats": ("log_prob",)}, ValueError, "stats 'log_prob' .* index .*"),
    "correct of K indices": (
        X,
        K,
        {"target_probs": T, "stats": ("correct",)},
        ValueError,
        "stats 'log_prob' and 'correct' need .* one class index a row, got indices",
    ),
    "row_weight short": (X, Y, {"row_weight": R[:2]}, ValueError, r"row_weight .* \(3,\), got \(2,\)"),
    "row_weight a column": (X, Y, {"row_weight": R[:, None]}, ValueError, r"row_weight .*, got \(3, 1\)"),
    "row_weight a number": (X, Y, {"row_weight": 0.5}, TypeError, "row_weight must be a tensor.*, got 0.5"),
    "row_weight, 3-d": (X3, Y3, {"row_weight": R}, ValueError, r"row_weight .* \(2, 5\), got \(3,\)"),
    "row_weight float64": (X, Y, {"row_weight": R.double()}, RuntimeError, "row_weight .* torch.float64"),
    "row_weight int64": (X, Y, {"row_weight": R.long()}, RuntimeError, "row_weight .* torch.int64"),
    "row_weight elsewhere": (X, Y, {"row_weight": R.to("meta")}, RuntimeError, "row_weight .* cpu; got meta"),
    "num_items of two": (X, Y, {"num_items": R[:2]}, ValueError, r"num_items must be one number, .*\(2,\)"),
    "num_items of none": (X, Y, {"num_items": R[:0]}, ValueError, r"num_items must be one number, .*\(0,\)"),
    "num_items for a sum": (X, Y, {"num_items": R, "reduction": "sum"}, ValueError, "num_items .*"),
    "num_items complex": (X, Y, {"num_items": R[0].cfloat()}, RuntimeError, "num_items .* torch.complex64"),
    "num_items bool": (X, Y, {"num_items": R[0].bool()}, RuntimeError, "num_items .* torch.bool"),
    "num_items str": (X, Y, {"num_items": "7"}, TypeError, "num_items must be a number or a tensor, got '7'"),
    "target_probs, one index": (
        X,
        Y,
        {"target_probs": T},
        ValueError,
        r"target_probs needs .* \(3, K\); got a tensor of torch.int64 and shape \(3,\)",
    ),
    "target_probs, probabilities": (X, P, {"target_probs": P}, ValueError, "target_probs needs .*float32.*"),
    "target_probs, other rows": (X, K[:2], {"target_probs": T[:2]}, ValueError, r"target_probs needs .*"),
    "target_probs, 3-d": (X3, K, {"target_probs": T}, ValueError, r"target_probs .* \(2, K, 5\); got .*"),
    "target_probs of another K": (X, K, {"target_probs": T[:, :1]}, ValueError, r"target_probs .*\(3, 1\)"),
    "target_probs a list": (X, K, {"target_probs": [0.5]}, TypeError, r"target_probs must be a tensor.*"),
    "target_probs float64": (X, K, {"target_probs": T.double()}, RuntimeError, "target_probs .*float64"),
    "target_probs elsewhere": (X, K, {"target_probs": T.to("meta")}, RuntimeError, "target_probs .* meta"),
    "target_probs, int16": (X, K.short(), {"target_probs": T}, RuntimeError, "target must be .* torch.int16"),
    "target_probs, ignore_index": (
        X,
        K,
        {"target_probs": T, "ignore_index": 3},
        RuntimeError,
        "ignore_index is not supported for target_probs",
    ),
    "K indices elsewhere": (X, K.to("meta"), {"target_probs": T}, RuntimeError, "target must be .* meta"),
    "an unknown keyword": (X, Y, {"softmax_cap": 1.0}, TypeError, r"cross_entropy\(\) got .*'softmax_cap'.*"),
    "a target in the padding": (X, Y, {"valid_classes": 4}, IndexError, r"Target 4 is out of bounds\."),
    "a target out of range": (X, Y + 5, {"z_loss": 0.1}, IndexError, r"Target 5 is out of bounds\."),
    "K indices in the padding": (X, K, {"target_probs": T, "valid_classes": 4}, IndexError, "Target 4 .*"),
}


@pytest.mark.parametrize("grad", (False, True), ids=("", "requires_grad"))
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case, grad):
    x, target, options, kind, pattern = REFUSED[case]
    before = x.clone()
    x = x.clone().requires_grad_(grad)
    error = raised(softkern.cross_entropy, x * 1, target, inplace_backward=True, **options)
    assert type(error) is kind, repr(error)
    assert re.fullmatch(pattern, text(error), re.DOTALL), text(error)
    assert_same_bits(x.detach(), before)


# name: (input, target, options of F); what F refuses, it refuses with more options too
AS_TORCH = {
    "target on another device": (X, Y.to("meta"), {}),
    "batch sizes differ": (X, Y[:2], {}),
    "class numbers differ": (X, P[:, :4], {}),
    "no batch and two targets": (X[0], Y[:2], {}),
    "target with one dimension too many": (X, Y.unsqueeze(1), {}),
    "target int64 of the shape of the input": (X, torch.zeros(3, 5, dtype=torch.long), {}),
    "target int16": (X, Y.short(), {}),
    "target float": (X, Y.float(), {}),
    "target None": (X, None, {}),
    "spatial sizes differ": (X3, Y3[:, :4], {}),
    "input of no dimension": (X[0, 0], Y[0], {}),
    "input int64": (X.long(), Y, {}),
    "input complex": (X.cfloat(), Y, {}),
    "input sparse": (X.to_sparse(), Y, {}),
    "input a list": ([1.0, 2.0], Y, {}),
    "weight too short": (X, Y, {"weight": W[:4]}),
    "weight float64": (X, Y, {"weight": W.double()}),
    "weight a list": (X, Y, {"weight": [1.0] * 5}),
    "weight on another device": (X, Y, {"weight": W.to("meta")}),
    "probabilities with ignore_index": (X, P, {"ignore_index": 0}),
    "smoothing above 1": (X, Y, {"label_smoothing": 1.1}),
    "smoothing a string": (X, Y, {"label_smoothing": "0.1"}),
    "ignore_index a float": (X, Y, {"ignore_index": 1.5}),
    "ignore_index too large": (X, Y, {"ignore_index": 2**63}),
    "reduction unknown": (X, Y, {"reduction": "average"}),
    "reduction None": (X, Y, {"reduction": None}),
}


@pytest.mark.parametrize("case", AS_TORCH)
def test_what_torch_refuses_raises_torchs_error(case):
    x, target, options = AS_TORCH[case]
    want = raised(F.cross_entropy, x, target, **options)
    got = raised(softkern.cross_entropy, x, target, temperature=2.0, **options)
    assert (type(got), text(got)) == (type(want), text(want))


@pytest.mark.parametrize("options", ({"weight": W[:4]}, {"label_smoothing": 2.0}, {"reduction": "all"}))
def test_torchs_own_arguments_beside_k_indices(options):
    want = raised(F.cross_entropy, X, Y, **options)
    got = raised(softkern.cross_entropy, X, K, target_probs=T, **options)
    assert (type(got), text(got)) == (type(want), text(want))


LOGITS = torch.randn(2, 3, 5)
INDEX = torch.tensor([[0, 1, 2], [4, 3, 2]])

# name: (function, arguments, exception, pattern)
STATISTICS = {
    "index of another shape": (LOGITS, INDEX[:, :2], ValueError, r"index must have .* \(2, 3\).*\(2, 2\)"),
    "K indices of other rows": (LOGITS, INDEX[:1, :, None], ValueError, r"index must .*\(1, 3, 1\)"),
    "index with two dims more": (LOGITS, INDEX[..., None, None], ValueError, r"index must .*"),
    "index float": (LOGITS, INDEX.float(), RuntimeError, "index must be of dtype int64.* torch.float32"),
    "index elsewhere": (LOGITS, INDEX.to("meta"), RuntimeError, "index must be on .* cpu; got meta"),
    "index a list": (LOGITS, [0], TypeError, r"index must be a tensor, got \[0\]"),
    "index out of range": (LOGITS, INDEX + 1, IndexError, r"Target 5 is out of bounds\."),
    "index negative": (LOGITS, -INDEX, IndexError, r"Target -\d is out of bounds\."),
    "the default ignore_index": (LOGITS, INDEX - 100, IndexError, r"Target -\d+ is out of bounds\."),
    "logits a list": ([1.0], INDEX, TypeError, r"logits must be a tensor, got \[1\.0\]"),
    "logits int64": (LOGITS.long(), INDEX, RuntimeError, "logits must be a dense floating-point .*int64.*"),
    "logits sparse": (LOGITS.to_sparse(), INDEX, RuntimeError, "logits must be a dense floating-point .*"),
    "logits of no dimension": (LOGITS[0, 0, 0], INDEX, ValueError, "logits must have a dimension .*"),
}


@pytest.mark.parametrize("case", STATISTICS)
def test_what_statistics_refuse(case):
    logits, index, kind, pattern = STATISTICS[case]
    calls = [lambda: softkern.selective_log_softmax(logits, index)]
    if case.startswith("logits"):
        calls.append(lambda: softkern.entropy_from_logits(logits))
    for call in calls:
        with pytest.raises(kind) as error:
            call()
        assert re.fullmatch(pattern, text(error.value), re.DOTALL), text(error.value)


@pytest.mark.parametrize(
    ("dim", "kind"),
    ((3, IndexError), (-4, IndexError), (2**70, TypeError), (1.0, TypeError), (None, TypeError)),
)
def test_a_dim_that_is_not_there(dim, kind):
    error = raised(softkern.entropy_from_logits, LOGITS, dim)
    assert type(error) is kind
    if kind is IndexError:
        assert text(error) == text(raised(torch.softmax, LOGITS, dim))


@pytest.mark.parametrize("options", ({"softcap": -1.0}, {"temperature": 0}, {"logit_scale": INF}))
def test_numbers_of_the_transform(options):
    for function, args in (
        (softkern.selective_log_softmax, (LOGITS, INDEX)),
        (softkern.entropy_from_logits, (LOGITS,)),
    ):
        error = raised(function, *args, **options)
        assert type(error) is ValueError and next(iter(options)) in text(error)
