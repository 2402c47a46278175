# SPDX-License-Identifier: Apache-2.0
"""What a mean over the rows of all ranks divides by, and ranks that share rows as well as classes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from cases import logits
from row_losses_cases import row_problem
from threaded_ranks import on_ranks

import softkern
from softkern.parallel import cross_entropy, num_items

IGNORED = -100


def rows_of(rank):
    """Three ranks: the second has ignored rows alone."""
    target = torch.tensor([0, 1, IGNORED, 3, 2, IGNORED, IGNORED, 4, 4])
    return target[[slice(0, 5), slice(5, 7), slice(7, 9)][rank]]


def test_a_count_of_the_rows_of_all_ranks():
    for found in on_ranks(3, lambda rank: num_items(rows_of(rank), dist.group.WORLD)):
        assert found.dtype == torch.int64 and found.shape == () and found == 6
    found = num_items(rows_of(0))
    assert found.dtype == torch.int64 and found == 4
    assert num_items(rows_of(0), ignore_index=3) == 4 and num_items(torch.tensor(2)) == 1
    assert num_items(torch.arange(24).view(2, 3, 4), ignore_index=5) == 23


def test_counts_are_exact_beyond_what_float32_holds():
    target = torch.zeros((), dtype=torch.uint8).expand(2**24 + 1)
    assert num_items(target) == 2**24 + 1


def test_weights_are_added_in_float64_in_the_order_of_the_ranks():
    weight = torch.tensor([1.0, 2.0**-30, 0.5, 3.0, 1e8])
    row_weight = torch.tensor([1.0, 0.5, 3.0, 0.25, 0.0, 7.0, 7.0, 2.0, 1.0])
    parts = row_weight.split([5, 2, 2])
    for options, want in (
        ({"weight": weight}, [1 + 2.0**-30 + 3 + 0.5, 0, 2 * 1e8]),
        ({"row_weight": True}, [1 + 0.5 + 0.25, 0, 3]),
        ({"weight": weight, "row_weight": True}, [1 + 2.0**-31 + 0.75, 0, 3 * 1e8]),
    ):

        def one(rank):
            given = {**options, "row_weight": parts[rank]} if "row_weight" in options else options  # noqa: B023
            return num_items(rows_of(rank), dist.group.WORLD, **given)

        for found in on_ranks(3, one):
            assert found.dtype == torch.float64 and found == want[0] + want[1] + want[2]


def test_numbers_that_ignored_rows_have_do_not_count():
    target = torch.tensor([1, IGNORED])
    for bad in (torch.nan, torch.inf):
        assert num_items(target, row_weight=torch.tensor([2.0, bad])) == 2
        assert num_items(target, weight=torch.tensor([bad, 3.0])) == 3


def on_a_grid(classes, rows, call):
    """call(rank of the classes, their group, rank of the rows, their group) of all ranks of a grid."""

    def one(rank):
        # All ranks make all groups, in the same order.
        by_row = [dist.new_group([r * classes + c for c in range(classes)]) for r in range(rows)]
        by_class = [dist.new_group([r * classes + c for r in range(rows)]) for c in range(classes)]
        r, c = divmod(rank, classes)
        return call(c, by_row[r], r, by_class[c])

    return on_ranks(classes * rows, one)


@pytest.mark.parametrize("target", ("index", "indices", "probs"))
@pytest.mark.parametrize("option", ("plain", "ignored", "weighted", "all ignored on a rank", "chunks"))
def test_the_shares_of_a_mean_add_up_to_it(option, target):
    """2 x 2 ranks. Each rank's gradient is its slice of that of the whole mean."""
    kind = {"weight": True, "row_weight": True} if option == "weighted" else {}
    kind |= {"ignore": 3} if option == "ignored" and target == "index" else {}
    x, options = row_problem((7, 16), torch.float64, target=target, smoothing=0.1, z_loss=0.1, **kind)
    if option.startswith("all ignored") and target == "index":
        options["target"][:4] = IGNORED
    whole = x.clone().requires_grad_()
    want = softkern.cross_entropy(whole, **options)
    (dx,) = torch.autograd.grad(want, whole)
    of_rows = ("target", "target_probs", "row_weight")
    how = {"row_chunks": 2, "exchange": "rows"} if option == "chunks" else {}

    def share(c, classes, r, rows):
        mine, part = slice(4 * r, 4 + 3 * r), slice(8 * c, 8 + 8 * c)
        given = {k: v[mine] if k in of_rows else v for k, v in options.items()}
        if target == "probs":
            given["target"] = given["target"][:, part]
        leaf = x[mine, part].clone().requires_grad_()
        loss = cross_entropy(leaf, group=classes, row_group=rows, **given, **how)
        torch.testing.assert_close(torch.autograd.grad(loss, leaf)[0], dx[mine, part])
        return loss.detach()

    losses = on_a_grid(2, 2, share)
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[2], losses[3])
    torch.testing.assert_close(losses[0] + losses[2], want.detach())
    if option.startswith("all ignored") and target == "index":
        assert losses[0] == 0, "a rank without rows that count adds nothing"


def test_only_a_global_count_of_zero_gives_nan():
    """And gradients of zero all the same."""
    x, target = logits(4, 8), torch.full((2,), IGNORED)

    def one(c, classes, r, rows):
        leaf = x[2 * r : 2 * r + 2, 4 * c : 4 * c + 4].clone().requires_grad_()
        for options in ({}, {"weight": torch.ones(8)}, {"row_weight": torch.ones(2)}):
            loss = cross_entropy(leaf, target, classes, row_group=rows, **options)
            assert loss.isnan()
            assert not torch.autograd.grad(loss, leaf)[0].any()

    on_a_grid(2, 2, one)


def test_num_items_that_are_given_come_first():
    """The caller has counted, such as over several batches; a sum and "none" divide by nothing."""
    x, target = logits(4, 8), torch.arange(4)
    sums = softkern.cross_entropy(x, target, reduction="sum")

    def one(rank):
        own = x.chunk(2, 1)[rank]
        for items in (10, 10.0, torch.tensor(10), torch.tensor([10.0])):
            loss = cross_entropy(own, target, num_items=items, row_group=dist.group.WORLD)
            torch.testing.assert_close(loss, sums / 10)
        for reduction in ("sum", "none"):
            loss = cross_entropy(own, target, reduction=reduction, row_group=dist.group.WORLD)
            torch.testing.assert_close(loss.sum(), sums)

    on_ranks(2, one)


def test_a_sum_and_a_count_for_those_who_average_over_ranks():
    """FSDP divides by its ranks: the sum of a rank times the ranks over the global count."""
    x, target = logits(6, 8), torch.tensor([0, 1, IGNORED, 3, IGNORED, IGNORED])
    want = softkern.cross_entropy(x, target)

    def one(rank):
        alone = [dist.new_group([r]) for r in range(3)][rank]
        mine = slice(2 * rank, 2 * rank + 2)
        count = num_items(target[mine], dist.group.WORLD)
        loss = cross_entropy(x[mine], target[mine], alone, reduction="sum") * 3 / count
        dist.all_reduce(loss)
        torch.testing.assert_close(loss / 3, want)

    on_ranks(3, one)


def test_weights_of_targets_that_are_no_classes_and_of_no_target():
    """The loss raises for the first, and no rank waits for it; without a weight a mean is NaN."""
    weight = torch.tensor([1.0, 2.0, 0.0])
    assert num_items(torch.tensor([0, 1, 3, -1]), weight=weight) == 3
    for rows in (torch.tensor([2]), torch.tensor([-100])):
        assert num_items(rows, weight=weight).isnan()
