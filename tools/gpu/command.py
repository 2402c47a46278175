# SPDX-License-Identifier: Apache-2.0
"""Programs with a time limit, and what is written down of them."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TAIL = 3000  # characters of the output that are kept
GRACE = 10.0  # seconds to write down what there is, between the request to end and the end


class Command:
    """A program that runs until it ends, or until its seconds are over: then it and all it started are asked
    to end, and ended if they don't."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        folder: Path,
        environment: Mapping[str, str],
        accepted: Sequence[int] = (0,),
    ) -> None:
        self.name, self.command, self.accepted = name, [str(part) for part in command], accepted
        self.begun = time.monotonic()
        self.seconds = 0.0
        self.reason = ""
        self.output = tempfile.TemporaryFile()  # noqa: SIM115 (closed by finish)
        self.written = ""
        self.process: subprocess.Popen[bytes] | None = None
        self.code: int | None = None
        try:
            self.process = subprocess.Popen(
                self.command,
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=self.output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            self.reason = str(error)

    def finish(self, seconds: float) -> Command:
        """Wait so long for the end, and read the output."""
        with self.output:
            if self.process is not None:
                self._wait(seconds)
            self.output.seek(0)
            self.written = self.output.read().decode(errors="replace")
        return self

    def _wait(self, seconds: float) -> None:
        assert self.process is not None
        try:
            self.process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            self.reason = f"not done after {time.monotonic() - self.begun:.0f} s"
            self._end()
        except BaseException:  # the run is ended: nothing that it started is left
            self._end()
            raise
        self.code = self.process.returncode
        self.seconds = time.monotonic() - self.begun

    def _end(self) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE)
        with contextlib.suppress(ProcessLookupError):  # its children may be left
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @property
    def ok(self) -> bool:
        return self.code in self.accepted and not self.reason

    def lines(self) -> list[dict[str, Any]]:
        """The JSON objects of its output, one a line."""
        found = []
        for line in self.written.splitlines():
            if line.startswith("{"):
                with contextlib.suppress(ValueError):  # the last one, where the program was ended
                    found.append(json.loads(line))
        return found

    def record(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "command": shlex.join(self.command),
            "seconds": round(self.seconds, 1),
            "code": self.code,
            "reason": self.reason,
            "tail": self.written[-TAIL:],
        }
