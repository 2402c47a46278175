# SPDX-License-Identifier: Apache-2.0
"""The conductor's side of a worker process."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.engine import regimes
from benchmarks.providers.base import Provider

ROOT = Path(__file__).resolve().parents[2]


# If a thread spins at a barrier on the same core as the thread it waits for, it costs a time slice: sometimes
# 8 ms in calls of 0.1 ms. Times of a device do not depend on it, and workers that compile at the same time
# would share a core.
BOUND = {"OMP_PROC_BIND": "close", "OMP_PLACES": "threads"}


class WorkerLost(Exception):
    """The process crashed, was killed or did not answer in time; the message says which."""


class Worker:
    """One provider, regime and number of threads. After `start`, `wait_started` gives its first answer."""

    def __init__(
        self, label: str, name: str, provider: Provider | None, regime: str, threads: int, options: Options
    ) -> None:
        self.label = label
        self.provider = provider
        self.options = options
        self.start_message = {"do": "start", "name": name, "plugin": options.plugin, "device": options.device}
        self.environment = {
            **os.environ,
            **regimes.environment(regime),
            **(provider.environment(regime) if provider else {}),
            "SOFTKERN_BENCH_THREADS": str(threads),
            "OMP_NUM_THREADS": str(threads),
            **(BOUND if options.device == "cpu" else {}),
            "PYTHONHASHSEED": "0",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        }
        cores = sorted(os.sched_getaffinity(0))
        if threads == 1 and len(cores) > 1:  # the last core: interrupts often go to the first
            self.environment["SOFTKERN_BENCH_CORE"] = str(cores[-1])
        self.process: subprocess.Popen[bytes] | None = None
        self.version = ""

    def start(self) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        self.buffer = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.engine.launch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=self.environment,
            start_new_session=True,  # only the conductor gets Ctrl-C, and ends its workers
        )
        self._send(self.start_message)

    def wait_started(self) -> dict[str, Any]:
        """Returns {"version": ...} or {"absent": reason}."""
        answer = self._receive(self.options.timeout)
        self.version = answer.get("version", "")
        return answer

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        self.tell(message)
        return self.answer()

    def tell(self, message: dict[str, Any]) -> None:
        """Start the work; `answer` waits for its end."""
        if self.process is None:
            self.start()
            self.wait_started()
        self._signal(signal.SIGCONT)
        self._send(message)

    def answer(self) -> dict[str, Any]:
        answer = self._receive(self.options.timeout)
        # Threads of OpenMP, XLA and ONNX Runtime spin for milliseconds after their work, which would disturb
        # the next worker's turn.
        self._signal(signal.SIGSTOP)
        return answer

    def stop(self) -> None:
        if self.process is None:
            return
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        self.process.kill()
        self.process.wait()
        self.errors.close()
        self.process = None

    def _signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process is not None and self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            self._lost()

    def _receive(self, timeout: float) -> dict[str, Any]:
        assert self.process is not None and self.process.stdout is not None
        deadline = time.monotonic() + timeout
        pipe = self.process.stdout.fileno()
        while b"\n" not in self.buffer:
            if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self._lost(f"no answer within {timeout:g} s")
            chunk = os.read(pipe, 1 << 16)
            if not chunk:
                self._lost()
            self.buffer += chunk
        line, self.buffer = self.buffer.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _lost(self, reason: str = "") -> None:
        """Clean up, and raise with the reason and the last line of standard error."""
        assert self.process is not None
        if not reason:
            code = self.process.wait()
            reason = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        self.errors.seek(0)
        words = [line.strip() for line in self.errors.read().decode(errors="replace").splitlines()]
        last = next((line for line in reversed(words) if line), "")
        self.stop()
        raise WorkerLost(f"{reason}: {last[:200]}" if last else reason)


@dataclass
class Options:
    """The options of the command line that workers need."""

    device: str = "cpu"
    plugin: str | None = None
    timeout: float = 300.0  # seconds for an answer
