# SPDX-License-Identifier: Apache-2.0
"""Puts the files between the kernels and torch into two units, so that several files compile together.

Most of the time goes into reading torch's headers: two units read them twice, ten files would read them ten
times.
"""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = "build/glue"
FLAGS = [
    "-O0" if os.environ.get("DEBUG") == "1" else "-O3",
    "-g" if os.environ.get("DEBUG") == "1" else "-g0",  # some Pythons add -g, which triples the size
    "-fvisibility=hidden",
    # The compiler may not form a fused multiply-add by itself: which ones are fused is part of the kernels'
    # definition, and equal on every ISA. Never -ffast-math, which also sets flush-to-zero for the process.
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wno-psabi",  # notes on the ABI of 64-byte vectors, which never cross a file
]
# The code above the dispatcher, and the code below it.
UNITS = {
    "above": (
        "csrc/autograd/",
        "csrc/behind.cpp",
        "csrc/c_api.cpp",
        "csrc/calls.cpp",
        "csrc/entry.cpp",
        "csrc/python.cpp",
    ),
    "below": ("csrc/ops/", "csrc/cpu/"),
}
# How Python calls the ops: the files of one binding are in no other.
BINDINGS = {
    "pybind": ("csrc/behind.cpp", "csrc/python.cpp"),
    "library": ("csrc/c_api.cpp", "csrc/calls.cpp"),
    "stable": ("csrc/stable/library.cpp",),  # tools/stable_build.py
}
ALONE = ("csrc/ops/cuda/", "csrc/cuda/")  # compiled in some builds only


def of_binding(sources: list[str], binding: str) -> list[str]:
    """The sources without those of other bindings."""
    others = {name for key, names in BINDINGS.items() if key != binding for name in names}
    return [source for source in sources if source not in others]


def together(sources: list[str], root: Path, folder: str = FOLDER) -> list[str]:
    """The units that include these sources, and the sources that belong to no unit."""
    left = list(sources)
    units = []
    for name, places in UNITS.items():
        members = [s for s in left if s.startswith(places) and not s.startswith(ALONE)]
        if not members:
            continue
        left = [s for s in left if s not in members]
        unit = root / folder / f"{name}.cpp"
        text = "".join(f'#include "../../{member}"\n' for member in members)
        unit.parent.mkdir(parents=True, exist_ok=True)
        if not unit.is_file() or unit.read_text() != text:  # an unchanged unit is not compiled again
            unit.write_text(text)
        units.append(f"{folder}/{name}.cpp")
    return units + left
