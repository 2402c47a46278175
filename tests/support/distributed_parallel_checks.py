# SPDX-License-Identifier: Apache-2.0
"""softkern.parallel on the two ranks of a gloo group."""

from __future__ import annotations

import torch
import torch.distributed as dist
from cases import logits
from compare import assert_same_bits
from distributed_processes import check
from distributed_tensor_checks import gradient, near, sent
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd

import softkern
from softkern import parallel
from softkern.parallel import _rows

CLASSES = 640
STATS = ("log_prob", "lse", "entropy", "argmax", "correct")


def _problem(mesh):
    """All logits, those of this rank, the targets."""
    x = logits(7, CLASSES)
    return x, x.chunk(2, 1)[mesh.get_local_rank()].clone(), torch.arange(7) * 91 % CLASSES


def _all(result):
    loss, stats = result
    return [loss, *(t for t in stats if t is not None)]


@check
def classes_of_two_ranks_have_the_bits_of_one(mesh):
    """And of both ways of exchange. The loss is the plain function's, but for the last digits."""
    x, own, y = _problem(mesh)
    alone = [dist.new_group([rank]) for rank in range(2)][mesh.get_local_rank()]
    for options in (
        {"stats": STATS, "z_loss": 1e-4, "label_smoothing": 0.1},
        {"stats": (), "reduction": "none", "ignore_index": 91},
    ):
        whole, leaf = x.clone().requires_grad_(), own.requires_grad_()
        want = parallel.cross_entropy(whole, y, alone, **options)
        for how in ({}, {"exchange": "rows"}, {"row_chunks": 3}, {"exchange": "rows", "row_chunks": 2}):
            got = parallel.cross_entropy(leaf, y, **options, **how)
            pairs = zip(*map(_all, (got, want)), strict=True) if options["stats"] else [(got, want)]
            for a, b in pairs:
                assert_same_bits(a.detach(), b.detach())
            a, b = (t[0] if options["stats"] else t for t in (got, want))
            grad = logits(*b.shape, seed=7)
            dx = gradient(b, whole, grad, retain_graph=True)
            assert_same_bits(gradient(a, leaf, grad), dx.chunk(2, 1)[mesh.get_local_rank()].clone())
        plain = softkern.cross_entropy(x, y, **options)
        near(b.detach(), plain[0] if options["stats"] else plain)


@check
def one_gather_in_the_forward_and_nothing_in_backward(mesh):
    _, own, y = _problem(mesh)
    leaf = own.requires_grad_()
    for how, messages in (
        ({"exchange": "gather"}, {"all_gather_into_tensor": 1}),
        ({"exchange": "rows"}, {"all_to_all_single": 1, "all_gather_into_tensor": 1}),
        ({"exchange": "gather", "row_chunks": 3}, {"all_gather_into_tensor": 3}),
    ):
        parallel.cross_entropy(leaf, y, stats=STATS, **how)  # the first call asks whether the ranks agree
        (loss, stats), found = sent(lambda: parallel.cross_entropy(leaf, y, stats=STATS, **how))  # noqa: B023
        assert {str(op).split(".")[-1]: n for op, n in found.items()} == messages
        _, found = sent(lambda: gradient(loss + stats.entropy.sum(), leaf))  # noqa: B023
        assert not found, found


@check
def parallel_losses_compiled_without_a_break(mesh):
    """The ranks can't be asked while a program is traced: `classes` says what they have."""
    _, own, y = _problem(mesh)
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph.code)
        return make_boxed_func(graph)

    # The partitioner is inductor's. The default one would leave dead ops of the forward in backward.
    backend = aot_autograd(fw_compiler=keep, partition_fn=min_cut_rematerialization_partition)
    for options in ({}, {"exchange": "rows", "row_chunks": 2, "z_loss": 1e-4}):

        def loss(x):
            loss, stats = parallel.cross_entropy(x, y, classes=CLASSES, stats=STATS, **options)  # noqa: B023
            return loss, stats.entropy, stats.argmax

        compiled = torch.compile(loss, backend=backend, fullgraph=True)
        leaf = own.requires_grad_()
        got, want = compiled(leaf), loss(leaf)
        for a, b in zip(got, want, strict=True):
            assert_same_bits(a.detach(), b.detach())
        grads = [torch.ones_like(t) for t in want[:2]]
        assert_same_bits(*(gradient(ts[:2], leaf, grads) for ts in (got, want)))
        forward, backward = graphs[-2:]
        assert forward.count("_c10d_functional.all_gather_into_tensor") == options.get("row_chunks", 1)
        assert "_c10d_functional" not in backward and "row_parts_backward" in backward


@check
def a_kernel_that_fails_on_one_rank_fails_on_both(mesh):
    """In both ways of exchange, and in the last piece of the rows."""
    _, own, y = _problem(mesh)
    kept = _rows._own
    for how in ({}, {"exchange": "rows"}, {"row_chunks": 3}):
        left = [how.get("row_chunks", 1)]

        def fail(*given):
            left[0] -= 1  # noqa: B023
            if mesh.get_local_rank() == 1 and not left[0]:  # noqa: B023
                raise MemoryError("no memory")
            return kept(*given)

        _rows._own = fail
        try:
            parallel.cross_entropy(own.double(), y, **how)  # what the others wait for has the same dtype
            error = None
        except Exception as e:
            error = e
        finally:
            _rows._own = kept
        if mesh.get_local_rank() == 1:
            assert type(error) is MemoryError, error
        else:
            assert type(error) is parallel.RemoteError and "rank 1 " in str(error), error
        parallel.cross_entropy(own, y, **how)  # the ranks still wait for the same messages


@check
def rows_of_two_ranks_share_a_mean(mesh):
    rank = mesh.get_local_rank()
    alone = [dist.new_group([r]) for r in range(2)][rank]
    x, _, y = _problem(mesh)
    y[:4] = -100  # all rows of the first rank
    leaf, rows = x.clone().requires_grad_(), slice(0, 4) if rank == 0 else slice(4, 7)
    want = softkern.cross_entropy(leaf, y)
    share = x[rows].clone().requires_grad_()
    part = parallel.cross_entropy(share, y[rows], alone, row_group=dist.group.WORLD)
    total = part.detach().clone()
    dist.all_reduce(total)
    near(total, want.detach())
    near(gradient(part, share), gradient(want, leaf)[rows])
