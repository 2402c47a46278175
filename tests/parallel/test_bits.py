# SPDX-License-Identifier: Apache-2.0
"""The same bits for every number of ranks that have whole tiles, and for every way of sending."""

from __future__ import annotations

import pytest
import torch
from cases import logits, name
from compare import assert_same_bits
from parallel_cases import assert_equal_bits, check, sharded
from row_losses_cases import ALL, row_problem

from softkern.parallel._vocabulary import vocabulary

V = 640
# What most users send, and what sends most: statistics, and masses of all classes.
PROBLEMS = {
    "index": {"z_loss": 1e-4},
    "indices": {**ALL, "padding": 5, "softcap": 500.0},
    "probs": {**ALL, "padding": 5, "softcap": 500.0},
}


def problem(target, dtype=torch.float32):
    """Rows whose tiles have maxima that are close and far apart."""
    x, options = row_problem((5, V), dtype, target=target, **PROBLEMS[target])
    return x * torch.tensor([1, 10, 0.1, 100, 3]).to(dtype)[:, None], options


@pytest.mark.parametrize("target", PROBLEMS)
def test_equal_shards(target):
    x, options = problem(target)
    alone = check(x, (V,), **options)
    for ranks in (2, 4, 8, 16, 32):
        assert_equal_bits(sharded(x, (V // ranks,) * ranks, **options), alone)


@pytest.mark.parametrize("exchange", ("gather", "rows"))
def test_one_tile_on_each_of_64_ranks(exchange):
    x, options = problem("index")
    how = {"exchange": exchange}
    assert_equal_bits(sharded(x, (10,) * 64, how=how, **options), sharded(x, (V,), **options))


@pytest.mark.parametrize("target", PROBLEMS)
@pytest.mark.parametrize("tiles", ((32, 16, 16), (21, 43), (0, 5, 1, 58, 0), (16, 0, 16, 16, 16)))
def test_shards_of_whole_tiles_that_are_not_equal(tiles, target):
    x, options = problem(target)
    widths = [n * 10 for n in tiles]
    assert vocabulary(widths).tree
    assert_equal_bits(sharded(x, widths, **options), sharded(x, (V,), **options))


@pytest.mark.parametrize("target", PROBLEMS)
@pytest.mark.parametrize("widths", ((320, 320), (210, 430), (17, 0, 623)), ids=name)
def test_every_way_of_sending(widths, target):
    """Also with shards that have no whole tiles, whose bits depend on the shards alone."""
    x, options = problem(target)
    one = sharded(x, widths, **options)
    for how in (
        {"exchange": "rows"},
        {"row_chunks": 3},
        {"exchange": "rows", "row_chunks": 3},
        {"row_chunks": 9},
    ):
        assert_equal_bits(sharded(x, widths, how=how, **options), one)


@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16, torch.float16), ids=name)
def test_other_dtypes(dtype):
    x, options = problem("index", dtype)
    x = x.clamp(-1e4, 1e4)
    for widths in ((160,) * 4, (320, 160, 160)):
        assert_equal_bits(sharded(x, widths, **options), sharded(x, (V,), **options))


def test_a_real_vocabulary():
    x, y = logits(3, 32000), torch.tensor([31999, 500, 16000])
    alone = check(x, (32000,), target=y)
    for widths in ((16000, 16000), (4000,) * 8, (16000, 8000, 8000)):
        assert_equal_bits(sharded(x, widths, target=y), alone)


def test_a_row_depends_on_itself_alone():
    """Not on the other rows, nor on which of its ranks' threads computes it."""
    x, y = logits(40, V), torch.arange(40) * 16
    whole = sharded(x, (320, 320), target=y, reduction="none")
    some = sharded(x[11:13], (320, 320), target=y[11:13], reduction="none")
    for a, b in zip(some.found[:4], whole.found[:4], strict=True):
        assert_same_bits(a, b[11:13])
