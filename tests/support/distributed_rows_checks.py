# SPDX-License-Identifier: Apache-2.0
"""softkern's own options and row statistics on DTensors: what every rank of two checks."""

from __future__ import annotations

import itertools

import torch
from compare import assert_same_bits
from cross_entropy_cases import problem
from distributed_processes import check
from distributed_tensor_checks import ROWS_WHOLE, Seen, gradient, near, spread
from tolerances import DTYPES
from torch.distributed.tensor import Partial, Replicate, Shard

import softkern

STATS = softkern.RowStats._fields
OPTIONS = {"valid_classes": 4, "softcap": 3.0, "temperature": 1.5, "z_loss": 0.01}
REDUCTIONS = ("none", "sum", "mean")


def _cases(shape, dtype):
    """(target, tensors that belong to the rows, other options)."""
    _, target, kwargs = problem(shape, dtype, weight=True, smoothing=0.1, ignore=1)
    rows = (shape[0], *shape[2:])
    target = torch.where(target >= 4, 3, target)
    k = torch.arange(2 * target.numel()).reshape(shape[0], 2, *shape[2:]) % 4
    probs = torch.linspace(0.1, 0.9, k.numel(), dtype=dtype).reshape(k.shape)
    weight = torch.linspace(0, 2, target.numel(), dtype=dtype).reshape(rows)
    wide = problem(shape, dtype, probs=True)[1]
    own = {**kwargs, **OPTIONS}
    of_k = {name: value for name, value in own.items() if name != "ignore_index"}
    yield target, {}, {**own, "stats": STATS}
    yield target, {"row_weight": weight}, own
    yield target, {"row_weight": weight}, {**own, "num_items": 11, "weight": None}
    yield target, {}, {**own, "num_items": torch.tensor(11)}
    yield k, {"target_probs": probs}, of_k
    yield k, {"target_probs": probs, "row_weight": weight}, {**of_k, "stats": ("lse", "argmax")}
    yield wide, {"row_weight": weight.float()}, of_k
    yield wide, {}, {**of_k, "stats": ("entropy",)}


def _call(x, target, of_rows, options, place=lambda t: t):
    options = {n: place(v) if n == "weight" and v is not None else v for n, v in options.items()}
    result = softkern.cross_entropy(x, place(target), **{n: place(t) for n, t in of_rows.items()}, **options)
    loss, stats = result if isinstance(result, tuple) else (result, softkern.RowStats())
    return loss, [s for s in stats if s is not None]


@check
def own_options_of_rows(mesh):
    for dtype, placements, reduction in itertools.product(DTYPES, ROWS_WHOLE, REDUCTIONS):
        shape = (7, 5, 3)
        x = problem(shape, dtype)[0]
        row = {0: Shard(0), 2: Shard(1)}.get(getattr(placements[0], "dim", None), Replicate())
        for target, of_rows, options in _cases(shape, dtype):
            options["reduction"] = reduction
            leaf, plain = spread(mesh, x, placements).requires_grad_(), x.clone().requires_grad_()
            with Seen() as seen:
                loss, stats = _call(leaf, target, of_rows, options, lambda t: spread(mesh, t, [Replicate()]))
            assert "softkern::row_losses_forward" in seen.ops, "not by the kernels"
            want, wanted = _call(plain, target, of_rows, options)
            pending = row if reduction == "none" else Replicate() if row == Replicate() else Partial()
            assert loss.placements == (pending,) and loss.dtype == dtype
            near(loss, want.detach())
            for got, expected in zip(stats, wanted, strict=True):
                assert got.placements == (row,) and got.dtype == expected.dtype
                assert_same_bits(got.full_tensor(), expected.detach())
            moving = [(loss, want), *((a, b) for a, b in zip(stats, wanted, strict=True) if b.requires_grad)]
            total, expected = (sum(t.sum() for t in side) for side in zip(*moving, strict=True))
            near(gradient(total, leaf), gradient(expected, plain))


@check
def weights_of_rows_that_are_sharded_as_they_like(mesh):
    x, target, _ = problem((6, 5))
    weight = torch.tensor([1.0, 0, 2, 0.5, 3, 0])
    plain, r = x.clone().requires_grad_(), weight.clone().requires_grad_()
    for y in (target, x.softmax(1)):
        want = softkern.cross_entropy(plain, y, row_weight=r)
        expected = torch.autograd.grad(want, (plain, r))
        for a, b in itertools.product(([Shard(0)], [Replicate()]), repeat=2):
            leaf = spread(mesh, x, [Shard(0)]).requires_grad_()
            of_rows = spread(mesh, weight, b).requires_grad_()
            loss = softkern.cross_entropy(leaf, spread(mesh, y, a), row_weight=of_rows)
            near(loss, want.detach())
            for got, one in zip(torch.autograd.grad(loss, (leaf, of_rows)), expected, strict=True):
                near(got, one)


@check
def statistics_of_rows(mesh):
    x = torch.linspace(-3, 3, 7 * 3 * 5, dtype=torch.float64).sin().reshape(7, 3, 5)
    one, many = torch.arange(21).reshape(7, 3) % 5, torch.arange(42).reshape(7, 3, 2) % 5
    calls = (
        (lambda x, y: softkern.selective_log_softmax(x, y, softcap=2.0, entropy=True), one),
        (lambda x, y: softkern.selective_log_softmax(x, y, temperature=2.0, entropy=True), many),
        (lambda x, y: (softkern.entropy_from_logits(x, 1 if y is None else -1),), None),
    )
    for (call, index), placements in itertools.product(calls, ([Shard(0)], [Replicate()])):
        leaf, plain = spread(mesh, x, placements).requires_grad_(), x.clone().requires_grad_()
        got = call(leaf, None if index is None else spread(mesh, index, [Replicate()]))
        want = call(plain, index)
        for a, b in zip(got, want, strict=True):
            assert a.placements == tuple(placements)
            assert_same_bits(a.full_tensor(), b.detach())
        near(gradient(sum(t.sum() for t in got), leaf), gradient(sum(t.sum() for t in want), plain))
    columns = spread(mesh, x, [Shard(2)])
    near(softkern.entropy_from_logits(columns, 1), softkern.entropy_from_logits(x, 1))


@check
def own_options_compiled_without_a_break(mesh):
    x, target, _ = problem((6, 8))
    y, r = spread(mesh, target, [Shard(0)]), spread(mesh, torch.linspace(0, 1, 6), [Shard(0)])

    def loss(x):
        loss, stats = softkern.cross_entropy(x, y, row_weight=r, softcap=5.0, stats=("entropy",))
        return loss, stats.entropy, softkern.entropy_from_logits(x)

    leaf = spread(mesh, x, [Shard(0)]).requires_grad_()
    got, want = torch.compile(loss, backend="aot_eager", fullgraph=True)(leaf), loss(leaf)
    for a, b in zip(got, want, strict=True):
        near(a, b.full_tensor().detach())
    ones = [torch.ones_like(t) for t in want]
    near(gradient(got, leaf, ones), gradient(want, leaf, ones).full_tensor())
