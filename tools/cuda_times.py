# SPDX-License-Identifier: Apache-2.0
"""The speed of the CUDA kernels alone: docs/cuda.json and the table of docs/cuda.md.

    python tools/cuda_times.py            # print the table of the committed figures
    python tools/cuda_times.py --measure  # on a GPU, with nvcc: measure, write the figures and the table

It measures the kernels in build/cuda, which a build leaves there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FIGURES, PAGE = ROOT / "docs/cuda.json", ROOT / "docs/cuda.md"
BEGIN, END = "<!-- made by tools/cuda_times.py: begin -->\n", "<!-- made by tools/cuda_times.py: end -->"
OPS = ("softmax", "log_softmax", "softmax backward", "cross_entropy", "cross_entropy with gradient")
# Tensors that an op has to move; the copy used for comparison moves 2.
TENSORS = dict(zip(OPS, (2, 2, 3, 1, 2), strict=True))


def measure() -> dict[str, Any]:
    program = ROOT / "build/time_cuda"
    objects = sorted((ROOT / "build/cuda").glob("*.o"))
    if not objects:
        raise SystemExit("no kernels in build/cuda: build softkern with nvcc first")
    source = ROOT / "tools/time_cuda.cu"
    subprocess.run(
        ["nvcc", "-std=c++17", "-O2", "-I", ROOT / "csrc/cuda", source, *objects, "-o", program], check=True
    )
    found = json.loads(subprocess.run([program], check=True, capture_output=True, text=True).stdout)
    return {"measured": f"{date.today()}", **found}


def table(found: dict[str, Any]) -> str:
    """For each shape the time, and the speed of moving the bytes in percent of a copy's speed."""
    cuda = f"{found['cuda'] // 1000}.{found['cuda'] % 1000 // 10}"
    lines = [
        f"{found['device']}, CUDA {cuda}, {found['measured']}: microseconds (percent of a copy's speed).",
        "",
        f"| dtype | shape | {' | '.join(OPS)} |",
        "|---|---|" + "---:|" * len(OPS),
    ]
    by_shape: dict[tuple[str, int, int], dict[str, str]] = {}
    for row in found["rows"]:
        percent = 100 * row["copy_microseconds"] / row["microseconds"] * TENSORS[row["op"]] / 2
        cells = by_shape.setdefault((row["dtype"], row["rows"], row["classes"]), {})
        cells[row["op"]] = f"{row['microseconds']:,.0f} ({percent:.0f})"
    for (dtype, rows, classes), cells in sorted(by_shape.items(), key=lambda item: (item[0][0], item[0][2])):
        lines.append(f"| {dtype} | {rows}x{classes} | {' | '.join(cells[op] for op in OPS)} |")
    return "\n".join(lines) + "\n"


def with_table(page: str, found: dict[str, Any]) -> str:
    before, rest = page.split(BEGIN)
    return before + BEGIN + table(found) + END + rest.split(END)[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="measure on this machine's GPU first")
    if parser.parse_args().measure:
        FIGURES.write_text(json.dumps(measure(), indent=1) + "\n")
        PAGE.write_text(with_table(PAGE.read_text(), json.loads(FIGURES.read_text())))
    print(table(json.loads(FIGURES.read_text())))


if __name__ == "__main__":
    main()
