# SPDX-License-Identifier: Apache-2.0
"""softmax and log_softmax: values and gradients against the float64 oracle."""

from __future__ import annotations

import pytest
import torch
from cases import CLASSES, HURTING, LAYOUTS, UPSTREAM, logits, name, special_rows, upstream
from softmax_checks import OPS, check_gradients, check_values
from tolerances import DTYPES

over_ops = pytest.mark.parametrize("op", OPS)
over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=name)

# Every dim of every rank: first, middle and last.
SHAPES_AND_DIMS = [
    (shape, dim) for shape in ((33,), (6, 33), (3, 5, 17), (2, 6, 5, 7)) for dim in range(len(shape))
]


@over_ops
@over_dtypes
@pytest.mark.parametrize("classes", CLASSES)
def test_values_and_gradients_for_any_number_of_classes(op, dtype, classes):
    x = logits(5, classes, dtype=dtype)
    y = check_values(op, x, 1)
    check_gradients(op, x, 1, upstream(y, "random"))


@over_ops
@over_dtypes
@pytest.mark.parametrize("kind", UPSTREAM)
@pytest.mark.parametrize("shape, dim", (((9, 100), 1), ((4, 31, 6), 1)), ids=name)
def test_gradients_for_any_upstream_gradient(op, dtype, kind, shape, dim):
    x = logits(*shape, dtype=dtype)
    check_gradients(op, x, dim, upstream(x, kind))


@over_ops
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=name)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape, dim", SHAPES_AND_DIMS, ids=name)
def test_any_layout_and_dim(op, dtype, layout, shape, dim):
    x = LAYOUTS[layout](logits(*shape, dtype=dtype))
    y = check_values(op, x, dim)
    check_values(op, x, dim - len(shape))  # the same dim, counted from the end
    check_gradients(op, x, dim, LAYOUTS[layout](upstream(y, "random")))


@over_ops
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", (torch.float64, torch.float16), ids=name)
def test_any_layout_in_the_other_dtypes(op, dtype, layout):
    x = LAYOUTS[layout](logits(4, 18, dtype=dtype))
    check_gradients(op, x, 1, LAYOUTS[layout](upstream(check_values(op, x, 1), "random")))


@over_ops
@over_dtypes
@pytest.mark.parametrize("hurt", HURTING, ids=name)
@pytest.mark.parametrize("classes", (3, 17, 1000))
def test_logits_chosen_to_hurt(op, dtype, hurt, classes):
    x = hurt(4, classes, dtype)
    check_gradients(op, x, 1, upstream(check_values(op, x, 1), "random"))


@over_ops
@over_dtypes
@pytest.mark.parametrize("classes", (1, 2, 16, 17, 65, 130))
def test_rows_that_are_not_finite(op, dtype, classes):
    """Which elements are NaN or infinite is the oracle's word; test_reference ties it to torch."""
    x = special_rows(classes, dtype)
    check_gradients(op, x, 1, upstream(check_values(op, x, 1), "random"))
    check_gradients(op, x.t().contiguous(), 0, upstream(check_values(op, x.t(), 0), "random"))


@over_ops
@over_dtypes
def test_a_gradient_that_is_not_finite_stays_in_its_row(op, dtype):
    x = logits(4, 19, dtype=dtype)
    grad = upstream(x, "random")
    grad[1, 3], grad[2, 0] = float("nan"), float("inf")
    check_gradients(op, x, 1, grad)


@over_ops
@over_dtypes
def test_many_short_rows(op, dtype):
    """More rows than fit into one block or one thread's share."""
    x = logits(3001, 3, dtype=dtype)
    check_gradients(op, x, 1, upstream(check_values(op, x, 1), "random"))


@over_ops
@over_dtypes
def test_one_very_long_row(op, dtype):
    """More than a cache or a 16-bit counter of columns holds, and no multiple of a vector."""
    x = logits(1, 65549, dtype=dtype)
    check_gradients(op, x, 1, upstream(check_values(op, x, 1), "random"))
