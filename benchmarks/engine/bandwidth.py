# SPDX-License-Identifier: Apache-2.0
"""The speed of the memory: copy, read and first touch, with common library routines.

The copy also takes part in the rounds of a cell, with as many bytes as the cell moves: on a shared machine
the same copy can take half or twice the time a minute later.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import numpy as np

from benchmarks.engine.devices import Cpu, Cuda

BYTES = 256 << 20
DEVICE_BYTES = 4 << 30  # much larger than the second-level cache of any GPU
ROUNDS = 7


class Copy:
    """memcpy of half the bytes (they are read and written), split over threads.

    A thread makes all its copies before it waits for the others, because starting a copy from Python takes as
    long as a small copy.
    """

    def __init__(self, total: int, threads: int, buffers: int) -> None:
        size = max(total // 2, threads)
        self.pairs = [(np.zeros(size, np.int8), np.ones(size, np.int8)) for _ in range(buffers)]
        self.parts = _parts(size, threads)
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def run(self, times: int) -> float:
        """Seconds per copy."""

        def copies(part: slice) -> None:
            for i in range(times):
                target, source = self.pairs[i % len(self.pairs)]
                np.copyto(target[part], source[part])

        start = time.perf_counter()
        _each(self.pool, self.parts, copies)
        return (time.perf_counter() - start) / times


class DeviceCopy:
    """torch's copy of half the bytes within one device."""

    def __init__(self, total: int, buffers: int, device: str) -> None:
        import torch

        size = max(total // 2, 1)
        self.pairs = [
            (
                torch.zeros(size, dtype=torch.int8, device=device),
                torch.ones(size, dtype=torch.int8, device=device),
            )
            for _ in range(buffers)
        ]

    def step(self, i: int) -> None:
        target, source = self.pairs[i]
        target.copy_(source)


def measure_device(device: Cpu | Cuda, name: str, threads: int) -> list[dict[str, object]]:
    """GB/s of a copy of half of DEVICE_BYTES onto the other half."""
    copy = DeviceCopy(DEVICE_BYTES, 1, name)
    device.sample(lambda _: copy.step(0), 0, 1)
    seconds, _ = device.sample(lambda _: copy.step(0), 0, ROUNDS)
    return [{"threads": threads, "what": "copy", "gbps": round(DEVICE_BYTES / seconds / 1e9, 2)}]


def measure(threads: int, quick: bool = False) -> list[dict[str, object]]:
    """GB/s; bytes read and bytes written both count in a copy."""
    total = BYTES >> 4 if quick else BYTES
    source = np.ones(total // 8, np.int64)
    target = np.zeros_like(source)
    parts = _parts(len(source), threads)
    with ThreadPoolExecutor(threads) as pool:
        own = pool if threads > 1 else None
        found = {
            "copy": 2 * _gbps(total, lambda: _each(own, parts, lambda p: np.copyto(target[p], source[p]))),
            "read": _gbps(total, lambda: _each(own, parts, lambda p: np.bitwise_or.reduce(source[p]))),
            "first touch": _first_touch(total, threads, own, huge=False),
        }
        if hasattr(mmap, "MADV_HUGEPAGE"):
            found["first touch, huge pages"] = _first_touch(total, threads, own, huge=True)
    return [{"threads": threads, "what": what, "gbps": round(gbps, 2)} for what, gbps in found.items()]


def _parts(size: int, threads: int) -> list[slice]:
    step = -(-size // threads)
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def _each(pool: ThreadPoolExecutor | None, parts: list[slice], work: Callable[[slice], object]) -> None:
    if pool is None:
        for part in parts:
            work(part)
    else:
        list(pool.map(work, parts))


def _gbps(total: int, work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return total / median(times) / 1e9


def _first_touch(total: int, threads: int, pool: ThreadPoolExecutor | None, huge: bool) -> float:
    parts = _parts(total, threads)
    times = []
    for _ in range(3):
        with mmap.mmap(-1, total, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as fresh:
            fresh.madvise(mmap.MADV_HUGEPAGE if huge else getattr(mmap, "MADV_NOHUGEPAGE", mmap.MADV_NORMAL))
            view = np.frombuffer(fresh, np.int8)
            start = time.perf_counter()
            _each(pool, parts, lambda part, view=view: view[part].fill(1))
            times.append(time.perf_counter() - start)
            del view
    return total / median(times) / 1e9
