# SPDX-License-Identifier: Apache-2.0
"""Programs that tests make: of C++ sources, and shell scripts in the place of others."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from places import ROOT


def compiled(target: Path, *arguments: str | Path) -> Path:
    """Paths among the arguments are from ROOT on."""
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    subprocess.run([*compiler, "-std=c++17", *arguments, "-o", target], cwd=ROOT, check=True)
    return target


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path
