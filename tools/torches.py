# SPDX-License-Identifier: Apache-2.0
"""Environments with other releases of torch, one a folder. torch's builds for CUDA take gigabytes, so an
environment that is there already is used again."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "build" / "torches"
# What a library's build imports beside torch.
BESIDE_TORCH = ("numpy", "setuptools>=77,<82")


def own_minor() -> str:
    return ".".join(re.findall(r"\d+", version("torch"))[:2])


def interpreter(named: str, folder: Path = FOLDER) -> Path | str:
    """The interpreter for MINOR or MINOR:PYTHON ("2.14:python3.12"), or the reason why there is none."""
    minor, _, python = named.partition(":")
    if named in ("own", own_minor()):
        return Path(sys.executable)
    place = folder / named.replace(":", "-")
    interpreter = place / "bin" / "python"
    if (place / ".complete").is_file():
        return interpreter
    shutil.rmtree(place, ignore_errors=True)
    print(f"softkern: torch {minor} comes into {place}", flush=True)
    for command in (
        [python or sys.executable, "-m", "venv", str(place)],
        [str(interpreter), "-m", "pip", "install", "-q", f"torch=={minor}.*", *BESIDE_TORCH],
    ):
        if (reason := _failure(command)) is not None:
            shutil.rmtree(place, ignore_errors=True)
            return reason
    (place / ".complete").touch()
    return interpreter


def _failure(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        return str(error)
    if done.returncode == 0:
        return None
    return (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
