# SPDX-License-Identifier: Apache-2.0
"""DTensors whose classes are sharded over a mesh dimension: what every rank of two checks."""

from __future__ import annotations

import itertools

import torch
from cross_entropy_cases import problem
from distributed_processes import WAYS, check
from distributed_tensor_checks import Seen, gradient, near, spread
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode
from watch import Watch

import softkern

# One row; uneven shares; an empty one; a further dim.
SHAPES = ((8,), (6, 8), (5, 7), (4, 1), (3, 5, 2))
OPTIONS = {"softcap": 3.0, "temperature": 1.5, "z_loss": 0.01, "reduction": "none"}


def _class_dim(shape):
    return 0 if len(shape) == 1 else 1


def _calls(shape):
    """(target, whether it is sharded as the logits, other arguments)."""
    x, y, _ = problem(shape)
    dim, classes = _class_dim(shape), x.shape[_class_dim(shape)]
    weight = torch.linspace(0.5, 2, classes)
    rows = [n for i, n in enumerate(shape) if i != dim]
    k = torch.arange(2 * y.numel()).reshape(*shape[:dim], 2, *shape[dim + 1 :]) % classes
    by_row = torch.linspace(0, 2, y.numel()).reshape(rows)
    yield y, False, {"ignore_index": int(y.flatten()[0]), "label_smoothing": 0.1}
    yield y, False, {"weight": weight, "reduction": "sum", "stats": softkern.RowStats._fields}
    yield y, False, {**OPTIONS, "row_weight": by_row, "stats": ("lse", "entropy")}
    yield k, False, {**OPTIONS, "target_probs": torch.linspace(0.1, 1, k.numel()).reshape(k.shape)}
    yield x.softmax(dim), True, {"weight": weight, "num_items": 11}


@check
def losses_and_statistics(mesh):
    for shape, (y, sharded, options) in ((s, call) for s in SHAPES for call in _calls(s)):
        x, dim = problem(shape)[0], _class_dim(shape)
        plain, leaf = x.clone().requires_grad_(), spread(mesh, x, [Shard(dim)]).requires_grad_()
        placed = {n: spread(mesh, t, [Replicate()]) if torch.is_tensor(t) else t for n, t in options.items()}
        target = spread(mesh, y, [Shard(dim) if sharded else Replicate()])
        with Seen() as seen:
            got = softkern.cross_entropy(leaf, target, **placed)
        assert "softkern::row_parts" in seen.ops, "not by the kernels"
        want = softkern.cross_entropy(plain, y, **options)
        if isinstance(want, tuple):
            got, want = ([r[0], *(t for t in r[1] if t is not None)] for r in (got, want))
        else:
            got, want = [got], [want]
        for a, b in zip(got, want, strict=True):
            assert a.placements == (Replicate(),) and a.dtype == b.dtype
            if b.is_floating_point():
                near(a, b.detach())
            else:
                assert torch.equal(a.to_local(), b)
        moving = [(a.sum(), b.sum()) for a, b in zip(got, want, strict=True) if b.requires_grad]
        total, expected = (sum(side) for side in zip(*moving, strict=True))
        grad = gradient(total, leaf)
        assert grad.placements == (Shard(dim),), "the classes were gathered"
        near(grad, gradient(expected, plain))


@check
def softmaxes(mesh):
    for shape, op, dtype in itertools.product(
        SHAPES, ("softmax", "log_softmax"), (torch.float32, torch.bfloat16)
    ):
        x = 100 + 10 * problem(shape)[0].to(dtype)
        for dim in range(len(shape)):
            plain, leaf = x.clone().requires_grad_(), spread(mesh, x, [Shard(dim)]).requires_grad_()
            got, want = (getattr(softkern, op)(t, dim) for t in (leaf, plain))
            assert got.placements == (Shard(dim),)
            near(got, want.detach())
            up = torch.linspace(-1, 2, x.numel()).reshape(shape).to(dtype)
            near(gradient(got, leaf, spread(mesh, up, [Shard(dim)])), gradient(want, plain, up))


@check
def log_probabilities_and_entropies(mesh):
    x = problem((6, 8, 3))[0]
    for dim, index in ((2, torch.arange(48).reshape(6, 8) % 3), (2, torch.arange(96).reshape(6, 8, 2) % 3)):
        plain, leaf = x.clone().requires_grad_(), spread(mesh, x, [Shard(dim)]).requires_grad_()
        got = softkern.selective_log_softmax(leaf, spread(mesh, index, [Replicate()]), entropy=True)
        want = softkern.selective_log_softmax(plain, index, entropy=True)
        for a, b in zip(got, want, strict=True):
            assert a.placements == (Replicate(),)
            near(a, b.detach())
        near(gradient(sum(t.sum() for t in got), leaf), gradient(sum(t.sum() for t in want), plain))
    near(softkern.entropy_from_logits(spread(mesh, x, [Shard(1)]), 1), softkern.entropy_from_logits(x, 1))


