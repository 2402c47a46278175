# SPDX-License-Identifier: Apache-2.0
"""The comparisons must be able to fail: each wrong result below was released by some library."""

from __future__ import annotations

import math

import pytest
import torch
from cases import HALVES, logits, name
from compare import assert_close, assert_gradient, assert_same_bits
from tolerances import TABLE

from softkern import reference

f32 = torch.float32
EXPECTED = reference.softmax(logits(64, 100, dtype=torch.float64), 1)  # rows of distinct numbers


def rejects(match: str):
    return pytest.raises(AssertionError, match=match)


@pytest.mark.parametrize("dtype", TABLE, ids=name)
def test_the_correctly_rounded_result_passes(dtype):
    assert_close(EXPECTED.to(dtype), EXPECTED, dtype)
    assert_gradient(EXPECTED.to(dtype), EXPECTED, dtype)


@pytest.mark.parametrize("dtype", TABLE, ids=name)
@pytest.mark.parametrize("ulps", (-16, 16))
def test_one_element_some_ulp_off_is_rejected_and_named(dtype, ulps):
    wrong = EXPECTED.to(dtype).clone()
    wrong[5, 7] *= 1 + ulps * torch.finfo(dtype).eps
    with rejects(r"too far.*1 of 6400 elements, worst at \(5, 7\).*ulp apart"):
        assert_close(wrong, EXPECTED, dtype)


def test_a_subnormal_flushed_to_zero_is_rejected():
    expected = torch.tensor([1.0, 1e-40], dtype=torch.float64)
    with rejects("too far"):
        assert_close(torch.tensor([1.0, 0.0]), expected, f32)


@pytest.mark.parametrize("where", ("actual", "expected"))
def test_a_nan_on_one_side_is_rejected(where):
    a, b = EXPECTED.float(), EXPECTED.clone()
    (a if where == "actual" else b)[3, 0] = math.nan
    with rejects("NaN in other places"):
        assert_close(a, b, f32)


def test_all_nan_is_rejected():
    with rejects("NaN in other places"):
        assert_close(torch.full((3,), math.nan), torch.zeros(3, dtype=torch.float64), f32)


@pytest.mark.parametrize("got, want", ((math.inf, 1.0), (1.0, math.inf), (math.inf, -math.inf)))
def test_an_infinity_on_one_side_or_of_the_other_sign_is_rejected(got, want):
    with rejects("infinities in other places"):
        assert_close(torch.tensor([got]), torch.tensor([want], dtype=torch.float64), f32)


def test_equal_nan_and_infinities_pass_and_do_not_hide_a_neighbour():
    expected = torch.tensor([math.nan, math.inf, -math.inf, 1.0], dtype=torch.float64)
    assert_close(expected.float(), expected, f32)
    wrong = expected.float()
    wrong[3] = 1.001
    with rejects("too far"):
        assert_close(wrong, expected, f32)


@pytest.mark.parametrize("factor", (1.00001, 0.99999, 2.0, -1.0, 0.0))
def test_a_wrong_scale_is_rejected(factor):
    with rejects("too far"):
        assert_close((EXPECTED * factor).float(), EXPECTED, f32)


def test_rows_shifted_by_one_are_rejected():
    with rejects("too far"):
        assert_close(EXPECTED.roll(1, 0).float(), EXPECTED, f32)


def test_a_missing_last_column_is_rejected():
    wrong = EXPECTED.float().clone()
    wrong[:, -1] = 0
    with rejects("64 of 6400 elements"):
        assert_close(wrong, EXPECTED, f32)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=name)
def test_a_biased_gradient_is_rejected_though_every_element_is_close(dtype):
    biased = (EXPECTED * (1 + 0.8 * TABLE[dtype].arithmetic * torch.finfo(dtype).eps)).to(dtype)
    assert_close(biased, EXPECTED, dtype)
    with rejects("biased"):
        assert_gradient(biased, EXPECTED, dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=name)
def test_truncating_to_16_bits_instead_of_rounding_is_rejected_as_a_bias(dtype):
    rounded = EXPECTED.to(dtype)
    below = (rounded.view(torch.int16) - 1).view(dtype)  # all are positive: one ulp nearer zero
    truncated = torch.where(rounded.double() > EXPECTED, below, rounded)
    assert_close(truncated, EXPECTED, dtype, roundings=2)
    assert_gradient(rounded, EXPECTED, dtype, roundings=2)
    with rejects("biased"):
        assert_gradient(truncated, EXPECTED, dtype, roundings=2)


def test_torch_losing_more_grants_more_but_only_k_times_as_much():
    k, eps = TABLE[f32].k, torch.finfo(f32).eps
    torch_result = (EXPECTED * (1 + 100 * eps)).float()
    near = (EXPECTED * (1 + 0.9 * k * 100 * eps)).float()
    far = (EXPECTED * (1 + (1.1 * k * 100 + TABLE[f32].arithmetic) * eps)).float()
    with rejects("too far"):
        assert_close(near, EXPECTED, f32)
    assert_close(near, EXPECTED, f32, torch_result=torch_result)
    with rejects("too far"):
        assert_close(far, EXPECTED, f32, torch_result=torch_result)


def test_a_bound_that_could_hide_a_wrong_formula_is_refused():
    with rejects("would hide a wrong formula"):
        assert_close(EXPECTED.float(), EXPECTED, f32, torch_result=EXPECTED.float() * 1.01)


def test_in_16_bits_an_error_of_torch_grants_nothing():
    wrong = (EXPECTED * 1.05).bfloat16()
    with rejects("too far"):
        assert_close(wrong, EXPECTED, torch.bfloat16, torch_result=wrong)


def test_wrong_dtype_shape_or_type_is_rejected():
    with rejects("expected torch.float32, got torch.float64"):
        assert_close(EXPECTED, EXPECTED, f32)
    with rejects("expected shape"):
        assert_close(EXPECTED[:1].float(), EXPECTED, f32)  # would broadcast
    with rejects("expected a tensor, got float"):
        assert_close(1.0, EXPECTED, f32)
    with rejects("oracle must be float64"):
        assert_close(EXPECTED.float(), EXPECTED.float(), f32)


def test_bits_tell_signed_zeros_one_ulp_and_dtypes_apart():
    zero = torch.zeros(2)
    assert_same_bits(torch.tensor([math.nan, 1.0]), torch.tensor([-math.nan, 1.0]))
    for other in (-zero, torch.tensor([0.0, 1e-45]), torch.tensor([0.0, math.nan])):
        with rejects(r"bits differ"):
            assert_same_bits(zero, other)
    with rejects("expected torch.float64"):
        assert_same_bits(zero, zero.double())
    with rejects("expected shape"):
        assert_same_bits(zero, zero[:1])
