# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of a step, on the CPU and on a CUDA device; runs in a worker."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import machine, problems, results
from benchmarks.cells import Cell

Step = Callable[[int], Any]


class Cpu:
    """Wall time; the resident set of this process."""

    def sample(self, step: Step, first: int, repeats: int) -> tuple[float, float]:
        """Seconds and page faults per call, for `repeats` successive calls on the copies from `first` on."""
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        start = time.perf_counter()
        for i in range(first, first + repeats):
            step(i)
        seconds = time.perf_counter() - start
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        return seconds / repeats, faults / repeats

    def peak(self, step: Step) -> int | None:
        """Growth of the resident set in bytes, up to its peak in one call; None if the system can't reset the
        peak (Linux does it by /proc/self/clear_refs)."""
        gc.collect(1)
        try:
            # If the heap kept free pages, the call could use them without growth.
            _trim_heap()
            Path("/proc/self/clear_refs").write_text("5")
            before = _kilobytes("VmRSS")
            step(0)
            return (_kilobytes("VmHWM") - before) * 1024
        except (OSError, AttributeError):
            return None

    def prepare(self, step: Step, size: int, room: bool) -> tuple[Step, str]:
        """The step to time, and how it was prepared. Its logits have `size` bytes. `room`: all workers of the
        cell may keep results and temporaries at the same time."""
        return step, ""

    def to_check(self, cell: Cell, value: Any) -> Any:
        """The part of a step's value that is checked."""
        return value

    def release(self) -> None:
        """Give free memory of the process back to the system."""
        with contextlib.suppress(AttributeError):
            _trim_heap()

    def memory(self) -> int:
        """Bytes that all workers of a cell may use together; 0 if unknown."""
        return machine.available_memory()


def _trim_heap() -> None:
    """Give the heap's free memory back; AttributeError if the C library is not glibc."""
    ctypes.CDLL(None).malloc_trim(0)


def _kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


class Cuda:
    """Times each call by events, after overwriting the second-level cache. Calls are replayed from CUDA
    graphs, so that the host's time for launching does not count. Without a graph, the device waits for the
    host in calls on less than 256 MiB: torch launches a forward and a backward in 60 microseconds. In longer
    calls it waits where the host is interrupted, and the times scatter."""

    # A graph keeps the memory of results and temporaries. With logits of fewer bytes, that is no matter.
    SMALL = 256 << 20

    def __init__(self) -> None:
        import torch

        self.torch = torch
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        self.flush = torch.empty(2 * cache, dtype=torch.int8, device="cuda")

    def sample(self, step: Step, first: int, repeats: int) -> tuple[float, float]:
        cuda = self.torch.cuda
        pairs = [(cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)) for _ in range(repeats)]
        for i, (start, end) in enumerate(pairs, first):
            self.flush.zero_()
            start.record()
            step(i)
            end.record()
        cuda.synchronize()
        milliseconds = sum(start.elapsed_time(end) for start, end in pairs)
        return milliseconds / 1e3 / repeats, 0.0

    def peak(self, step: Step) -> int | None:
        cuda = self.torch.cuda
        cuda.synchronize()
        cuda.reset_peak_memory_stats()
        before = cuda.memory_allocated()
        step(0)
        cuda.synchronize()
        return int(cuda.max_memory_allocated() - before)

    def prepare(self, step: Step, size: int, room: bool) -> tuple[Step, str]:
        if size == 0:
            return step, ""
        if size >= self.SMALL and not room:
            return step, f"{results.NOT_CAPTURED}: the graphs of all providers would need too much memory"
        cuda = self.torch.cuda
        side = cuda.Stream()
        side.wait_stream(cuda.current_stream())
        with cuda.stream(side):  # a first call does set-up work, which must not be captured
            for _ in range(3):
                step(0)
        cuda.current_stream().wait_stream(side)
        self.release()  # the graph takes no memory of these calls, which would be there twice
        graph = cuda.CUDAGraph()
        try:
            with cuda.graph(graph):
                step(0)
        except RuntimeError as error:
            return step, f"{results.NOT_CAPTURED}: {str(error).splitlines()[0]}"
        return lambda _: graph.replay(), results.REPLAYED

    def to_check(self, cell: Cell, value: Any) -> Any:
        """The sampled rows: copying all rows from the device would take longer than the cell."""
        if isinstance(value, tuple):
            parts = (self.to_check(cell, part) for part in value)
            return type(value)._make(parts) if hasattr(value, "_make") else tuple(parts)
        if not isinstance(value, self.torch.Tensor) or value.shape != cell.shape:
            return value
        rows = self.torch.from_numpy(problems.sampled_rows(cell)).to(value.device)
        return value.detach().movedim(cell.dim, -1).flatten(0, -2)[rows]

    def release(self) -> None:
        gc.collect()  # a graph that is part of a cycle keeps the memory of its calls
        self.torch.cuda.empty_cache()

    def memory(self) -> int:
        return int(self.torch.cuda.get_device_properties(0).total_memory)


def of(name: str) -> Cpu | Cuda:
    return Cpu() if name == "cpu" else Cuda()
