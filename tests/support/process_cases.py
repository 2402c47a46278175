# SPDX-License-Identifier: Apache-2.0
"""softkern in forked and spawned processes. As a script: runs the cases in their order and saves the results.

python process_cases.py OUT     # saves {case: [results of each process]} after each case

It runs in its own process, because the order matters: a process that has not computed yet forks safely, but
after its thread pool has run, a child must not use that pool. (F also hangs in a child with two threads then.
The loaders of torch set one thread in their workers, and the forked children here do the same.)
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from cases import logits, upstream
from cross_entropy_cases import problem
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import softkern

SHAPES = ((6, 10), (3, 5, 4), (500, 400))  # the last is shared among threads where there are several
SECONDS = 60  # no case takes that long, unless it hangs


def of_every_op(x: Tensor, target: Tensor, kwargs: dict) -> list[Tensor]:
    """Values and gradients."""
    x, results = x.detach().requires_grad_(), []
    for y in (
        softkern.softmax(x, 1),
        softkern.log_softmax(x, 1),
        softkern.cross_entropy(x, target, **kwargs),
        softkern.cross_entropy(x, target, reduction="none", **kwargs),
    ):
        results += [y.detach(), torch.autograd.grad(y, x, upstream(y, "random"))[0]]
    return results


def compute() -> list[Tensor]:
    return [t for shape in SHAPES for t in of_every_op(*problem(shape, weight=True, smoothing=0.1))]


class Computed(Dataset):
    """Every item is computed by the worker that loads it."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[int, list[Tensor]]:
        info = torch.utils.data.get_worker_info()
        return -1 if info is None else info.id, compute()


class Prepared(Dataset):
    """Items as users make them: probabilities of logits, and a loss to sort by."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = logits(300, 200, seed=index)
        return softkern.softmax(x, 1), softkern.cross_entropy(x, torch.arange(300) % 200)


def loader() -> list[list[Tensor]]:
    items = DataLoader(Computed(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    loaded = [(worker, [t.clone() for t in results]) for worker, results in items]
    assert {worker for worker, _ in loaded} == {0, 1}, "not by both workers"
    return [results for _, results in loaded]


def batches() -> list[list[Tensor]]:
    """Batches without workers, and the same by forked ones."""
    without = DataLoader(Prepared(), batch_size=4)
    forked = DataLoader(Prepared(), batch_size=4, num_workers=2, multiprocessing_context="fork")
    return [[t.clone() for batch in batches for t in batch] for batches in (without, forked)]


def forked_child(threads: int | None) -> list[list[Tensor]]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                signal.alarm(SECONDS)
                if threads is not None:
                    torch.set_num_threads(threads)
                torch.save(compute(), out)
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        assert status == 0, f"the child ended with {status}"
        return [torch.load(out)]


def spawned() -> list[list[Tensor]]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return [pool.apply_async(compute).get(timeout=2 * SECONDS)]


CASES: dict[str, Callable[[], list[list[Tensor]]]] = {
    "forked, all threads, before the parent computes": lambda: forked_child(None),
    "loaders forked before the parent computes": loader,
    "the parent": lambda: [compute()],
    "forked, one thread, after the parent": lambda: forked_child(1),
    "loaders forked after the parent": loader,
    "spawned": spawned,
    "the parent again": lambda: [compute()],
}


if __name__ == "__main__":
    torch.set_num_threads(2)
    torch.multiprocessing.set_sharing_strategy("file_system")
    done = {}
    for case, run in CASES.items():
        done[case] = run()
        torch.save(done, sys.argv[1])
    done["batches"] = batches()
    torch.save(done, sys.argv[1])
