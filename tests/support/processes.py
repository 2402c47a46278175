# SPDX-License-Identifier: Apache-2.0
"""Python in a process of its own, where no backend is chosen but by the test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from places import SUPPORT

import softkern


def python(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    chosen = ("SOFTKERN_CPU_ISA", "SOFTKERN_BACKEND", "TRITON_INTERPRET")
    clean = {k: v for k, v in os.environ.items() if k not in chosen}
    path = os.pathsep.join((str(SUPPORT), str(Path(softkern.__file__).parent.parent)))
    command = [sys.executable, "-W", "error", *arguments]
    return subprocess.run(
        command, env={**clean, "PYTHONPATH": path, **env}, capture_output=True, text=True, timeout=240
    )


def refused(code: str, **env: str) -> str:
    """The last line of what it says of an error."""
    done = python("-c", code, **env)
    assert done.returncode != 0
    return done.stderr.strip().splitlines()[-1]
