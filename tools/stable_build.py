# SPDX-License-Identifier: Apache-2.0
"""Builds stable.so: the ops on torch's stable ABI, for a torch that no glue was compiled against.

It is csrc/ops, compiled with csrc/stable/torch.h in the place of torch's C++ headers. So one file serves
every torch from 2.11 on.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

from cuda_build import CUDA_ONLY
from glue_build import FLAGS

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build/stable"
TARGET = "0x020b000000000000"  # 2.11, the oldest torch
# Above the kernels in the dispatcher there is Python (softkern/_binding/stable/), also in ATen's place.
WITHOUT = {
    "csrc/ops/ops.cpp",
    "csrc/ops/row_losses/aten.cpp",
    "csrc/ops/linear_cross_entropy/aten.cpp",
}
EXPORTS = "{ global: softkern_*; local: *; };\n"  # those of csrc/c_api.cpp and csrc/stable/library.cpp
_OF_TORCH = re.compile(r"#include <((?:ATen|c10)/[^>]+|torch/library\.h)>")


def sources(cuda: bool) -> list[str]:
    """The files of the only unit."""
    ops = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc/ops").rglob("*.cpp"))
    ops = [name for name in ops if name not in WITHOUT and (cuda or not name.startswith(CUDA_ONLY))]
    return ["csrc/stable/library.cpp", "csrc/c_api.cpp", *ops]


def build(out: Path, kernels: Path, macros: list[str], cuda: bool = False) -> Path:
    """Compiles `out`/stable.so with the headers of this interpreter's torch, and links it with libsoftkern.so
    in `kernels`. `macros`: further flags of the compiler; cuda: whether that library has CUDA kernels.
    """
    from torch.utils.cpp_extension import TORCH_LIB_PATH, include_paths

    headers = _forwarding_headers()
    unit, compiled, exports = FOLDER / "unit.cpp", FOLDER / "unit.o", FOLDER / "exports"
    unit.write_text("".join(f'#include "../../{name}"\n' for name in sources(cuda)))
    exports.write_text(EXPORTS)
    cxx = shlex.split(os.environ.get("CXX") or "c++")
    target = ["-std=c++20", "-fPIC", f"-DTORCH_TARGET_VERSION={TARGET}", *macros]
    paths = [f"-I{headers}", *(f"-isystem{path}" for path in include_paths())]
    _run([*cxx, *FLAGS, *target, *paths, "-c", str(unit), "-o", str(compiled)])
    out.mkdir(parents=True, exist_ok=True)
    library = out / "stable.so"
    # libtorch.so leads to the library of the CUDA functions, where torch has them.
    torch = [f"-L{TORCH_LIB_PATH}", "-Wl,--no-as-needed", "-ltorch_cpu", "-ltorch"]
    softkern = [f"-L{kernels}", "-lsoftkern", "-Wl,-rpath,$ORIGIN", "-Wl,-soname,stable.so"]
    options = ["-shared", "-s", f"-Wl,--version-script={exports}", "-Wl,-z,defs"]
    _run([*cxx, *options, str(compiled), *softkern, *torch, "-o", str(library)])
    return library


def _run(command: list[str]) -> None:
    if subprocess.run(command, cwd=ROOT).returncode != 0:
        raise SystemExit(f"{shlex.join(command)}\nstable.so is not built")


def _forwarding_headers() -> Path:
    """A folder in which every header of torch's C++ library that csrc/ops includes is csrc/stable/torch.h."""
    folder = FOLDER / "include"
    text = f'#include "{ROOT / "csrc/stable/torch.h"}"\n'
    for path in (ROOT / "csrc/ops").rglob("*.*"):
        for name in _OF_TORCH.findall(path.read_text()):
            header = folder / name
            header.parent.mkdir(parents=True, exist_ok=True)
            if not header.is_file() or header.read_text() != text:
                header.write_text(text)
    return folder
