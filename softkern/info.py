# SPDX-License-Identifier: Apache-2.0
"""`python -m softkern.info`: what a bug report about this machine and this build needs."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import numpy
import torch

from softkern import _C, __version__, backends


def _first_line(path: str, key: str = "") -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return "unknown"
    return next(
        (line.partition(":")[2].strip() or line for line in lines if line.startswith(key)),
        "unknown",
    )


def environment() -> dict[str, str]:
    """Names and values, in the order in which they are printed."""
    build = _C.build()
    compiler = str(build["compiler"]).strip()  # clang's own text ends in a space
    rows = {
        "softkern": __version__,
        "compiled with": f"{compiler}, C++ {build['cxx_standard']}, torch {build['torch']}",
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu": _first_line("/proc/cpuinfo", "model name"),
        "threads": str(torch.get_num_threads()),
        "huge pages": _first_line("/sys/kernel/mm/transparent_hugepage/enabled"),
        "large results": "ask for huge pages" if _C.huge_pages_wanted() else "SOFTKERN_HUGE_PAGES=0",
        "active on cpu": _C.active_isa()
        + (" (forced)" if _C.required() or os.environ.get("SOFTKERN_CPU_ISA") else ""),
    }
    for backend in backends():
        state = "usable" if backend.usable else f"not usable: {backend.reason}"
        rows[f"backend {backend.name}"] = state if backend.compiled else f"not compiled: {backend.reason}"
    return rows


def main() -> None:
    rows = environment()
    width = max(len(name) for name in rows)
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    main()
