# SPDX-License-Identifier: Apache-2.0
"""Puts the files between the kernels and torch into two units, so that several files compile together.

Most of the time goes into reading torch's headers: two units read them twice, ten files would read them ten
times.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = "build/glue"
# The code above the dispatcher, and the code below it.
UNITS = {
    "above": ("csrc/autograd/", "csrc/behind.cpp", "csrc/python.cpp"),
    "below": ("csrc/ops/", "csrc/cpu/"),
}
ALONE = ("csrc/ops/cuda/", "csrc/cuda/")  # compiled in some builds only


def together(sources: list[str], root: Path) -> list[str]:
    """The units that include these sources, and the sources that belong to no unit."""
    left = list(sources)
    units = []
    for name, places in UNITS.items():
        members = [s for s in left if s.startswith(places) and not s.startswith(ALONE)]
        if not members:
            continue
        left = [s for s in left if s not in members]
        unit = root / FOLDER / f"{name}.cpp"
        text = "".join(f'#include "../../{member}"\n' for member in members)
        unit.parent.mkdir(parents=True, exist_ok=True)
        if not unit.is_file() or unit.read_text() != text:  # an unchanged unit is not compiled again
            unit.write_text(text)
        units.append(f"{FOLDER}/{name}.cpp")
    return units + left
