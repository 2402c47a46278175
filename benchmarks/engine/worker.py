# SPDX-License-Identifier: Apache-2.0
"""A process with one provider, in one regime, with one number of threads; it times the cells that it gets.

It takes one JSON object a line on its standard input and answers each with one on its standard output; what
frameworks print goes to standard error. `benchmarks.engine.conductor` starts it and speaks first.
"""

from __future__ import annotations

import gc
import json
import math
import mmap
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import problems, providers, results
from benchmarks.cells import Cell
from benchmarks.engine import bandwidth, devices, regimes
from benchmarks.providers.base import Absent, Prepared, Provider

MOST_REPEATS = 2000
# The first calls of a turn wait for the threads and for memory. If they set the number of calls, a sample has
# too few calls, and a few calls are slower per call than many: of two equal processes, one was a tenth slower
# in all samples. So calibration makes calls for the time of several samples, up to a maximum of calls.
MOST_CALIBRATING, SAMPLES_CALIBRATING = 10, 5
# Seconds. A call that takes longer makes no calls before it: they would take as long as the cell.
SLOW = 15.0
# Bytes. As large as results: a smaller piece would fill gaps that small objects left. A step is 9 cache
# lines.
HEAP_ASIDE, HEAP_STEP = 1 << 20, 9 * 64


class Session:
    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.provider: Provider | None = None
        self.device: devices.Cpu | devices.Cuda = devices.Cpu()
        self.device_name = "cpu"
        self.step: devices.Step | None = None
        self.copy: bandwidth.Copy | None = None
        self.aside: tuple[mmap.mmap, bytearray] | None = None
        self.cursor = 0
        self.peak_before: int | None = None
        self.slow = False
        self.repeats = 1

    def start(self, name: str, plugin: str | None, device: str) -> dict[str, Any]:
        self.device_name = device
        if name == "copy":
            self.device = devices.of(device)
            return {"version": ""}
        known = providers.PROVIDERS | (providers.from_file(Path(plugin)) if plugin else {})
        self.provider = known[name]
        version = self.provider.load(self.threads)
        self.device = devices.of(device)
        gc.collect()
        gc.freeze()  # a framework has many objects: each collection would visit them for 0.1 s
        return {"version": version}

    def prepare(
        self, cell: dict[str, Any], folder: str | None, buffers: int, room: bool = True
    ) -> dict[str, Any]:
        """Make the inputs and check the result of a first call. `room`: see Cpu.prepare."""
        assert self.provider is not None
        what = Cell.from_dict(cell)
        problem = problems.load(Path(folder)) if folder else None
        prepared = self.provider.prepare(what, problem, buffers)
        found = self._check(what, prepared, folder)
        reason = problems.verdict(what, found)
        if reason:
            return {"refused": reason, "error": found}
        # A graph allocates before it is replayed: the peak is that of a call without it.
        on_device = self.device_name != "cpu" and what.input_bytes >= regimes.SMALLEST
        peak = self.device.peak(prepared.step) if on_device else None
        step, how = self.device.prepare(prepared.step, what.input_bytes, room)
        self.peak_before = peak if how == results.REPLAYED else None
        self.step = lambda i: step(i % buffers)
        # Otherwise, memory left free by this check and by earlier cells would decide whether outputs are on
        # fresh pages.
        self.device.release()
        return {"error": found, "how": how}

    def release(self) -> dict[str, Any]:
        """Give the memory of the cell back to the system."""
        self.finish()
        self.aside = None
        self.device.release()
        return {}

    def place_anew(self, aside: int, **message: Any) -> dict[str, Any]:
        """Prepare the same cell again on other pages, with a check; after `release`. Before that, take
        `aside` bytes and hold them until the next `release`, because the system hands out first what came
        back last, and would hand out the same pages again. Take a piece of the heap, too: the places of
        operands within a page depend on what earlier cells left there."""
        pages = mmap.mmap(-1, aside)
        np.frombuffer(pages, np.uint8)[:: mmap.PAGESIZE] = 1
        self.aside = pages, bytearray(HEAP_ASIDE + aside // regimes.HUGE_PAGE * HEAP_STEP)
        return self.prepare(**message)

    def _check(self, cell: Cell, prepared: Prepared, folder: str | None) -> dict[str, float]:
        got = prepared.results(self.device.to_check(cell, prepared.step(0)))
        if folder is None:  # end-to-end jobs compare their loss themselves
            return {name: float(value.max()) / problems.EPS[cell.dtype] for name, value in got.items()}
        expected = problems.load_answers(Path(folder))
        return problems.errors(cell, got, expected)

    def prepare_copy(self, total: int, buffers: int) -> dict[str, Any]:
        if self.device_name == "cpu":
            self.copy = bandwidth.Copy(total, self.threads, buffers)
        else:
            on_device = bandwidth.DeviceCopy(total, buffers, self.device_name)
            self.step = lambda i: on_device.step(i % buffers)
        return {}

    def sample_copy(self) -> dict[str, Any]:
        if self.copy is None:
            return self.sample()
        return {"seconds": self.copy.run(self.repeats), "faults": 0.0}

    def calibrate(self, sample: float) -> dict[str, Any]:
        """Find how many calls of the prepared cell take that many seconds."""
        taken: list[float] = []
        while len(taken) < 2 or (len(taken) < MOST_CALIBRATING and sum(taken) < SAMPLES_CALIBRATING * sample):
            taken.append(self._once(len(taken)))
            if taken[0] > SLOW:
                break
        self.slow = taken[0] > SLOW
        self.repeats = min(MOST_REPEATS, max(1, math.ceil(sample / max(min(taken), 1e-7))))
        return {"repeats": self.repeats}

    def _once(self, k: int) -> float:
        """Seconds of one call on the k-th copy of the inputs."""
        if self.copy is not None:
            return self.copy.run(1)
        assert self.step is not None
        return self.device.sample(self.step, k, 1)[0]

    def sample(self) -> dict[str, Any]:
        """One sample, after an untimed call on the copy that was used last, which is the only copy if
        operands should be in the cache. Calls of seconds get an untimed call, too: large results on huge
        pages take longer after another process has split free memory into small pages, or the host has
        reclaimed it."""
        assert self.step is not None
        if not self.slow:
            self.step(self.cursor - 1)
        seconds, faults = self.device.sample(self.step, self.cursor, self.repeats)
        self.cursor += self.repeats
        return {"seconds": seconds, "faults": faults}

    def memory(self) -> dict[str, Any]:
        return {"bytes": self.device.memory()}

    def peak(self) -> dict[str, Any]:
        assert self.step is not None
        before = self.peak_before
        return {"bytes": self.device.peak(self.step) if before is None else before}

    def bandwidth(self, quick: bool) -> dict[str, Any]:
        if self.device_name != "cpu":
            return {"rows": bandwidth.measure_device(self.device, self.device_name, self.threads)}
        return {"rows": bandwidth.measure(self.threads, quick)}

    def finish(self) -> dict[str, Any]:
        self.step = self.copy = None
        self.cursor = 0
        gc.collect(1)  # a cell's objects are young; a full collection can take longer than a cell
        return {}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    session = Session(int(os.environ["SOFTKERN_BENCH_THREADS"]))
    for line in sys.stdin:
        message = json.loads(line)
        try:
            answer = getattr(session, message.pop("do"))(**message)
        except Absent as reason:
            answer = {"absent": " ".join(str(reason).split())}
        except Exception as error:  # from a framework: the row is lost, the run continues
            session.finish()
            answer = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
