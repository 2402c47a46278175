# SPDX-License-Identifier: Apache-2.0
"""cross_entropy: values against the float64 oracle."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from cases import CLASSES, HALVES, HURTING, LAYOUTS, logits, name, special_rows
from compare import assert_close
from cross_entropy_cases import (
    OPTIONS,
    SHAPES,
    indices,
    over_dtypes,
    over_kinds,
    over_reductions,
    probabilities,
    problem,
)
from cross_entropy_checks import check_values
from tolerances import DTYPES

import softkern


@over_dtypes
@over_reductions
@pytest.mark.parametrize("options", OPTIONS, ids=name)
@pytest.mark.parametrize("shape", SHAPES, ids=name)
def test_every_option_in_every_shape(shape, options, reduction, dtype):
    x, target, kwargs = problem(shape, dtype, **options)
    check_values(x, target, reduction, **kwargs)


@over_dtypes
@over_kinds
@pytest.mark.parametrize("classes", CLASSES)
def test_any_number_of_classes(classes, kind, dtype):
    x, target, kwargs = problem((5, classes), dtype, **kind)
    check_values(x, target, "none", **kwargs)


@over_kinds
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=name)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", ((33,), (6, 33), (3, 17, 5), (2, 6, 5, 7)), ids=name)
def test_any_layout_of_the_logits(shape, layout, dtype, kind):
    x, target, kwargs = problem(shape, dtype, **kind)
    x = LAYOUTS[layout](x)
    if target.is_floating_point():
        target = LAYOUTS[layout](target)
    check_values(x, target, "none", **kwargs)


@over_kinds
def test_probabilities_and_logits_of_different_layouts(kind):
    x, target, kwargs = problem((3, 17, 5), **kind)
    for layout in LAYOUTS.values():
        t = layout(target) if target.is_floating_point() else target
        check_values(x.transpose(0, 1).contiguous().transpose(0, 1), t, "none", **kwargs)


@pytest.mark.parametrize("dtype", (torch.int64, torch.int32), ids=name)
@pytest.mark.parametrize("layout", ("clone", "offset", "every_other", "transposed", "expanded"))
def test_any_layout_of_the_indices(dtype, layout):
    x = logits(4, 9, 6)
    target = LAYOUTS[layout](indices((4, 9, 6)).to(dtype))
    check_values(x, target, "none")
    check_values(x, target, "mean", ignore_index=int(target[0, 0]))


@pytest.mark.parametrize("dtype", (torch.int64, torch.int32, torch.uint8), ids=name)
@pytest.mark.parametrize("ignore", (-100, 3, 255))
def test_any_dtype_of_the_indices(dtype, ignore):
    """int32 is softkern's addition, uint8 is torch's own second choice; 255 fits it, -100 not."""
    x, target = logits(30, 9), indices((30, 9)).to(dtype)
    check_values(x, target, "none", ignore_index=ignore)
    check_values(x, target, "mean", ignore_index=ignore, label_smoothing=0.1)


@pytest.mark.parametrize("layout", ("offset", "every_other", "expanded_classes"))
@over_kinds
def test_any_layout_of_the_weights(layout, kind):
    x, target, kwargs = problem((6, 17), **{**kind, "weight": True})
    kwargs["weight"] = LAYOUTS[layout](kwargs["weight"])
    check_values(x, target, **kwargs)


@over_dtypes
@over_kinds
@over_reductions
@pytest.mark.parametrize("hurt", HURTING, ids=name)
@pytest.mark.parametrize("classes", (3, 17, 1000))
def test_logits_chosen_to_hurt(classes, hurt, reduction, kind, dtype):
    x = hurt(4, classes, dtype)
    _, target, kwargs = problem((4, classes), dtype, **kind)
    check_values(x, target, reduction, **kwargs)


@over_dtypes
@pytest.mark.parametrize("options", OPTIONS, ids=name)
@pytest.mark.parametrize("classes", (2, 17, 65))
def test_rows_that_are_not_finite(classes, options, dtype):
    """Which losses are NaN or infinite is the oracle's word; test_reference ties it to torch."""
    x = special_rows(classes, dtype)
    _, target, kwargs = problem((len(x), classes), dtype, **options)
    check_values(x, target, "none", **kwargs)
    if not target.is_floating_point():  # each odd value is the target once, and once it is not
        for c in (0, classes // 2, classes - 1):
            check_values(x, torch.full((len(x),), c), "none", **kwargs)


@over_reductions
@over_dtypes
def test_ignored_rows_that_are_not_finite_do_not_reach_the_loss(dtype, reduction):
    x = torch.cat([special_rows(9, dtype), logits(4, 9, dtype=dtype)])
    target = torch.full((len(x),), -100)
    target[-4:] = torch.tensor([0, 3, 8, 5])
    for smoothing in (0.0, 0.1):
        loss = check_values(x, target, reduction, label_smoothing=smoothing)
        assert bool(loss.isfinite().all())


@pytest.mark.parametrize("options", OPTIONS[8:], ids=name)
def test_targets_that_are_no_distribution(options):
    """Negative, above 1, not summing to 1: the formula is linear in them and does not care."""
    x, target, kwargs = problem((6, 17), **options)
    for t in (target * -2, target + 1.5, torch.zeros_like(target), logits(6, 17, seed=2)):
        check_values(x, t, "none", **kwargs)


@pytest.mark.parametrize("target_dtype", DTYPES, ids=name)
@over_dtypes
def test_probabilities_of_another_dtype(dtype, target_dtype):
    x, target = logits(6, 17, dtype=dtype), probabilities((6, 17), target_dtype)
    ours = softkern.cross_entropy(x, target)
    assert ours.dtype == F.cross_entropy(x, target).dtype
    expected = F.cross_entropy(x.double(), target.double())
    # Either dtype's half ulp: torch multiplies in the wider one what it has rounded to the other.
    low = dtype if torch.finfo(dtype).eps > torch.finfo(target_dtype).eps else target_dtype
    assert_close(ours.to(low), expected, low, roundings=3, scale=2 + expected)


@over_dtypes
@over_reductions
@over_kinds
def test_many_rows(kind, reduction, dtype):
    x, target, kwargs = problem((3001, 7), dtype, **kind)
    check_values(x, target, reduction, **kwargs)


@over_dtypes
@over_kinds
def test_long_rows(kind, dtype):
    x, target, kwargs = problem((2, 65549), dtype, **kind)
    check_values(x, target, "none", **kwargs)


@pytest.mark.parametrize("dtype", HALVES, ids=name)
def test_a_mean_over_more_rows_than_fp16_can_count(dtype):
    """torch divides by 70,000, which is infinite in fp16, a sum that has overflowed before."""
    x = logits(70000, 2, dtype=dtype)
    loss = check_values(x, torch.zeros(70000, dtype=torch.long))
    assert math.isfinite(loss)
