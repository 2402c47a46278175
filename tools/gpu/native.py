# SPDX-License-Identifier: Apache-2.0
"""Compiles the programs that call the CUDA kernels without torch: tools/check_cuda.cpp and time_cuda.cpp.

    PYTHONPATH=tools python -m gpu.native --into FOLDER [--emulate] [--element float,...]
        [--variant SOURCE,... -D MACRO ...]

One program for each element type: FOLDER/check_cuda.float, ... The kernels are those of build/cuda, which
setup.py takes as well, or with --emulate, run on the host. Objects that are current stay. With --variant, the
kernels of these sources are compiled anew with the macros, into FOLDER.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cuda_build

ROOT = Path(__file__).resolve().parent.parent.parent
# The programs don't ask which devices the kernels are compiled for.
OF_NO_ARCHITECTURE = '-DSOFTKERN_CUDA_ARCHITECTURES=""'
BOTH = ("csrc/cuda/device.cpp",)
PROGRAMS = {
    "check_cuda": (
        *BOTH,
        "tools/check_cuda.cpp",
        "tools/cuda/check_softmax.cpp",
        "tools/cuda/check_losses.cpp",
        "tools/cuda/check_row_losses.cpp",
    ),
    "time_cuda": (*BOTH, "tools/time_cuda.cpp", "tools/cuda/cells.cpp"),
}
EMULATED = "build/emulated-alone"  # `make emulate` has its own, with sanitizers
SLOWEST = ("row_losses", "cross_entropy")
HEADERS = ["csrc/common", "csrc/cpu", "csrc/cuda", "tools/cuda"]


def compilers(emulate: bool) -> tuple[cuda_build.Compiler, cuda_build.Compiler]:
    """Of the kernels and of the programs."""
    flags = ["-std=c++17", "-O2", "-I", "csrc/cuda", "-I", "tools", OF_NO_ARCHITECTURE]
    if emulate:
        kernels = replace(cuda_build.emulator(ROOT, {}), folder=EMULATED)
        own = [kernels.command[0], *flags, "-DSOFTKERN_EMULATED"]
    else:
        toolkit, looked = cuda_build.find_toolkit(os.environ)
        if toolkit is None:
            raise SystemExit("no CUDA toolkit:\n" + "\n".join(looked))
        kernels = cuda_build.nvcc(toolkit, os.environ)
        own = [str(toolkit.nvcc), *flags]
    return kernels, cuda_build.Compiler(own, kernels.identity, "", HEADERS, [])


def build(
    into: Path, emulate: bool, elements: Sequence[str], sources: Sequence[str], macros: Sequence[str]
) -> None:
    kernels, own = compilers(emulate)
    own.folder = str(into.relative_to(ROOT) / "objects")
    every = sorted(str(path.relative_to(ROOT)) for path in (ROOT / cuda_build.KERNELS).glob("*.cu"))
    changed = [name for name in every if Path(name).name in sources]
    if len(changed) != len(sources):
        raise SystemExit(f"not all of these are kernels: {', '.join(sources)}")
    variant = replace(kernels, command=[*kernels.command, *macros], folder=own.folder)
    units = [
        *cuda_build.units(variant, changed, ROOT),
        *cuda_build.units(kernels, [name for name in every if name not in changed], ROOT),
        *cuda_build.units(
            own, list(dict.fromkeys(name for names in PROGRAMS.values() for name in names)), ROOT
        ),
    ]
    units = [unit for unit in units if element_of(unit) in ("", *elements)]
    # What takes longest is not the last to begin.
    units.sort(key=lambda unit: Path(unit.source).stem not in SLOWEST)
    cuda_build.compile_all(units, ROOT, cuda_build.jobs(os.environ))
    with ThreadPoolExecutor() as pool:
        made = [pool.submit(link, into, own, units, name, e) for name in PROGRAMS for e in elements]
    for each in made:
        each.result()


def element_of(unit: cuda_build.Unit) -> str:
    return unit.object.name.split(".")[1].removesuffix("o")


def link(
    into: Path, own: cuda_build.Compiler, units: Sequence[cuda_build.Unit], program: str, element: str
) -> None:
    others = {name for names in PROGRAMS.values() for name in names} - {*PROGRAMS[program]}
    objects = [u.object for u in units if element_of(u) in ("", element) and u.source not in others]
    target = into / f"{program}.{element}"
    done = subprocess.run([own.command[0], *objects, "-o", target], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stderr)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--emulate", action="store_true")
    parser.add_argument("--element", default=",".join(cuda_build.ELEMENTS))
    parser.add_argument("--variant", default="", metavar="SOURCE,...")
    parser.add_argument("-D", dest="macros", action="append", default=[], metavar="MACRO")
    args = parser.parse_args(argv)
    sources = [name for name in args.variant.split(",") if name]
    (ROOT / args.into).mkdir(parents=True, exist_ok=True)
    macros = [f"-D{macro}" for macro in args.macros]
    build(ROOT / args.into, args.emulate, args.element.split(","), sources, macros)


if __name__ == "__main__":
    main()
