# SPDX-License-Identifier: Apache-2.0
"""linear_cross_entropy on DTensors: what every rank of two checks. torch/test_distributed.py starts them."""

from __future__ import annotations

import itertools

import torch
from distributed_processes import check
from distributed_tensor_checks import Seen, near, spread
from torch.distributed.tensor import Partial, Replicate, Shard

import softkern

N, H, C = 7, 6, 5  # seven rows: the ranks have different numbers
ROWS, WHOLE = [Shard(0)], [Replicate()]
STATS = softkern.RowStats._fields


def _layer(dtype, *lead):
    g = torch.Generator().manual_seed(3)
    shapes = ((*(lead or (N,)), H), (C, H), (C,))
    return [torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes]


def _cases(dtype, *lead):
    """(target, tensors of the rows, other options)."""
    rows = lead or (N,)
    y = torch.arange(torch.Size(rows).numel()).reshape(rows) % C
    ignoring = torch.where(torch.arange(y.numel()).reshape(rows) < 3, -100, y)  # most of them on one rank
    r = torch.linspace(0.5, 2, y.numel(), dtype=dtype).reshape(rows)
    k, t = torch.stack([y, 4 - y], -1), torch.stack([r, r * 0 + 0.25], -1)
    weight = torch.linspace(0.5, 2, C, dtype=dtype)
    yield ignoring, {}, {"stats": STATS, "softcap": 3.0}
    yield ignoring, {"row_weight": r}, {"weight": weight, "label_smoothing": 0.1}
    yield ignoring, {}, {"num_items": 11, "z_loss": 0.01}
    yield k, {"target_probs": t}, {"stats": ("lse",)}
    yield torch.ones(*rows, C, dtype=dtype) / C, {"row_weight": r}, {}
    yield torch.full_like(y, -100), {}, {"num_items": torch.tensor(4)}


def _call(layer, target, of_rows, options, place=lambda t: t):
    x, w, b = layer
    placed = {n: place(v) if n == "weight" else v for n, v in options.items()}
    of_rows = {n: place(t) for n, t in of_rows.items()}
    result = softkern.linear_cross_entropy(x, w, place(target), linear_bias=b, **of_rows, **placed)
    loss, stats = result if isinstance(result, tuple) else (result, ())
    return loss, [s for s in stats if s is not None]


@check
def a_layer_that_is_whole_on_each_rank(mesh):
    """Also that the gradients of the layer are pending a sum, as those of F.linear on DTensors are."""
    for lead, placements in (((), ROWS), ((), WHOLE), ((3, 4), ROWS), ((2, 3), [Shard(1)])):
        for reduction, dtype in itertools.product(("none", "sum", "mean"), (torch.float64, torch.bfloat16)):
            tensors = _layer(dtype, *lead)
            for target, of_rows, options in _cases(dtype, *lead):
                options["reduction"] = reduction
                plain = [t.clone().requires_grad_() for t in tensors]
                where = (placements, WHOLE, WHOLE)
                placed = [spread(mesh, t, p).requires_grad_() for t, p in zip(tensors, where, strict=True)]
                with Seen() as seen:
                    loss, stats = _call(placed, target, of_rows, options, lambda t: spread(mesh, t, WHOLE))
                assert "softkern::linear_cross_entropy_forward" in seen.ops, "not by the op"
                want, wanted = _call(plain, target, of_rows, options)
                pending = WHOLE if placements == WHOLE else [Partial()]
                assert list(loss.placements) == (placements if reduction == "none" else pending)
                assert loss.dtype == want.dtype
                near(loss, want.detach())
                for got, expected in zip(stats, wanted, strict=True):
                    assert list(got.placements) == placements and got.shape == expected.shape
                    if expected.is_floating_point():
                        near(got, expected.detach())
                    else:
                        assert torch.equal(got.full_tensor(), expected)
                total, expected = (
                    sum(t.sum() for t in (one, *many) if t.requires_grad)
                    for one, many in ((loss, stats), (want, wanted))
                )
                got = torch.autograd.grad(total, placed)
                assert [list(g.placements) for g in got] == [placements, pending, pending]
                for one, other in zip(got, torch.autograd.grad(expected, plain), strict=True):
                    near(one, other)


@check
def a_layer_with_sharded_classes_is_torchs(mesh):
    tensors = _layer(torch.float64)
    target = torch.arange(N) % C
    plain = [t.clone().requires_grad_() for t in tensors]
    want = softkern.linear_cross_entropy(plain[0], plain[1], target, linear_bias=plain[2], z_loss=0.1)
    where = (WHOLE, [Shard(0)], [Shard(0)])
    placed = [spread(mesh, t, p).requires_grad_() for t, p in zip(tensors, where, strict=True)]
    y = spread(mesh, target, WHOLE)
    got = softkern.linear_cross_entropy(placed[0], placed[1], y, linear_bias=placed[2], z_loss=0.1)
    near(got, want.detach())
    for one, other in zip(torch.autograd.grad(got, placed), torch.autograd.grad(want, plain), strict=True):
        near(one, other)


@check
def linear_cross_entropy_of_dtensors_compiled_without_a_break(mesh):
    tensors = _layer(torch.float64)
    y = spread(mesh, torch.arange(N) % C, ROWS)

    def loss(x, w, b):
        return softkern.linear_cross_entropy(x, w, y, linear_bias=b, softcap=5.0)

    placed = [spread(mesh, t, p).requires_grad_() for t, p in zip(tensors, (ROWS, WHOLE, WHOLE), strict=True)]
    got, want = torch.compile(loss, backend="aot_eager", fullgraph=True)(*placed), loss(*placed)
    near(got, want.full_tensor().detach())
    for one, other in zip(torch.autograd.grad(got, placed), torch.autograd.grad(want, placed), strict=True):
        near(one, other.full_tensor())
