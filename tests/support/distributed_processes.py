# SPDX-License-Identifier: Apache-2.0
"""Two processes of a gloo group run the same checks; they start only once, because that takes seconds."""

from __future__ import annotations

import datetime
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

WORLD = 2
SECONDS = 30  # for one collective: a rank that waits for a lost one gives up
CHECKS: dict[str, Callable] = {}
WAYS: dict[tuple[str, str], tuple[bool, bool]] = {}  # (feature, op): what this rank's watch saw


def check(f: Callable) -> Callable:
    """Registers `f(mesh)`, run by every rank. What it asserts must be true or false on all of them: a rank
    that stops between two collectives leaves the others waiting."""
    CHECKS[f.__name__] = f
    return f


def run_rank(rank: int, folder: str, names: tuple[str, ...]) -> None:
    """Runs the checks and saves {name: "" or the traceback} and WAYS."""
    # Registers the checks in this process, which was spawned.
    import distributed_classes_checks  # noqa: F401
    import distributed_linear_checks  # noqa: F401
    import distributed_linear_training_checks  # noqa: F401
    import distributed_parallel_checks  # noqa: F401
    import distributed_rows_checks  # noqa: F401
    import distributed_tensor_checks  # noqa: F401
    import distributed_training_checks  # noqa: F401

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        # Not by a file:// address, whose %20 torch takes for a part of the name.
        store=torch.distributed.FileStore(str(Path(folder, "rendezvous")), WORLD),
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=SECONDS),
    )
    mesh = torch.distributed.init_device_mesh("cpu", (WORLD,))
    results = {}
    for name in names:
        torch.manual_seed(0)
        try:
            CHECKS[name](mesh)
            results[name] = ""
        except Exception:
            results[name] = traceback.format_exc()
        torch.save((results, WAYS), Path(folder, f"rank{rank}"))
    torch.distributed.destroy_process_group()


def run(folder: Path, names: tuple[str, ...], seconds: float) -> list[tuple[dict, dict]]:
    """The results of all ranks. Processes that take too long are ended, and what they had is returned."""
    context = torch.multiprocessing.spawn(run_rank, (str(folder), names), nprocs=WORLD, join=False)
    try:
        context.join(timeout=seconds)  # returns after the first that ends, raises what it raised
        context.join(timeout=seconds)
    finally:
        for process in context.processes:
            process.kill()
            process.join()
    files = [folder / f"rank{rank}" for rank in range(WORLD)]
    return [torch.load(f) if f.exists() else ({}, {}) for f in files]
