# SPDX-License-Identifier: Apache-2.0
"""Bad input of linear_cross_entropy: torch's errors, and softkern's own, found without computing logits."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from install_checks import Recorder
from messages import raised, text

import softkern

f64 = torch.float64
N, H, C, K = 6, 4, 5, 2
GENERATOR = torch.Generator().manual_seed(3)


def randn(*shape):
    return torch.randn(*shape, generator=GENERATOR, dtype=f64)


X, W, B = randn(N, H), randn(C, H), randn(C)
Y = torch.tensor([0, 4, 2, -100, 3, 2])
P = randn(N, C).softmax(1)
R, CLASSES = torch.ones(N, dtype=f64), torch.ones(C, dtype=f64)
PAIRS, SHARES = torch.arange(N * K).reshape(N, K) % C, torch.ones(N, K, dtype=f64)
LEAD = X.view(2, 3, H)

torchs_function = getattr(F, "linear_cross_entropy", None)
needs_torchs = pytest.mark.skipif(torchs_function is None, reason="this torch has no linear_cross_entropy")

# name: (options, exception, pattern)
REFUSED_OPTIONS = {
    "a plan": ({"plan": "slow"}, ValueError, "unknown plan 'slow'; choose from auto, fast, lean, reference"),
    "max_bytes 0": ({"max_bytes": 0}, ValueError, "max_bytes must be at least 1, got 0"),
    "chunk_rows -1": ({"chunk_rows": -1}, ValueError, "chunk_rows must be at least 1, got -1"),
    "max_bytes a float": (
        {"max_bytes": 1e9},
        TypeError,
        "max_bytes must be an int or None, got 1000000000.0",
    ),
    "chunk_rows a bool": ({"chunk_rows": True}, TypeError, "chunk_rows must be an int or None, got True"),
}


@pytest.mark.parametrize("case", REFUSED_OPTIONS)
def test_what_options_refuse(case):
    given, kind, pattern = REFUSED_OPTIONS[case]
    error = raised(softkern.LinearCrossEntropyOptions, **given)
    assert type(error) is kind and re.fullmatch(pattern, text(error))


# name: (input, linear_weight, target, options, exception, pattern); softkern's own mistakes
REFUSED = {
    "options": (X, W, Y, {"options": "lean"}, TypeError, "options must be a softkern.Linear.* got 'lean'"),
    "no dims": (X[0, 0], W, Y, {}, RuntimeError, "expected input with dimensionality at least 1, got 0"),
    "target None": (X, W, None, {}, TypeError, "target must be a tensor, got None"),
    "input a list": ([1.0], W, Y, {}, TypeError, r"input must be a tensor, got \[1\.0\]"),
    "bias a number": (X, W, Y, {"linear_bias": 1.0}, TypeError, "linear_bias must be a tensor or None, .*"),
    "weight elsewhere": (
        X,
        W.to("meta"),
        Y,
        {},
        RuntimeError,
        "linear_weight .* device of input, cpu; got meta",
    ),
    "target of other rows": (
        LEAD,
        W,
        Y.view(3, 2),
        {},
        ValueError,
        r"target must have the shape \(2, 3\), or for class probabilities \(2, 3, 5\); got .* \(3, 2\)",
    ),
    "flat target": (LEAD, W, Y, {}, ValueError, r"target must have the shape \(2, 3\), or .* shape \(6,\)"),
    "classes of probabilities": (LEAD, W, P.view(2, 3, C)[..., :4], {}, RuntimeError, ".*multi-target.*"),
    "K indices of other rows": (
        LEAD,
        W,
        PAIRS,
        {"target_probs": SHARES},
        ValueError,
        r"target must have the shape \(2, 3, K\), class indices that target_probs .* \(6, 2\)",
    ),
    "target_probs of other K": (
        LEAD,
        W,
        PAIRS.view(2, 3, K),
        {"target_probs": SHARES.view(2, 3, K)[..., :1]},
        ValueError,
        r"target_probs must have the shape \(2, 3, 2\), got \(2, 3, 1\)",
    ),
    "ignore_index, target_probs": (
        X,
        W,
        PAIRS,
        {"target_probs": SHARES, "ignore_index": -100},
        RuntimeError,
        "ignore_index cannot be specified with target_probs",
    ),
    "row_weight": (
        LEAD,
        W,
        Y.view(2, 3),
        {"row_weight": R},
        ValueError,
        r"row_weight .* \(2, 3\), got \(6,\)",
    ),
    "num_items": (X, W, Y, {"num_items": R}, ValueError, "num_items must be one number, .*"),
    "valid_classes": (X, W, Y, {"valid_classes": 6}, ValueError, "valid_classes .* 1 and .* 5; got 6"),
    "padding": (X, W, Y, {"valid_classes": 4}, IndexError, r"Target 4 is out of bounds\."),
    "stats": (X, W, P, {"stats": ("log_prob",)}, ValueError, "stats 'log_prob' and 'correct' need .*"),
    "softcap": (X, W, Y, {"softcap": 0}, ValueError, r"softcap must be greater than 0, got 0\.0"),
    "K dims, more leading dims": (
        LEAD,
        randn(C, 2, H),
        Y,
        {},
        RuntimeError,
        r"K-dimensional loss .* \(5, 2, 4\) requires batched input, .*, got input with shape \(2, 3, 4\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    x, w, target, options, kind, pattern = REFUSED[case]
    error = raised(softkern.linear_cross_entropy, x, w, target, **options)
    assert type(error) is kind, repr(error)
    assert re.fullmatch(pattern, text(error), re.DOTALL), text(error)


# name: (input, linear_weight, target, options of torch's function)
AS_TORCH = {
    "linear_weight of one dim": (X, W[0], Y, {}),
    "features": (X[:, :3], W, Y, {}),
    "linear_bias": (X, W, Y, {"linear_bias": B[:3]}),
    "K dims without a batch": (X[0], randn(C, 2, H), Y, {}),
    "K-dim linear_bias": (X, randn(C, 2, H), Y, {"linear_bias": B}),
    "linear_weight float32": (X, W.float(), Y, {}),
    "linear_bias float32": (X, W, Y, {"linear_bias": B.float()}),
    "int64": (X.long(), W.long(), Y, {}),
    "ignore_index, probabilities": (X, W, P, {"ignore_index": -100}),
    "ignore_index a float": (X, W, Y, {"ignore_index": 1.5}),
    "rows": (X, W, Y[:4], {}),
    "no rows": (X, W, Y[0], {}),
    "two indices of one row": (X[0], W, Y[:2], {}),
    "target float": (X, W, Y.double(), {}),
    "target int16": (X, W, Y.short(), {}),
    "target a column": (X, W, Y[:, None], {}),
    "target int64, as logits": (X, W, P.long(), {}),
    "classes of probabilities": (X, W, P[:, :4], {}),
    "target elsewhere": (X, W, Y.to("meta"), {}),
    "target out of range": (X, W, Y + 1, {}),
    "weight": (X, W, Y, {"weight": CLASSES[:4]}),
    "weight float32": (X, W, Y, {"weight": CLASSES.float()}),
    "reduction": (X, W, Y, {"reduction": "average"}),
    "smoothing": (X, W, Y, {"label_smoothing": 1.5}),
    "smoothing a string": (X, W, Y, {"label_smoothing": "0.1"}),
}


@needs_torchs
@pytest.mark.parametrize("case", AS_TORCH)
def test_what_torch_refuses_raises_torchs_error(case):
    x, w, target, options = AS_TORCH[case]
    want = raised(torchs_function, x, w, target, **options)
    got = raised(softkern.linear_cross_entropy, x, w, target, **options)
    assert (type(got), text(got)) == (type(want), text(want))
    if (
        x.dim() == 2 and target.dim() == 1 and case != "features" and w.dim() == 2
    ):  # another way to the same check
        assert (
            raised(softkern.linear_cross_entropy, x, w, target, temperature=2.0, **options).args == got.args
        )


class Largest(Recorder):
    """The largest result of an op that has memory."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if isinstance(result, torch.Tensor) and result.device.type != "meta":
            self.elements = max(self.elements, result.untyped_storage().nbytes() // result.element_size())
        return result


@pytest.mark.parametrize(
    "case", ("weight", "weight float32", "rows", "target int16", "smoothing", "target a column")
)
def test_no_logits_are_computed_to_find_a_mistake(case):
    _, _, target, options = AS_TORCH[case]
    x = X.repeat(1000, 1)
    target = target.repeat(1000, *[1] * (target.dim() - 1)) if target.shape[0] == N else target
    with Largest() as seen:
        raised(softkern.linear_cross_entropy, x, W, target, **options)
    assert seen.elements < x.numel()
