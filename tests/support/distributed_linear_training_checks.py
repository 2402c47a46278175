# SPDX-License-Identifier: Apache-2.0
"""A body and a head with linear_cross_entropy, trained on two ranks. torch/test_distributed.py starts it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from distributed_processes import WAYS, WORLD, check
from distributed_training_checks import BATCH, BOUND, RATE, STEPS, data, furthest
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from watch import Watch

import softkern


class Model(nn.Module):
    """The loss is a sum over this rank's rows, divided by the number of items of all ranks."""

    def __init__(self, plan: str | None):
        super().__init__()
        options = softkern.LinearCrossEntropyOptions(plan=plan) if plan else None
        self.body = nn.Linear(12, 16)
        self.head = softkern.LinearCrossEntropyLoss(16, 5, bias=True, options=options)
        self.plain = plan is None

    def forward(self, x: Tensor, target: Tensor, items: float) -> Tensor:
        hidden = self.body(x).tanh()
        if not self.plain:
            return self.head(hidden, target, num_items=items)
        logits = F.linear(hidden, self.head.linear.weight, self.head.linear.bias)
        return F.cross_entropy(logits, target, reduction="sum") / items


def train(plan: str | None, wrap, shares: list[slice], scale: float) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters before and after, whole. The shares take turns; `scale` undoes the ranks' average."""
    torch.manual_seed(5)
    model = Model(plan)
    before = [p.detach().clone() for p in model.parameters()]
    model = wrap(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    whole = data()
    for step in range(STEPS):
        x, target = (t[shares[step % len(shares)]] for t in whole)
        optimizer.zero_grad()
        (scale * model(x, target, BATCH)).backward()
        optimizer.step()
    after = [p.detach() for p in model.parameters()]
    return before, [p.full_tensor() if isinstance(p, DTensor) else p for p in after]


def _check(name: str, wrap, shares: list[slice], mesh) -> None:
    rank = mesh.get_local_rank()
    for plan in ("fast", "lean"):
        with Watch() as watch:
            start, ours = train(plan, wrap, shares[rank:] + shares[:rank], WORLD)
        WAYS[name, "head"] = watch.kernels_and_torchs
        _, alone = train(None, lambda model: model, [slice(None)], 1)  # torch, the whole batch in one process
        assert furthest(ours, alone) <= BOUND, f"{furthest(ours, alone)} from one process"
        assert furthest(ours, start) > 1e4 * BOUND, "nothing was learnt: equal parameters say nothing"


@check
def a_head_in_ddp_with_an_empty_batch_on_one_rank(mesh):
    """On each of them in turn. Its gradients are zeros, and the other doesn't wait for them in vain."""
    _check("DistributedDataParallel", DistributedDataParallel, [slice(None), slice(0, 0)], mesh)


@check
def a_head_in_fsdp2(mesh):
    def wrap(model):
        for part in (model.body, model.head):
            fully_shard(part, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    _check("fully_shard", wrap, [slice(0, 17), slice(17, None)], mesh)
