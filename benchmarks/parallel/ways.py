# SPDX-License-Identifier: Apache-2.0
"""The ways to compute the mean loss of sharded logits, and the gradient of a rank's logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


class Shard(NamedTuple):
    """One rank's logits, (N, C / ranks), a leaf that needs a gradient, and the targets of all its rows."""

    logits: Tensor
    target: Tensor
    mesh: Any  # all ranks, one dimension

    @property
    def group(self) -> Any:
        return self.mesh.get_group()

    @property
    def first(self) -> int:
        return dist.get_rank() * self.logits.shape[1]


# Forward and backward; the gradient is in logits.grad. Returns the loss.
Step = Callable[[], Tensor]


def softkern(exchange: str) -> Callable[[Shard], Step]:
    def prepare(shard: Shard) -> Step:
        from softkern import parallel

        classes = shard.logits.shape[1] * dist.get_world_size()

        def step() -> Tensor:
            loss = parallel.cross_entropy(
                shard.logits, shard.target, shard.group, classes=classes, exchange=exchange
            )
            assert isinstance(loss, Tensor)
            loss.backward()
            return loss

        return step

    return prepare


def loss_parallel(shard: Shard) -> Step:
    """torch's, on DTensors that are made before: models have them as outputs of their last layer."""
    from torch.distributed.tensor import DTensor, Replicate
    from torch.distributed.tensor import Shard as Sharded
    from torch.distributed.tensor.parallel import loss_parallel as context

    logits = DTensor.from_local(shard.logits.detach(), shard.mesh, [Sharded(1)], run_check=False)
    logits.requires_grad_()
    target = DTensor.from_local(shard.target, shard.mesh, [Replicate()], run_check=False)

    def step() -> Tensor:
        with context():
            loss = F.cross_entropy(logits, target)
            loss.backward()
        assert isinstance(logits.grad, DTensor) and isinstance(loss, DTensor)
        shard.logits.grad, logits.grad = logits.grad.to_local(), None
        return loss.to_local()

    return step


class _AllReduces(torch.autograd.Function):
    """The scheme of Megatron-LM: all-reduces of the largest logit, of the target's logit and of the sum of
    exponentials. The softmax takes the place of float32 logits, and the gradient that of the softmax."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, first: int, group: Any) -> Tensor:
        z = logits.float()
        largest = z.amax(1)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group)
        z.sub_(largest.unsqueeze(1))
        own = target - first
        mine = (own >= 0) & (own < z.shape[1])
        own = own.where(mine, 0)
        hot = z.gather(1, own.unsqueeze(1)).squeeze(1).where(mine, 0)
        dist.all_reduce(hot, group=group)
        total = z.exp_().sum(1)
        dist.all_reduce(total, group=group)
        z.div_(total.unsqueeze(1))
        ctx.save_for_backward(z, own, mine)
        ctx.dtype = logits.dtype
        return total.log() - hot

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, own, mine = ctx.saved_tensors
        z.scatter_add_(1, own.unsqueeze(1), -mine.float().unsqueeze(1))
        return z.mul_(grad.unsqueeze(1)).to(ctx.dtype), None, None, None


def all_reduces(shard: Shard) -> Step:
    def step() -> Tensor:
        loss: Tensor = _AllReduces.apply(shard.logits, shard.target, shard.first, shard.group).mean()
        loss.backward()
        return loss

    return step


class _Gather(torch.autograd.Function):
    """The logits of all ranks, on each of them. All compute the same loss: a rank's gradient is its part."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, first: int, group: Any) -> Tensor:
        ctx.own = slice(first, first + logits.shape[1])
        gathered = [torch.empty_like(logits) for _ in range(dist.get_world_size(group))]
        dist.all_gather(gathered, logits, group)
        return torch.cat(gathered, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad[:, ctx.own].contiguous(), None, None


def gather_logits(shard: Shard) -> Step:
    def step() -> Tensor:
        loss = F.cross_entropy(_Gather.apply(shard.logits, shard.first, shard.group), shard.target)
        loss.backward()
        return loss

    return step


WAYS: dict[str, Callable[[Shard], Step]] = {
    "loss_parallel": loss_parallel,
    "all-reduces": all_reduces,
    "gather logits": gather_logits,
    "softkern": softkern("gather"),
    "softkern:rows": softkern("rows"),
}
