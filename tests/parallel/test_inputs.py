# SPDX-License-Identifier: Apache-2.0
"""Logits that hurt, also where only some ranks have them."""

from __future__ import annotations

import pytest
import torch
from cases import HURTING, LAYOUTS, logits, name, special_rows
from cross_entropy_cases import over_dtypes, over_reductions
from parallel_cases import check, slices, statistics
from row_losses_cases import row_problem
from threaded_ranks import on_ranks

from softkern.parallel import cross_entropy

over_targets = pytest.mark.parametrize("target", ("index", "indices", "probs"))
SHARDS = ((16, 16, 8), (1, 0, 39))  # 5 tiles of 8 classes; no tiles


@over_targets
@pytest.mark.parametrize("values", HURTING, ids=name)
def test_logits_far_from_zero_and_from_each_other(values, target):
    for dtype, widths in ((torch.float32, SHARDS[0]), (torch.float16, SHARDS[1])):
        x = values(6, 40, dtype)
        _, options = row_problem((6, 40), dtype, target=target)
        check(x, widths, **options)
        check(x, widths, **options, label_smoothing=0.1, z_loss=1e-3, temperature=0.5)


@over_targets
@over_dtypes
def test_rows_that_are_not_finite(dtype, target):
    """NaN, inf or only -inf, in one rank's classes or in all; each odd value is the target and is not."""
    x = special_rows(40, dtype)
    _, given = row_problem((len(x), 40), dtype, target=target)
    targets = [given["target"].clamp(min=0.01) if target == "probs" else given["target"]]
    if target == "index":
        targets = [torch.full((len(x),), c) for c in (0, 20, 39)]
    for i, y in enumerate(targets):
        for more in ({}, {"softcap": 4.0}, {"label_smoothing": 0.1, "logit_scale": -1.5}):
            check(x, SHARDS[i % 2], **{**given, "target": y}, **more, reduction="none")


@over_dtypes
@over_reductions
def test_ignored_rows_are_nothing_whatever_their_logits(reduction, dtype):
    x = torch.cat([special_rows(40, dtype), logits(4, 40, dtype=dtype)])
    target = torch.full((len(x),), -100)
    target[-4:] = torch.tensor([0, 15, 16, 39])
    for more in ({}, {"label_smoothing": 0.1, "softcap": 3.0, "z_loss": 0.1}):
        for dx in check(x, SHARDS[0], target=target, **more, reduction=reduction).dx:
            assert not dx[:-4].any() and dx[-4:].any(1).all()


def test_padding_is_not_there_whatever_it_holds():
    """Also if a rank has nothing else."""
    x, options = row_problem((6, 40), smoothing=0.1, padding=10)
    for fill in (torch.nan, torch.inf, -torch.inf):
        x[:, 30:] = fill
        for widths in ((20, 20), (30, 10), (16, 8, 16), (35, 5)):
            for dx in check(x, widths, **options).dx:
                assert not dx[:, 30:].any()


def test_the_first_of_several_maxima_wherever_the_ranks_have_them():
    x = logits(64, 40).clamp(max=2)
    x.scatter_(1, torch.arange(64).unsqueeze(1) * torch.tensor([3, 7, 1]) % 40, 9)
    x[0], x[1], x[2, 20:] = 0.0, -torch.inf, torch.inf
    for widths in (*SHARDS, (0, 20, 20)):
        check(x, widths, ("argmax", "correct"), target=x.argmax(1), reduction="none")
        check(x, widths, ("argmax", "correct"), target=x.argmax(1).roll(1), reduction="none")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout):
    """Of the ranks' logits, probabilities and upstream gradients."""
    x, options = row_problem((4, 6, 3), target="probs", smoothing=0.1)
    whole, stats = LAYOUTS[layout](x), ("lse",)

    def results(place):
        def one(rank):
            own, y = (place(slices(t, (2, 4))[rank].clone()) for t in (whole, options["target"]))
            leaf = own.detach().requires_grad_()
            loss, found = cross_entropy(leaf, y, reduction="none", label_smoothing=0.1, stats=stats)
            grads = [place(logits(4, 3, seed=7)), place(logits(4, 3, seed=8))]
            return (loss.detach(), *torch.autograd.grad((loss, found.lse), leaf, grads))

        return on_ranks(2, one)

    # Layouts that repeat numbers make other problems: those of the tensors that they make.
    repeats = layout.startswith("expanded")
    place = LAYOUTS[layout]
    want = results(lambda t: place(t).contiguous() if repeats else t)
    for got, expected in zip(results(place), want, strict=True):
        for a, b in zip(got, expected, strict=True):
            assert torch.equal(a, b)


def test_statistics_of_every_kind_of_target():
    assert statistics(torch.ones(2, 3), torch.ones(2, 3)) == ("lse", "entropy", "argmax")
