# SPDX-License-Identifier: Apache-2.0
"""log_softmax: the digits that it keeps and log(softmax(x)) loses. (Values: see test_softmax.py.)"""

from __future__ import annotations

import math

import pytest
import torch
from cases import logits, name
from compare import assert_close
from softmax_checks import check_values
from tolerances import DTYPES

import softkern
from softkern import reference

over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=name)


@over_dtypes
def test_a_class_with_probability_zero_keeps_its_finite_logarithm(dtype):
    x = torch.tensor([[0.0, -200.0, -1000.0]], dtype=dtype)
    assert bool((softkern.softmax(x.float(), 1)[0, 1:] == 0).all())
    y = check_values("log_softmax", x, 1)
    assert torch.equal(y[:, 1:], x[:, 1:])  # the first is 0 or, where that is a number, -exp(-200)


@over_dtypes
def test_a_masked_class_is_minus_infinity_and_leaves_the_others_alone(dtype):
    x = logits(3, 20, dtype=dtype)
    masked = x.clone()
    masked[:, 7] = -math.inf
    y = check_values("log_softmax", masked, 1)
    assert bool((y[:, 7] == -math.inf).all())
    others = [c for c in range(20) if c != 7]
    assert_close(
        y[:, others],
        reference.log_softmax(x[:, others].double(), 1),
        dtype,
        scale=1 + y[:, others].double().abs(),
    )


@over_dtypes
def test_equal_logits_give_the_logarithm_of_their_number(dtype):
    """131,072 of them: a sum kept in fp16 overflows at 65,504."""
    x = torch.full((1, 131072), 2.0, dtype=dtype)
    expected = torch.full((1, 131072), -math.log(131072), dtype=torch.float64)
    assert_close(softkern.log_softmax(x, 1), expected, dtype, scale=1 + expected.abs())


def test_a_likely_class_keeps_the_digits_of_its_small_logarithm():
    """(x - m) - log d: with log d = 0.0009 added to a maximum of 1e4 four digits would be lost."""
    x = torch.tensor([[7.0, 0.0]], dtype=torch.float32) + 1e4
    expected = reference.log_softmax(x.double(), 1)
    assert_close(
        softkern.log_softmax(x, 1)[:, :1],
        expected[:, :1],
        torch.float32,
        scale=torch.ones(1, 1, dtype=torch.float64),
    )
