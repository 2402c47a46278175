# SPDX-License-Identifier: Apache-2.0
"""How many instructions the kernels take on 64-bit ARM, with the NEON trait and with the portable one.

An emulator counts them, one call of a kernel on one thread:

    make arm ARM=build/arm-O3 ARM_LEVEL=-O3
    python tools/arm_instructions.py build/arm-O3

Needs g++-aarch64-linux-gnu and qemu-user-static. Instructions are not time: they say what a compiler made of
the sources, and nothing of caches and of how many instructions a CPU starts at a time.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OPS = ("softmax", "cross_entropy")
TYPES = {"float": "float32", "bfloat16": "bfloat16"}
SHAPES = ((16, 1000), (1024, 10))
ISAS = ("neon", "portable")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("objects", type=Path, help="folder with the objects of both")
    folder = parser.parse_args().objects
    program = folder / "arm_instructions"
    objects = [path for isa in (*ISAS, "dispatch") for path in sorted(folder.glob(f"{isa}*.o"))]
    source = ROOT / "tools/arm_instructions.cpp"
    compiler = ("aarch64-linux-gnu-g++", "-std=c++17", "-O2", "-static")
    subprocess.run([*compiler, source, *objects, "-o", program], check=True)
    print("| op | dtype | rows x classes | NEON | portable | ratio |\n|---|---|---|---|---|---|")
    for op, (name, dtype), (rows, classes) in itertools.product(OPS, TYPES.items(), SHAPES):
        job = (op, name, str(rows), str(classes))
        found = [count(program, isa, *job, "1") - count(program, isa, *job, "0") for isa in ISAS]
        neon, portable = (instructions / (rows * classes) for instructions in found)
        shown = f"{neon:.1f} | {portable:.1f} | {portable / neon:.1f}"
        print(f"| {op} | {dtype} | {rows} x {classes} | {shown} |", flush=True)


def count(program: Path, *arguments: str) -> int:
    """Instructions of a run: with -singlestep, the emulator executes them one by one and logs each."""
    command = ["qemu-aarch64-static", "-singlestep", "-d", "nochain,exec", program, *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as run:
        assert run.stderr is not None
        found = sum(line.startswith(b"Trace ") for line in run.stderr)
    if run.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {run.returncode}")
    return found


if __name__ == "__main__":
    main()
