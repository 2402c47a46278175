# SPDX-License-Identifier: Apache-2.0
"""Four gloo processes, two with other rows for each two with other classes. Run as a program."""

from __future__ import annotations

import datetime
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import softkern
import softkern.parallel

RANKS, CLASSES = 4, 64


def near(got, want):
    got = got.full_tensor() if hasattr(got, "full_tensor") else got
    torch.testing.assert_close(got.detach(), want.detach(), rtol=2e-5, atol=1e-6)


def problem():
    torch.manual_seed(0)
    x, w, y = torch.randn(6, 8), torch.randn(CLASSES, 8), torch.randint(0, CLASSES, (6,))
    y[1] = -100
    return x, w, y


def dtensors(mesh):
    x, w, y = problem()
    z = x @ w.T
    plain, leaf = (
        z.clone().requires_grad_(),
        distribute_tensor(z, mesh, [Shard(0), Shard(1)]).requires_grad_(),
    )
    target = distribute_tensor(y, mesh, [Replicate(), Replicate()])
    want, got = softkern.cross_entropy(plain, y), softkern.cross_entropy(leaf, target)
    want.backward()
    got.backward()
    near(got, want)
    near(leaf.grad, plain.grad)

    layer = [t.clone().requires_grad_() for t in (x, w)]
    places = ([Shard(0), Replicate()], [Replicate(), Shard(0)])
    placed = [distribute_tensor(t, mesh, p).requires_grad_() for t, p in zip((x, w), places, strict=True)]
    want, got = softkern.linear_cross_entropy(*layer, y), softkern.linear_cross_entropy(*placed, target)
    want.backward()
    got.backward()
    near(got, want)
    for a, b in zip(placed, layer, strict=True):
        near(a.grad, b.grad)


def plain_tensors(mesh):
    """The shares of the mean sum up to it. One half of the rows has fewer that count."""
    x, w, y = problem()
    plain = (x @ w.T).requires_grad_()
    want = softkern.cross_entropy(plain, y)
    want.backward()
    rows, classes = mesh.get_local_rank(0), mesh.get_local_rank(1)
    own = plain.detach().chunk(2)[rows].chunk(2, 1)[classes].clone().requires_grad_()
    share = softkern.parallel.cross_entropy(
        own, y.chunk(2)[rows], mesh.get_group(1), row_group=mesh.get_group(0)
    )
    share.backward()
    total = share.detach().clone()
    dist.all_reduce(total, group=mesh.get_group(0))
    near(total, want)
    near(own.grad, plain.grad.chunk(2)[rows].chunk(2, 1)[classes])


def four_shards(_):
    """The same bits on four ranks and on one."""
    x, w, y = problem()
    z, group = x @ w.T, dist.group.WORLD
    alone = [dist.new_group([rank]) for rank in range(RANKS)][dist.get_rank()]
    results = []
    for own, of in ((z, alone), (z.chunk(RANKS, 1)[dist.get_rank()], group)):
        leaf = own.clone().requires_grad_()
        loss = softkern.parallel.cross_entropy(leaf, y, of, label_smoothing=0.1)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    (one, dx), (four, part) = results
    assert torch.equal(one, four), (one, four)
    assert torch.equal(dx.chunk(RANKS, 1)[dist.get_rank()], part)


def run(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(str(Path(folder, "rendezvous")), RANKS),
        rank=rank,
        world_size=RANKS,
        timeout=datetime.timedelta(seconds=60),
    )
    mesh = dist.init_device_mesh("cpu", (2, 2))
    for check in (dtensors, plain_tensors, four_shards):
        check(mesh)
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(run, (folder,), nprocs=RANKS)
    print("checked")
