# SPDX-License-Identifier: Apache-2.0
"""softkern.parallel.cross_entropy against float64: every kind of target, every option, any shards."""

from __future__ import annotations

import pytest
import torch
from cases import UPSTREAM, name
from cross_entropy_cases import over_reductions
from parallel_cases import check, sharded, slices
from row_losses_cases import ALL, ALONE, row_problem
from threaded_ranks import on_ranks
from tolerances import DTYPES

from softkern.parallel import cross_entropy

over_targets = pytest.mark.parametrize("target", ("index", "indices", "probs"))
EVERY_WAY = ({}, {"exchange": "rows"}, {"row_chunks": 3}, {"exchange": "rows", "row_chunks": 2})
# even, uneven, some without classes, one of them without any but padding
SHARDS = ((20, 20), (7, 33), (0, 20, 0, 18, 2), (40,))


@over_targets
@pytest.mark.parametrize("option", (*ALONE, "all"))
def test_every_option(option, target):
    options = {**ALONE, "all": ALL}[option]
    for widths in SHARDS:
        x, given = row_problem((6, 40), target=target, **options)
        check(x, widths, **given)


@over_targets
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_every_shape_and_dtype(dtype, target):
    for shape, widths in (
        ((13,), (5, 8)),
        ((6, 40), (7, 0, 33)),
        ((3, 17, 5), (6, 5, 6)),
        ((2, 8, 3, 2), (4, 4)),
    ):
        x, options = row_problem(shape, dtype, target=target, **ALL)
        check(x, widths, **options)
        check(x, widths, (), **options)


@over_targets
@over_reductions
def test_every_reduction_and_way_of_sending(reduction, target):
    x, options = row_problem((5, 24), target=target, **ALL)
    for how, kind in zip(EVERY_WAY, (*UPSTREAM, "random"), strict=True):
        check(x, (8, 16), None, kind, how=how, **options, reduction=reduction)


@over_targets
def test_more_ranks_than_classes_or_rows(target):
    """Most ranks have no classes, or none of the rows to merge."""
    for shape, widths in (((2, 3), (1, 0, 1, 1, 0, 0)), ((1, 8), (1,) * 8)):
        for how in EVERY_WAY:
            x, options = row_problem(shape, target=target, z_loss=0.1)
            check(x, widths, how=how, **options)


@over_targets
def test_no_rows(target):
    for shape in ((0, 8), (3, 8, 0)):
        for how in EVERY_WAY:
            x, options = row_problem(shape, target=target)
            result = sharded(x, (3, 5), how=how, **options)
            assert result.found.loss.isnan(), "0/0"
            assert result.dx[0].shape == x.shape


@pytest.mark.parametrize("dtype", (torch.int32, torch.uint8), ids=name)
def test_other_dtypes_of_the_indices(dtype):
    for target, more in (("index", {"ignore": 2}), ("indices", {})):
        x, options = row_problem((6, 40), target=target, **more)
        options["target"] = options["target"].to(dtype)
        check(x, (20, 20), **options)


def test_weights_of_the_rank_are_those_of_whole_rows():
    """Of uneven shards, one of which has none."""
    x, options = row_problem((6, 40), **ALL)
    widths = (17, 0, 23)
    xs, weights = slices(x, widths), options["weight"].split(list(widths))
    whole = sharded(x, widths, (), **options).found.loss
    losses = on_ranks(3, lambda r: cross_entropy(xs[r], **{**options, "weight": weights[r]}))
    assert all(torch.equal(loss, whole) for loss in losses)


def test_any_numbers_of_classes_that_are_said():
    """As one number for ranks that chunk it, or as one for each rank."""
    x, options = row_problem((6, 40))
    for widths, said in (((14, 14, 12), 40), ((14, 14, 12), [14, 14, 12]), ((0, 39, 1), (0, 39, 1))):
        check(x, widths, how={"classes": said}, **options)


def test_tiles_that_are_asked_for():
    x, options = row_problem((6, 40), **ALL)
    for widths, tiles in (((20, 20), 2), ((15, 25), 8), ((40,), 1)):
        check(x, widths, how={"tiles": tiles}, **options)
