# SPDX-License-Identifier: Apache-2.0
"""A classifier trained on two ranks with softkern and with F. torch/test_distributed.py starts it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from distributed_processes import WAYS, WORLD, check
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DataParallel, DistributedDataParallel
from watch import Watch

import softkern

STEPS, RATE, BATCH = 8, 0.5, 24
# float32 parameters of magnitude 1 and less: a step adds the rounding of RATE * gradient, some 4 eps.
BOUND = STEPS * RATE * 4 * torch.finfo(torch.float32).eps


class Classifier(nn.Module):
    """The loss is part of the module, so that it runs inside what wraps the module."""

    def __init__(self, namespace):
        super().__init__()
        self.inner = nn.Linear(12, 16)
        self.outer = nn.Linear(16, 5)
        self.cross_entropy, self.softmax = namespace.cross_entropy, namespace.softmax

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        gate = self.softmax(self.inner(x), dim=1)  # (B, 16)
        return self.cross_entropy(self.outer(8 * gate), target, label_smoothing=0.1)


def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(BATCH, 12, generator=g)
    return x, (x @ torch.randn(12, 5, generator=g)).argmax(1)


def train(namespace, wrap, share: slice) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters before and after, whole."""
    torch.manual_seed(5)
    model = Classifier(namespace)
    before = [p.detach().clone() for p in model.parameters()]
    model = wrap(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    x, target = (t[share] for t in data())
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(x, target).backward()
        optimizer.step()
    after = [p.detach() for p in model.parameters()]
    return before, [p.full_tensor() if isinstance(p, DTensor) else p for p in after]


def furthest(a: list[Tensor], b: list[Tensor]) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def _check(name: str, wrap, share: slice) -> list[Tensor]:
    with Watch() as watch:
        start, ours = train(softkern, wrap, share)
    WAYS[name, "both"] = watch.kernels_and_torchs
    _, theirs = train(F, wrap, share)
    assert furthest(ours, theirs) <= BOUND, f"{furthest(ours, theirs)} apart"
    assert furthest(ours, start) > 1e4 * BOUND, "nothing was learnt: equal parameters say nothing"
    # Equal shares of a batch, averaged: what one process makes of the whole batch.
    _, alone = train(softkern, lambda model: model, slice(None))
    assert furthest(ours, alone) <= BOUND, f"{furthest(ours, alone)} from one process"
    everywhere = [torch.empty_like(ours[0]) for _ in range(WORLD)]
    torch.distributed.all_gather(everywhere, ours[0].contiguous())
    assert torch.equal(*everywhere), "the ranks differ"
    return ours


def _share(mesh) -> slice:
    return slice(mesh.get_local_rank(), None, WORLD)


@check
def ddp_trains_as_with_torch(mesh):
    ours = _check("DistributedDataParallel", DistributedDataParallel, _share(mesh))
    # The bound would see a loss that is not the same one.
    _, other = train(F, DistributedDataParallel, slice(0, BATCH // 2))
    assert furthest(ours, other) > 1e3 * BOUND


@check
def fsdp2_trains_as_with_torch(mesh):
    def wrap(model):
        for part in (model.inner, model.outer):
            fully_shard(part, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    _check("fully_shard", wrap, _share(mesh))


@check
def fsdp2_of_a_module_with_class_weights(mesh):
    """The loss's weight is a buffer, which stays a plain tensor, beside sharded parameters."""

    def trained(namespace):
        torch.manual_seed(5)
        loss = namespace.CrossEntropyLoss(weight=torch.linspace(0.5, 2, 5))
        model = fully_shard(nn.Sequential(nn.Linear(12, 5), namespace.LogSoftmax(1)), mesh=mesh)
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        x, target = (t[_share(mesh)] for t in data())
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss(model(x), target).backward()
            optimizer.step()
        return [p.detach().full_tensor() for p in model.parameters()]

    ours, theirs = trained(softkern), trained(nn)
    assert furthest(ours, theirs) <= BOUND, f"{furthest(ours, theirs)} apart"


@check
def data_parallel_and_torchs_own_loss_are_what_they_were(mesh):
    x, target = data()
    torch.manual_seed(5)
    theirs = DataParallel(Classifier(F))(x, target)
    torch.manual_seed(5)
    with Watch() as watch:
        ours = DataParallel(Classifier(softkern))(x, target)
        ours.backward()
    WAYS["DataParallel", "both"] = watch.kernels_and_torchs
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    # F beside softkern in one process: DDP over F has the parameters it has without it.
    _, one = train(F, DistributedDataParallel, _share(mesh))
    train(softkern, DistributedDataParallel, _share(mesh))
    _, two = train(F, DistributedDataParallel, _share(mesh))
    assert furthest(one, two) == 0
