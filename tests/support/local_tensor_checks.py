# SPDX-License-Identifier: Apache-2.0
"""DTensors with sharded classes on ranks that LocalTensorMode simulates in one process.

Run as a program with a number of ranks, since a process can't give its group back.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch.distributed._local_tensor import LocalTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

import softkern

RANKS = int(sys.argv[1])


def check(shape, mesh_shape, placements, **options):
    torch.manual_seed(0)
    x, y = torch.randn(shape), torch.randint(0, shape[1], shape[:1])
    plain = x.clone().requires_grad_()
    want = softkern.cross_entropy(plain, y, **options)
    want.backward()
    with LocalTensorMode(RANKS):
        mesh = init_device_mesh("cpu", mesh_shape)
        leaf = distribute_tensor(x, mesh, placements).requires_grad_()
        target = distribute_tensor(y, mesh, [Replicate()] * len(mesh_shape))
        loss = softkern.cross_entropy(leaf, target, **options)
        loss.backward()
        found = loss.full_tensor().reconcile(), leaf.grad.full_tensor().reconcile()
    torch.testing.assert_close(found, (want.detach(), plain.grad), rtol=1e-5, atol=1e-7)


dist.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
check((6, 16 * RANKS), (RANKS,), [Shard(1)])
check((6, 16 * RANKS), (RANKS,), [Shard(1)], label_smoothing=0.1, z_loss=0.01, reduction="sum")
check((6, 16 * RANKS), (2, RANKS // 2), [Shard(0), Shard(1)])
print("checked", RANKS)
