# SPDX-License-Identifier: Apache-2.0
"""The classes of a DTensor's rows as ranks of one mesh dimension share them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from softkern.parallel._links import prefers_rows
from softkern.parallel._rows import Shard
from softkern.parallel._vocabulary import even_widths, vocabulary

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def of_mesh(mesh: DeviceMesh, mesh_dim: int, classes: int, rows: int) -> Shard:
    """`rows`: of this rank."""
    import torch.distributed as dist

    group = mesh.get_group(mesh_dim)
    ranks = mesh.size(mesh_dim)
    by_rows = prefers_rows(dist.get_backend(group), ranks, rows)
    return Shard(group, mesh.get_local_rank(mesh_dim), vocabulary(even_widths(classes, ranks)), by_rows, 1)
