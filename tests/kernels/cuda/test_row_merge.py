# SPDX-License-Identifier: Apache-2.0
"""Rows whose classes are spread over several tensors by the CUDA kernels, on a GPU or in the emulator."""

from __future__ import annotations

import math

import pytest
import torch
from cuda_checks import DEVICE, DTYPES, by_kernels, emulated, way
from cuda_row_checks import problem
from row_losses_cases import ALL, over_targets
from row_parts_checks import check, check_merge, check_special, ops, parts_of, results_of, some_parts

pytestmark = by_kernels

EVERY = {k: v for k, v in ALL.items() if k != "num_items"}
# Three tensors, one of them without classes; 7 parts and the 3 classes of padding.
CUTS, TILE, CLASSES = (0, 16, 16, 51), 8, 51


@over_targets
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_in_parts(target, dtype):
    for kwargs in ({}, EVERY):
        check(*problem((5, CLASSES), dtype, target=target, **kwargs), CUTS, TILE)


def test_one_index_in_a_dimension_of_its_own():
    x, options = problem((5, CLASSES), target="indices", k=1, softcap=3.0)
    del options["target_probs"]
    check(x, options, CUTS, TILE)


@over_targets
def test_rows_without_a_finite_result(target):
    x, options = problem((8, CLASSES), target=target, weight=True, smoothing=0.1, z_loss=0.1)
    x[0, 16:] = -math.inf
    x[1, :16] = -math.inf
    x[2, 20] = math.nan
    x[3, 20] = math.inf
    x[4] = -math.inf
    x[5] += 1e4
    x[6, 3] = -1e4
    check_special(x, options, CUTS, TILE)


@pytest.mark.parametrize("parts", (1, 2, 3, 4, 5, 6, 7, 37, 64, 300))
def test_any_number_of_parts(parts):
    """By two blocks of threads."""
    for dtype in (torch.float32, torch.float64):
        check_merge(torch.empty(0, dtype=dtype, device=DEVICE), some_parts(parts, 70, dtype, DEVICE))
    assert way() == "parts of a row"


@emulated
@pytest.mark.parametrize("target", ("index", "indices"))
def test_an_index_out_of_range_is_an_error(target):
    x, options = problem((4, CLASSES), target=target)
    parts = parts_of(x, options, CUTS, TILE)
    options["target"].view(-1)[-1] = CLASSES
    with pytest.raises(IndexError, match="out of bounds"):
        results_of(x, options, parts)


@emulated
def test_more_parts_than_a_block_has_room_for():
    x = torch.empty(0, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="too many parts"):
        ops.row_parts_merge(x, torch.zeros(7, 8193, 1, dtype=torch.float64))
