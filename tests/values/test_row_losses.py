# SPDX-License-Identifier: Apache-2.0
"""row_losses: results and gradients of all options, against the float64 oracle."""

from __future__ import annotations

import pytest
import torch
from cases import HURTING, name
from cross_entropy_cases import REDUCTIONS, over_dtypes, over_reductions
from hypothesis import given
from hypothesis import strategies as st
from row_losses_cases import ALL, ALONE, PAIRS, TARGETS, over_targets, row_problem, rows_of
from row_losses_checks import MIXES, check, row_losses
from tolerances import DTYPES

# One for each of the ways of the CPU's kernels.
WAYS = ((20, 7), (20, 100), (4, 1001), (3, 7, 20), (3, 40, 20))


@over_dtypes
@over_targets
@pytest.mark.parametrize("case", ALONE)
def test_each_option_alone(case, target, dtype):
    for shape, reduction in zip(
        ((6, 10), (7,), (4, 5, 3), (2, 40, 3, 4)), (*REDUCTIONS, "mean"), strict=True
    ):
        x, options = row_problem(shape, dtype, target=target, **ALONE[case])
        check(x, **options, reduction=reduction)


@over_targets
@pytest.mark.parametrize("case", PAIRS)
def test_options_together(case, target):
    for dtype, reduction in ((torch.float32, "mean"), (torch.bfloat16, "none")):
        x, options = row_problem((6, 40), dtype, target=target, **PAIRS[case])
        check(x, mixes=MIXES[:2], **options, reduction=reduction)


@over_dtypes
@over_reductions
@over_targets
def test_every_way_through_the_kernels(target, reduction, dtype):
    for shape in WAYS:
        x, options = row_problem(shape, dtype, target=target, **ALL)
        check(x, mixes=MIXES[:2], **options, reduction=reduction)


@pytest.mark.parametrize("classes", (1, 2, 3, 15, 16, 17, 31, 33, 63, 64, 65, 250, 1000, 1025, 4097))
@pytest.mark.parametrize("options", ({}, {"softcap": 2.5, "padding": 1}), ids=("plain", "softcap"))
def test_any_number_of_classes(options, classes):
    """Also of those that are valid."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x, given = row_problem((5, classes), dtype, **options)
        check(x, mixes=MIXES[:2], **given, reduction="none")


@over_dtypes
@over_targets
@pytest.mark.parametrize("values", HURTING, ids=name)
def test_logits_chosen_to_hurt(values, target, dtype):
    """Among them: offsets of 1e4 and 1e6, all logits very negative, confident rows."""
    for classes, reduction in ((3, "none"), (17, "mean"), (1000, "none")):
        _, options = row_problem((4, classes), dtype, target=target, z_loss=1e-3)
        check(values(4, classes, dtype), mixes=MIXES[:2], **options, reduction=reduction)


@over_targets
@pytest.mark.parametrize("temperature", (0.1, 10.0))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=name)
def test_temperatures(dtype, temperature, target):
    for classes in (9, 130):
        x, options = row_problem((6, classes), dtype, target=target, temperature=temperature)
        check(x, **options, reduction="none")


@over_dtypes
@over_targets
def test_many_rows(target, dtype):
    x, options = row_problem((3001, 7), dtype, target=target, **ALL)
    check(x, mixes=MIXES[:2], **options)


@over_targets
def test_long_rows(target):
    for dtype in (torch.float32, torch.bfloat16):
        x, options = row_problem((2, 65549), dtype, target=target, softcap=8.0, z_loss=1e-4)
        check(x, mixes=MIXES[:2], **options)


@st.composite
def problems(draw):
    """Any shape, dtype and options."""
    c = draw(st.integers(1, 40))
    inner = draw(st.lists(st.integers(1, 4), max_size=2))
    shape = draw(st.sampled_from([(c,), (draw(st.integers(1, 9)), c, *inner)]))
    kinds = {
        "target": st.sampled_from(TARGETS),
        "k": st.integers(1, 5),
        "weight": st.booleans(),
        "ignore": st.sampled_from((None, -100, 0, c - 1)),
        "smoothing": st.sampled_from((0.0, 0.1, 1.0)),
        "row_weight": st.booleans(),
        "num_items": st.sampled_from((None, 1, 0.37, 1e4)),
        "padding": st.integers(0, c - 1),
        "logit_scale": st.sampled_from((1.0, 0.1, 3.0, -1.0)),
        "softcap": st.sampled_from((None, 3.0, 30.0)),
        "temperature": st.sampled_from((1.0, 0.5, 4.0)),
        "z_loss": st.sampled_from((0.0, 1e-4, 0.5)),
        "seed": st.integers(0, 2**16),
    }
    x, options = row_problem(shape, draw(st.sampled_from(DTYPES)), **draw(st.fixed_dictionaries(kinds)))
    return x, {**options, "reduction": draw(st.sampled_from(REDUCTIONS))}


@given(problem=problems())
def test_any_problem(problem):
    x, options = problem
    check(x, **options)


@pytest.mark.parametrize("shape", ((0, 5), (0, 5, 3), (2, 5, 0), (1, 5), (1, 5, 1)), ids=name)
@over_reductions
@over_targets
def test_no_rows_and_one_row(target, reduction, shape):
    x, options = row_problem(shape, target=target, row_weight=True, z_loss=0.1)
    check(x, **options, reduction=reduction)
    assert rows_of(shape) == tuple(row_losses(x, ("lse",), **options).lse.shape)
