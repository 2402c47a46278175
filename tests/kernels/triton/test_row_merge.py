# SPDX-License-Identifier: Apache-2.0
"""Rows whose classes are spread over several tensors in Triton's interpreter. `make triton` runs them."""

from __future__ import annotations

import math
import os

import pytest
import torch
from row_losses_cases import ALL, over_targets, row_problem
from row_parts_checks import check, check_merge, check_special, some_parts

import softkern

pytest.importorskip("triton", reason="the Triton backend needs Triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if INTERPRETED:
    import triton_interpreter

    import softkern.triton

    triton_interpreter.look_once()
    softkern.triton.register()

pytestmark = [
    pytest.mark.skipif(not INTERPRETED, reason="not a process with TRITON_INTERPRET=1"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # NumPy's, of infinities
    pytest.mark.usefixtures("triton"),
]
EVERY = {k: v for k, v in ALL.items() if k != "num_items"}
# Three tensors, one of them without classes; 7 parts and the 3 classes of padding.
CUTS, TILE, CLASSES = (0, 16, 16, 51), 8, 51
inf, nan = math.inf, math.nan


@pytest.fixture
def triton():
    with softkern.use_backend("triton"):
        yield


@over_targets
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16), ids=str)
def test_rows_in_parts(target, dtype):
    check(*row_problem((5, CLASSES), dtype, target=target, **EVERY), CUTS, TILE)


@over_targets
def test_no_options(target):
    check(*row_problem((5, CLASSES), target=target), CUTS, TILE)


def test_one_index_in_a_dimension_of_its_own():
    x, options = row_problem((5, CLASSES), target="indices", k=1, softcap=3.0)
    del options["target_probs"]
    check(x, options, CUTS, TILE)


@over_targets
def test_rows_without_a_finite_result(target):
    x, options = row_problem((8, CLASSES), target=target, weight=True, smoothing=0.1, z_loss=0.1)
    x[0, 16:] = -inf
    x[1, :16] = -inf
    x[2, 20] = nan
    x[3, 20] = inf
    x[4] = -inf
    x[5] += 1e4
    x[6, 3] = -1e4
    check_special(x, options, CUTS, TILE)


@pytest.mark.parametrize("parts", (1, 2, 3, 4, 5, 6, 7, 64))
def test_any_number_of_parts(parts):
    """Of rows by two programs, or merged in two launches."""
    check_merge(torch.empty(0), some_parts(parts, 70 if parts < 4 else 10, torch.float32))


def test_numbers_of_float64():
    check_merge(torch.empty(0, dtype=torch.float64), some_parts(7, 10, torch.float64))
