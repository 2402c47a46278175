# SPDX-License-Identifier: Apache-2.0
"""Builds the libraries of the wheel, without Python's symbols: the kernels once, and what needs torch for the
torch of the interpreter that runs this.

    python tools/library_build.py kernels build/library    # libsoftkern.so
    python tools/library_build.py glue build/library       # torch2.13.so, for all 2.13 releases
    python tools/library_build.py stable build/library     # stable.so, for every torch

Variables are those of setup.py (docs/building.md).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import stable_build
from cuda_build import CPU_KERNELS, CUDA_ONLY, KERNELS, Compiler, Unit, choose, compile_all, digest, host, jobs, units
from glue_build import FLAGS, of_binding, together

ROOT = Path(__file__).resolve().parent.parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "softkern/_version.py").read_text())[1]  # type: ignore[index]
KERNEL_LIBRARY = "softkern"
# Functions of the kernels and tables, and nothing that the compiler made of templates of the standard library.
EXPORTS = """{
  global: extern "C++" { softkern::cpu::*; *softkern::cuda::*; };
  local: *;
};
"""
# Above the kernels in the library of the kernels: which instruction set runs, and huge pages.
BESIDE_KERNELS = ("csrc/cpu/dispatch.cpp", "csrc/cpu/memory.cpp", "csrc/cuda/device.cpp")


def sources(*folders: str, suffix: str = ".cpp") -> list[str]:
    files = (path for folder in folders for path in (ROOT / folder).rglob(f"*{suffix}"))
    return sorted(str(path.relative_to(ROOT)) for path in files)


def cuda_compiler() -> Compiler | None:
    """As setup.py chooses it."""
    import torch

    gpu = torch.version.cuda is not None and torch.cuda.is_available()
    return choose(ROOT, os.environ, torch.version.hip is not None, gpu, kernels=True)


def kernels(out: Path) -> Path:
    cuda, cpu = cuda_compiler(), host(os.environ, FLAGS)
    made = units(cpu, sources(CPU_KERNELS), ROOT)
    # Hidden functions can't be exported.
    seen = replace(cpu, command=[part for part in cpu.command if part != "-fvisibility=hidden"])
    beside = [name for name in BESIDE_KERNELS if cuda is not None or not name.startswith(CUDA_ONLY)]
    if cuda is not None:
        made += units(cuda, sources(KERNELS, suffix=".cu"), ROOT)
        seen.command += _flags(cuda)
    made += [_unit(seen, name, "build/library/kernels", [], [*cpu.headers, KERNELS]) for name in beside]
    objects = compile_all(made, ROOT, jobs(os.environ))
    script = ROOT / "build/library/kernels/exports"
    script.write_text(EXPORTS)
    archives = [*cuda.archives, *cuda.link_args] if cuda is not None else []
    return _link(out, f"lib{KERNEL_LIBRARY}.so", [*objects, *archives], f"-Wl,--version-script={script}")


def glue(out: Path) -> Path:
    import torch
    from torch.utils.cpp_extension import include_paths, library_paths

    minor = ".".join(re.findall(r"\d+", torch.__version__)[:2])
    cuda, cxx = cuda_compiler(), host(os.environ, FLAGS)
    folder = f"build/library-torch{minor}"
    names = [name for name in of_binding(sources("csrc"), "library") if not name.startswith("csrc/cpu/")]
    if cuda is None:
        names = [name for name in names if not name.startswith(CUDA_ONLY)]
    names = [name for name in together(names, ROOT, folder) if name not in BESIDE_KERNELS]
    command = [part for part in cxx.command if not part.startswith("-std=")]
    command += ["-std=c++20", *(f"-isystem{path}" for path in include_paths())]
    command += [f'-DSOFTKERN_VERSION="{VERSION}"', f'-DSOFTKERN_TORCH_VERSION="{torch.__version__}"']
    command += [*_flags(cuda), f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    compiler = replace(cxx, command=command)
    made = [_unit(compiler, name, folder, [torch.__version__], ["csrc"]) for name in names]
    objects = compile_all(made, ROOT, jobs(os.environ))
    libraries = [*(f"-L{path}" for path in library_paths()), "-lc10", "-ltorch_cpu"]
    return _link(out, f"torch{minor}.so", objects, f"-L{out}", f"-l{KERNEL_LIBRARY}", *libraries, *_BESIDE)


def stable(out: Path) -> Path:
    import torch

    cuda = cuda_compiler()
    macros = [f'-DSOFTKERN_VERSION="{VERSION}"', f'-DSOFTKERN_TORCH_VERSION="{torch.__version__}"']
    return stable_build.build(out, out, [*macros, *_flags(cuda)], cuda is not None)


# Found where this library is; torch's are loaded before it.
_BESIDE = ("-Wl,-rpath,$ORIGIN", "-Wl,-z,defs")


def _flags(cuda: Compiler | None) -> list[str]:
    if cuda is None:
        return []
    macros = [f"-D{name}" + (f"={value}" if value is not None else "") for name, value in cuda.macros]
    return [*macros, *(f"-isystem{path}" for path in cuda.include_dirs)]


def _unit(compiler: Compiler, source: str, folder: str, of: list[str], headers: list[str]) -> Unit:
    """An object that is compiled again if a source or a header of these folders has changed."""
    files = [p for place in headers for p in (ROOT / place).rglob("*") if p.is_file()]
    content = {str(path.relative_to(ROOT)): digest(path.read_bytes()) for path in sorted({*files, ROOT / source})}
    command = [*compiler.command, "-c", source]
    key = digest(json.dumps([compiler.identity, command, content, of]).encode())
    return Unit(source, command, ROOT / folder / f"{Path(source).stem}.o", key)


def _link(out: Path, name: str, inputs: list[str], *flags: str) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    cxx = shlex.split(os.environ.get("CXX") or "c++")
    command = [*cxx, "-shared", "-g0", "-s", f"-Wl,-soname,{name}", *inputs, *flags, "-o", str(out / name)]
    if subprocess.run(command, cwd=ROOT).returncode != 0:
        raise SystemExit(f"{shlex.join(command)}\n{name} does not link")
    print(f"softkern: {out / name}, {(out / name).stat().st_size >> 10} KiB", flush=True)
    return out / name


BUILT = {"kernels": kernels, "glue": glue, "stable": stable}


def main() -> None:
    if len(sys.argv) != 3 or sys.argv[1] not in BUILT:
        raise SystemExit(f"expected one of {', '.join(BUILT)} and a folder, got {sys.argv[1:]}")
    BUILT[sys.argv[1]](Path(sys.argv[2]).resolve())


if __name__ == "__main__":
    main()
