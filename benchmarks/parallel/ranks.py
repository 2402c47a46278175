# SPDX-License-Identifier: Apache-2.0
"""What each of the processes does: they make the logits, check every way, and time it in turns."""

from __future__ import annotations

import gc
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from benchmarks import results
from benchmarks.engine import regimes
from benchmarks.engine.devices import Cpu
from benchmarks.parallel import BASELINE
from benchmarks.parallel.ways import WAYS, Shard, Step
from benchmarks.problems import BOUND, EPS, rounded

SECONDS = 3600.0  # for a whole run
BLOCK = 64  # rows that are made at a time
SAMPLED = 32  # rows whose gradient is checked


class Cell(NamedTuple):
    rows: int
    classes: int
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.rows}x{self.classes} {self.dtype}"


class Problem(NamedTuple):
    logits: torch.Tensor  # of this rank
    target: torch.Tensor
    lse: np.ndarray  # float64, of whole rows
    loss: float


def measure(cells: Sequence[Cell], ways: Sequence[str], ranks: int, rounds: int) -> list[results.Row]:
    """The rows of a results file. Starts the processes, and ends them if one fails."""
    with tempfile.TemporaryDirectory() as folder, _environment():
        context = torch.multiprocessing.spawn(
            run_rank, (folder, cells, ways, ranks, rounds), nprocs=ranks, join=False
        )
        deadline = time.monotonic() + SECONDS
        try:
            # Returns whenever one of them has ended, and raises what it raised.
            while not context.join(timeout=max(0.0, deadline - time.monotonic())):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the ranks took longer than {SECONDS:g} s")
        finally:
            for process in context.processes:
                process.kill()
                process.join()
        rows: list[results.Row] = json.loads(Path(folder, "rows.json").read_text())
    return rows


@contextmanager
def _environment() -> Iterator[None]:
    """One thread a process, and the allocator of the regime "default"."""
    before = dict(os.environ)
    os.environ.update(regimes.environment("default"), OMP_NUM_THREADS="1")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def run_rank(
    rank: int, folder: str, cells: Sequence[Cell], ways: Sequence[str], ranks: int, rounds: int
) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder, "rendezvous")), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    mesh = dist.init_device_mesh("cpu", (ranks,))
    rows = []
    for cell in cells:
        if rank == 0:
            print(f"{cell.name}: {ranks} ranks, {rounds} rounds", flush=True)
        rows += of_cell(make(cell, rank, ranks), cell, ways, mesh, rounds)
    if rank == 0:
        Path(folder, "rows.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


def make(cell: Cell, rank: int, ranks: int) -> Problem:
    """Logits N(0, 3), the same whatever the number of ranks. No process holds all of them."""
    rng = np.random.default_rng(0)
    width = cell.classes // ranks
    own = slice(rank * width, (rank + 1) * width)
    target = rng.integers(0, cell.classes, cell.rows)
    logits = torch.empty(cell.rows, width, dtype=getattr(torch, cell.dtype))
    lse, hot = np.empty(cell.rows), np.empty(cell.rows)
    for begin in range(0, cell.rows, BLOCK):
        these = slice(begin, min(begin + BLOCK, cell.rows))
        y = target[these]
        x = rng.standard_normal((len(y), cell.classes), np.float32)
        x = rounded(x * np.float32(3), cell.dtype)
        logits[these] = torch.from_numpy(x[:, own])
        largest = x.max(1, keepdims=True).astype(np.float64)
        lse[these] = largest[:, 0] + np.log(np.exp(x - largest).sum(1))
        hot[these] = x[np.arange(len(y)), y]
    return Problem(logits, torch.from_numpy(target), lse, float((lse - hot).mean()))


def of_cell(problem: Problem, cell: Cell, names: Sequence[str], mesh: Any, rounds: int) -> list[results.Row]:
    shard = Shard(problem.logits.clone().requires_grad_(), problem.target, mesh)
    steps = {name: WAYS[name](shard) for name in names}
    rows = {name: _checked(step, name, shard, problem, cell) for name, step in steps.items()}
    running = [name for name in names if rows[name]["status"] == "ok"]
    samples: dict[str, list[float]] = {name: [] for name in running}
    for k in range(rounds):
        for name in running[k % len(running) :] + running[: k % len(running)]:
            samples[name].append(_timed(steps[name], shard, problem))
    for name in running:
        _restore(shard, problem)
        peak = Cpu().peak(lambda _, name=name: steps[name]())
        seconds, peaks = zip(*_of_ranks((samples[name], peak)), strict=True)
        slowest = [max(of_round) for of_round in zip(*seconds, strict=True)]
        rows[name] |= {
            "samples": slowest,
            **results.summary(slowest),
            "peak_bytes": None if None in peaks else max(peaks),
        }
    for name in running:
        if BASELINE in running:
            ratio = results.paired_ratio(rows[BASELINE]["samples"], rows[name]["samples"])
            rows[name]["ratio"] = round(ratio, 4)
    return list(rows.values())


def _checked(step: Step, name: str, shard: Shard, problem: Problem, cell: Cell) -> results.Row:
    """The row of a way without times: whether its results are right on all ranks."""
    from torch.distributed.tensor.debug import CommDebugMode

    step()  # which may have to agree with the other ranks on something
    _restore(shard, problem)
    with CommDebugMode() as seen:
        loss = step().item()
    error = errors(loss, shard, problem, cell)
    worst = {part: max(of_rank[part] for of_rank in _of_ranks(error)) for part in error}
    wrong = [part for part, e in worst.items() if not e * EPS[cell.dtype] <= BOUND[cell.dtype]]
    return {
        **cell._asdict(),
        "provider": name,
        "status": "refused" if wrong else "ok",
        "reason": f"wrong {' and '.join(wrong)}" if wrong else "",
        "error": {part: e if np.isfinite(e) else None for part, e in worst.items()},
        "logits_bytes": problem.logits.nbytes,
        "collectives": seen.get_total_counts(),
    }


def errors(loss: float, shard: Shard, problem: Problem, cell: Cell) -> dict[str, float]:
    """Distances from the float64 answers, in units of eps times the loss and the largest term of a row."""
    eps = EPS[cell.dtype]
    sampled = np.unique(np.linspace(0, cell.rows - 1, SAMPLED).astype(int))
    x = problem.logits[sampled].double().numpy()
    expected = np.exp(x - problem.lse[sampled, None])
    y = problem.target.numpy()[sampled] - shard.first
    mine = (y >= 0) & (y < x.shape[1])
    expected[np.flatnonzero(mine), y[mine]] -= 1
    grad = shard.logits.grad
    assert grad is not None
    found = grad[torch.from_numpy(sampled)].double().numpy() * cell.rows
    return {
        "loss": abs(loss - problem.loss) / problem.loss / eps,
        "gradient": float(np.abs(found - expected).max()) / eps,
    }


def _timed(step: Step, shard: Shard, problem: Problem) -> float:
    """Seconds of this rank, from a start of all ranks."""
    _restore(shard, problem)
    gc.collect(0)
    dist.barrier()
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _restore(shard: Shard, problem: Problem) -> None:
    """The logits, which some ways overwrite, without a gradient."""
    shard.logits.grad = None
    with torch.no_grad():
        shard.logits.copy_(problem.logits)


def _of_ranks(value: Any) -> list[Any]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found