@check
def heads_whose_classes_are_shared(mesh):
    """Rows that all ranks have, and rows that are shared as the classes are."""
    torch.manual_seed(1)
    for classes, lead in ((8, (6,)), (7, (2, 3)), (1, (4,))):
        x, w, b = torch.randn(*lead, 5), torch.randn(classes, 5), torch.randn(classes)
        y = torch.arange(x.shape[:-1].numel()).reshape(lead) % classes
        calls = (
            (y, {"ignore_index": 0, "label_smoothing": 0.1, "weight": torch.linspace(0.5, 2, classes)}),
            (y, {"reduction": "none", "stats": ("lse", "entropy", "argmax"), "softcap": 3.0}),
            (torch.stack((y, y.flip(0)), -1), {"target_probs": torch.rand(*lead, 2)}),
            (x.new_ones(*lead, classes) / classes, {"num_items": 3}),
        )
        for (target, options), rows in itertools.product(calls, (Replicate(), Shard(0))):
            plain = [t.clone().requires_grad_() for t in (x, w, b)]
            placed = [
                spread(mesh, t, [p]).requires_grad_()
                for t, p in zip((x, w, b), (rows, Shard(0), Shard(0)), strict=True)
            ]
            own = {n: spread(mesh, t, [Replicate()]) if torch.is_tensor(t) else t for n, t in options.items()}
            with Seen() as seen:
                got = softkern.linear_cross_entropy(
                    placed[0], placed[1], spread(mesh, target, [Replicate()]), linear_bias=placed[2], **own
                )
            assert "softkern::linear_row_parts" in seen.ops, "not by the kernels"
            want = softkern.linear_cross_entropy(plain[0], plain[1], target, linear_bias=plain[2], **options)
            if isinstance(want, tuple):
                for a, e in zip(got[1], want[1], strict=True):
                    if e is not None:
                        torch.testing.assert_close(a.full_tensor(), e.detach())
                got, want = got[0], want[0]
            near(got, want.detach())
            for a, e, t in zip(placed, plain, (x, w, b), strict=True):
                da, de = gradient(got.sum(), a, retain_graph=True), gradient(want.sum(), e, retain_graph=True)
                assert da.placements == a.placements and da.shape == t.shape
                torch.testing.assert_close(da.full_tensor(), de, rtol=2e-5, atol=2e-6)


@check
def heads_whose_classes_are_shared_compiled_without_a_break(mesh):
    torch.manual_seed(1)
    w = spread(mesh, torch.randn(8, 5), [Shard(0)]).requires_grad_()
    x, y = spread(mesh, torch.randn(6, 5), [Replicate()]), spread(mesh, torch.arange(6), [Replicate()])

    def loss(w):
        return softkern.linear_cross_entropy(x, w, y, reduction="sum")

    got, want = torch.compile(loss, backend="aot_eager", fullgraph=True)(w), loss(w)
    near(got, want.full_tensor().detach())
    near(gradient(got, w), gradient(want, w).full_tensor())


@check
def who_computes_options_and_heads(mesh):
    x, y, _ = problem((6, 8))
    target = spread(mesh, y, [Replicate()])
    head, hidden = torch.linspace(-1, 1, 40).reshape(8, 5), torch.linspace(-1, 1, 30).reshape(6, 5)
    for kind, of_logits, of_input, of_head in (
        ("rows", Shard(0), Shard(0), Replicate()),
        ("classes", Shard(1), Replicate(), Shard(0)),
    ):
        leaf = spread(mesh, x, [of_logits]).requires_grad_()
        h, w = spread(mesh, hidden, [of_input]), spread(mesh, head, [of_head]).requires_grad_()
        with Watch() as watch:
            gradient(softkern.cross_entropy(leaf, target, z_loss=0.1), leaf)
        WAYS[kind, "row_losses"] = watch.kernels_and_torchs
        with Watch() as watch:
            gradient(softkern.linear_cross_entropy(h, w, target), w)
        WAYS[kind, "linear_cross_entropy"] = watch.kernels_and_torchs


@check
def one_collective_forward_and_none_backward(mesh):
    x, y, _ = problem((6, 8))
    leaf, target = spread(mesh, x, [Shard(1)]).requires_grad_(), spread(mesh, y, [Replicate()])
    with CommDebugMode() as forward:
        loss = softkern.cross_entropy(leaf, target)
    with CommDebugMode() as backward:
        loss.backward()
    assert sum(forward.get_comm_counts().values()) == 1, forward.get_comm_counts()
    assert sum(backward.get_comm_counts().values()) == 0, backward.get_comm_counts()


@check
def a_gradient_of_the_gradient_is_refused(mesh):
    x, y, _ = problem((6, 8))
    leaf = spread(mesh, x, [Shard(1)]).requires_grad_()
    loss = softkern.cross_entropy(leaf, spread(mesh, y, [Replicate()]))
    for result in (loss, softkern.softmax(leaf, 1).square().sum()):
        grad = gradient(result, leaf, create_graph=True)
        try:
            gradient(grad.sum(), leaf)
        except RuntimeError as error:
            assert "second derivatives" in str(error)
        else:
            raise AssertionError("nothing was raised")


@check
def a_target_that_is_no_class_raises_on_every_rank(mesh):
    x, y, _ = problem((6, 8))
    leaf = DTensor.from_local(x.chunk(2, 1)[mesh.get_local_rank()], mesh, [Shard(1)])
    for bad in (8, -1):
        try:
            softkern.cross_entropy(leaf, spread(mesh, torch.where(y == y[2], bad, y), [Replicate()]))
        except IndexError as error:
            assert str(bad) in str(error)
        else:
            raise AssertionError("nothing was raised")
