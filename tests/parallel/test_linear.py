# SPDX-License-Identifier: Apache-2.0
"""softkern.parallel.linear_cross_entropy against float64: every kind of target, any shards."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import name, upstream
from compare import assert_same_bits
from linear_cases import Layer, check_gradients, check_values, linear_problem
from parallel_cases import slices, statistics
from row_losses_cases import ALL
from threaded_ranks import on_ranks

import softkern
import softkern.parallel
from softkern.parallel import linear_cross_entropy
from softkern.reference_rows import RowLosses

DTYPES = (torch.float32, torch.bfloat16, torch.float64)
# even, uneven, without classes and with padding alone
SHARDS = ((20, 20), (7, 33), (0, 20, 18, 2), (40,))


def ranks_of(layer, widths, stats=(), how=None, rows=None, **options):
    """For each rank: results, random upstream gradients, and what they make of input, weight and bias."""
    target = options.pop("target")
    ws, bs = (t.split(list(widths)) for t in layer[1:])
    ys = slices(target, widths) if target.is_floating_point() else [target] * len(widths)
    xs = [layer.x] * len(widths) if rows is None else layer.x.split(rows)

    def one(rank):
        leaves = Layer(xs[rank], ws[rank], bs[rank]).leaves()
        found = linear_cross_entropy(
            leaves.x, leaves.w, ys[rank], linear_bias=leaves.b, stats=stats, **options, **(how or {})
        )
        loss, given = found if isinstance(found, tuple) else (found, softkern.RowStats())
        results = RowLosses(loss, *given)
        moving = {
            n: t for n, t in zip(RowLosses._fields, results, strict=True) if t is not None and t.grad_fn
        }
        grads = {n: upstream(t.detach(), "random") for n, t in moving.items()}
        of = torch.autograd.grad(list(moving.values()), list(leaves), list(grads.values()))
        return RowLosses(*(t if t is None else t.detach() for t in results)), grads, of

    return on_ranks(len(widths), one)


@pytest.mark.parametrize("target", ("index", "indices", "probs"))
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_every_option_and_shard(dtype, target):
    layer, options = linear_problem(19, 6, 40, dtype, target=target, **ALL)
    stats = statistics(layer.x.new_zeros(19, 40), **options)
    for widths in SHARDS:
        ranks = ranks_of(layer, widths, stats, **options)
        (found, grads, (dx, *_)), *others = ranks
        check_values(found, layer, **options)
        whole = [torch.cat([of[i] for _, _, of in ranks]) for i in (1, 2)]
        check_gradients(Layer(dx, *whole), layer, grads, **options)
        for other, _, (same, *_) in others:
            assert_same_bits(other.loss, found.loss)
            assert_same_bits(same, dx)


def test_parts_of_the_gradient_and_rows_that_are_shared():
    """`reduce_input_grad=False` leaves the sum to the caller; sequence parallelism scatters it."""
    layer, options = linear_problem(12, 6, 40, target="index", smoothing=0.1)
    layer = Layer(layer.x.nan_to_num(0.5), *layer[1:])
    whole = ranks_of(layer, (20, 20), **options)[0][2][0]
    parts = [of[0] for _, _, of in ranks_of(layer, (20, 20), how={"reduce_input_grad": False}, **options)]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(parts[0], whole)
    shared = ranks_of(layer, (20, 20), how={"sequence_parallel": True}, rows=6, **options)
    assert [of[0].shape for _, _, of in shared] == [(6, 6), (6, 6)]
    assert_same_bits(torch.cat([of[0] for _, _, of in shared]), whole)


def test_the_inputs_gradient_is_summed_before_it_is_rounded():
    """The ranks' parts are 1 + 3/512, which bfloat16 would round to 1 + 4/512, and -1."""
    w = torch.tensor([[4.0], [3 / 128], [-4.0], [0.0]], dtype=torch.bfloat16)
    y = torch.tensor([3])

    def one(rank):
        leaf, own = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True), w[2 * rank : 2 * rank + 2]
        linear_cross_entropy(leaf, own, y, linear_bias=-own[:, 0]).backward()  # all logits are 0
        return float(leaf.grad)

    assert on_ranks(2, one) == [3 / 512, 3 / 512]


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=name)
def test_bits_do_not_depend_on_the_ranks(dtype):
    """Of loss and statistics: products of so many columns give the logits the same bits on these CPUs."""
    layer, options = linear_problem(40, 16, 2048, dtype, target="index", reduction="none")
    x = layer.x.nan_to_num(0.5)
    z = F.linear(x.float(), layer.w.float(), layer.b.float())
    first = None
    for ranks in (1, 2, 4):
        part = 2048 // ranks
        same = all(
            torch.equal(F.linear(x.float(), w, b), z[:, i * part : (i + 1) * part])
            for i, (w, b) in enumerate(
                zip(layer.w.float().split(part), layer.b.float().split(part), strict=True)
            )
        )
        found = ranks_of(Layer(x, *layer[1:]), (part,) * ranks, ("lse", "entropy"), **options)[0][0]
        first = found if first is None else first
        if same or dtype is torch.bfloat16:
            assert_same_bits(found.loss, first.loss)
            assert_same_bits(found.entropy, first.entropy)


def test_a_rank_whose_layer_does_not_fit_fails_with_all_others():
    def one(rank):
        try:
            linear_cross_entropy(torch.ones(3, 2 + rank), torch.ones(4, 2), torch.zeros(3, dtype=torch.int64))
        except Exception as error:
            return error

    errors = on_ranks(2, one)
    assert type(errors[1]) is RuntimeError and "in_features" in str(errors[1])
    assert isinstance(errors[0], softkern.parallel.RemoteError) and "rank 1" in str(errors[0])


def test_refused():
    y = torch.zeros(3, dtype=torch.int64)

    def one(rank):
        with pytest.raises(RuntimeError, match="second derivatives"):
            x = torch.ones(3, 2, requires_grad=True)
            loss = linear_cross_entropy(x, torch.ones(4, 2), y)
            torch.autograd.grad(torch.autograd.grad(loss, x, create_graph=True)[0].sum(), x)
        with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
            linear_cross_entropy(torch.ones(3, 2), torch.ones(4, 2), y, temprature=1)
        with pytest.raises(IndexError, match="Target 8 is out of bounds"):
            linear_cross_entropy(torch.ones(3, 2), torch.ones(4, 2), y + 8)

    on_ranks(2, one)
