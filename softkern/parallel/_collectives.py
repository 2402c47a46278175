# SPDX-License-Identifier: Apache-2.0
"""Collectives as ops, which torch.compile and CommDebugMode see. Their Python functions have other names in
other versions of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_ops = torch.ops._c10d_functional


def begin_all_gather(x: Tensor, group: Any) -> Callable[[], Tensor]:
    """The tensors of all ranks, one behind the other in the first dimension."""
    import torch.distributed as dist

    sent = _ops.all_gather_into_tensor(x.contiguous(), dist.get_world_size(group), group.group_name)
    return lambda: _ops.wait_tensor(sent)


def begin_all_to_all(x: Tensor, group: Any) -> Callable[[], Tensor]:
    """x[i] of each rank, where i is this rank."""
    splits = [1] * x.shape[0]
    sent = _ops.all_to_all_single(x.contiguous(), splits, splits, group.group_name)
    return lambda: _ops.wait_tensor(sent)


def begin_all_reduce(x: Tensor, group: Any) -> Callable[[], Tensor]:
    """The sum over the ranks."""
    sent = _ops.all_reduce(x.contiguous(), "sum", group.group_name)
    return lambda: _ops.wait_tensor(sent)


def all_reduce(x: Tensor, group: Any) -> Tensor:
    return begin_all_reduce(x, group)()


def reduce_scatter(x: Tensor, group: Any) -> Tensor:
    """This rank's rows of the sum over the ranks."""
    import torch.distributed as dist

    sent = _ops.reduce_scatter_tensor(x.contiguous(), "sum", dist.get_world_size(group), group.group_name)
    result: Tensor = _ops.wait_tensor(sent)
    return result
