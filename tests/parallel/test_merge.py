# SPDX-License-Identifier: Apache-2.0
"""The ops below softkern.parallel without a process group: numbers of slices of the classes, merged."""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import logits, name
from compare import assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from parallel_cases import slices, statistics
from row_losses_cases import ALL, row_problem
from row_losses_checks import DIFFERENTIABLE, OUTPUTS, arguments, check_values
from tolerances import DTYPES

from softkern.parallel import _exchange
from softkern.parallel._rows import Shard, _first_largest
from softkern.parallel._vocabulary import vocabulary
from softkern.reference_rows import RowLosses

ops = torch.ops.softkern
KINDS = ("index", "indices", "probs")


def merged(x, widths, tiles=None, **options):
    """The results that depend on no order of classes, and the numbers of whole rows."""
    of = vocabulary(widths, tiles)
    options = {"valid_classes": x.shape[1], **options}
    target, names = options["target"], ("loss", *statistics(x, **options))
    sent, hot_z = [], 0
    ys = slices(target, widths) if target.is_floating_point() else [target] * of.ranks
    for rank, (own, y) in enumerate(zip(slices(x, widths), ys, strict=True)):
        args = arguments(own, names, **{**options, "target": y})
        parts, own_hot_z, _ = ops.row_parts(own, *args, of.bounds[rank], of.tile)
        hot_z = hot_z + own_hot_z
        sent.append(_exchange.merge_own(own, parts, Shard(None, rank, of, False, 1)))
    parts = _exchange.merge_all(x, torch.stack(sent), of)
    *results, whole = ops.row_parts_results(x, parts, hot_z, *arguments(x, names, **options))
    found = {n: t if n in names else None for n, t in zip(DIFFERENTIABLE, results, strict=True)}
    return RowLosses(**found, argmax=None, correct=None), whole


def same(one, other):
    for a, b in zip([*one[0][:4], one[1]], [*other[0][:4], other[1]], strict=True):
        if a is not None:
            assert_same_bits(a, b)


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any),
    st.sampled_from(KINDS),
    st.sampled_from(DTYPES),
    st.booleans(),
)
def test_slices_of_any_widths_make_up_whole_rows(widths, target, dtype, every_option):
    options = {**ALL, "padding": min(3, sum(widths) - 1)} if every_option else {}
    x, options = row_problem((5, sum(widths)), dtype, target=target, **options)
    check_values(merged(x, widths, **options)[0], x, **options)


@given(st.lists(st.integers(0, 16), max_size=6), st.sampled_from(KINDS), st.sampled_from((1, 3, 10)))
def test_any_ranks_that_have_whole_tiles_give_the_same_bits(cuts, target, tile):
    bounds = [0, *sorted(cuts), 16]
    x, options = row_problem((5, 16 * tile), target=target, **ALL)
    x = x * 100  # the tiles' maxima are far apart
    widths = [(b - a) * tile for a, b in itertools.pairwise(bounds)]
    same(merged(x, widths, 16, **options), merged(x, [16 * tile], 16, **options))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_merging_has_no_sides_and_a_neutral_element(dtype):
    """And both hold for parts without a finite logit."""
    inf, nan = torch.inf, torch.nan
    x, options = row_problem((7, 24), dtype, target="index", label_smoothing=0.1)
    x[0, :8], x[1, :] = -inf, -inf
    x[2, 3], x[3, 20], x[4, :] = inf, nan, inf
    parts = ops.row_parts(x, *arguments(x, OUTPUTS, **options, valid_classes=24), 0, 8)[0]
    nothing = _exchange.neutral(parts, 1)
    for i, j in itertools.product(range(3), repeat=2):
        pair = parts[:, [i, j]]
        if i != j:
            pair[6, 1] = 0  # one part at most has the class of the index
            assert_same_bits(ops.row_parts_merge(x, pair), ops.row_parts_merge(x, pair.flip(1)))
    for one in parts.split(1, 1):
        for pair in ((one, nothing), (nothing, one)):
            assert_same_bits(ops.row_parts_merge(x, torch.cat(pair, 1)), one[:, 0])


def test_a_share_of_0_of_a_masked_class_is_nan_as_in_torch():
    """Also if all classes of a tile are masked and have no share. Class indices are no shares."""
    x, options = row_problem((3, 16), target="probs")
    x[:, :8], options["target"][:, :8] = -torch.inf, 0
    for tiles in (2, 4, 16):
        assert merged(x, (8, 8), tiles, **options)[0].loss.isnan().all()
        assert (
            merged(x, (8, 8), tiles, **{**options, "target": torch.tensor([8, 9, 15])})[0]
            .loss.isfinite()
            .all()
        )
    assert torch.nn.functional.cross_entropy(x, options["target"], reduction="none").isnan().all()


def test_a_tree_of_any_number_of_parts():
    """The op merges pairs, then pairs of these; what is left over comes last."""
    x, options = row_problem((3, 70), target="index")
    parts = ops.row_parts(x, *arguments(x, ("loss",), **options, valid_classes=70), 0, 10)[0]

    def tree(nodes):
        while len(nodes) > 1:
            pairs = [nodes[i : i + 2] for i in range(0, len(nodes), 2)]
            nodes = [ops.row_parts_merge(x, torch.stack(p, 1)) if len(p) > 1 else p[0] for p in pairs]
        return nodes[0]

    for count in range(1, 8):
        some = parts[:, :count]
        assert_same_bits(ops.row_parts_merge(x, some), tree(list(some.unbind(1))))


def test_the_first_of_the_largest_logits_of_parts():
    """NaN is larger than numbers. Parts without classes, and ignored rows, have the class -1."""
    inf, nan = torch.inf, torch.nan
    z = torch.tensor([[1, 2, nan, -inf, -inf, 5, -inf, nan], [1, 3, inf, -inf, -inf, nan, 1, -inf]])
    classes = torch.tensor([[4, 4, 4, 4, -1, -1, -1, -1], [9, 9, 9, 9, 9, -1, 9, -1]], dtype=z.dtype)
    found = _first_largest(z, classes)
    assert found[0].tolist() == [4, 9, 4, 4, 9, -1, 9, -1]
    x = logits(50, 12).round()  # with many equal ones
    x[0], x[1, 3:], x[2, ::5] = -inf, inf, nan
    parts = x.view(50, 4, 3)
    at = parts.argmax(2) + 3 * torch.arange(4)
    assert torch.equal(_first_largest(parts.amax(2).T, at.T.float())[0].long(), x.argmax(1))
