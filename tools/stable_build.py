# SPDX-License-Identifier: Apache-2.0
"""Builds stable.so: the ops on torch's stable ABI, for a torch that no glue was compiled against.

It is csrc/ops, compiled with csrc/stable/torch.h in the place of torch's C++ headers. So one file serves every
torch from 2.11 on.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build/stable"
TARGET = "0x020b000000000000"  # 2.11, the oldest torch
FLAGS = [
    "-std=c++20",
    "-O3",
    "-g0",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",  # as setup.py
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
]
# Above the kernels in the dispatcher there is Python (softkern/_native/stable/), also in ATen's place.
WITHOUT = {
    "csrc/ops/ops.cpp",
    "csrc/ops/onnx.cpp",
    "csrc/ops/row_losses/aten.cpp",
    "csrc/ops/linear_cross_entropy/aten.cpp",
}
_OF_TORCH = re.compile(r"#include <((?:ATen|c10)/[^>]+|torch/library\.h)>")


def sources(cuda: bool) -> list[str]:
    """The files of the unit."""
    ops = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc/ops").rglob("*.cpp"))
    ops = [path for path in ops if path not in WITHOUT and (cuda or not path.startswith("csrc/ops/cuda/"))]
    return ["csrc/stable/library.cpp", *ops]


def build(out: Path, kernels: Path, cuda: bool = False, link: list[str] | None = None) -> Path:
    """Compile and link `out`/stable.so against libsoftkern.so in `kernels`, or against the objects `link`."""
    from torch.utils.cpp_extension import TORCH_LIB_PATH, include_paths

    unit = FOLDER / "unit.cpp"
    headers = _forwarding_headers()
    unit.write_text("".join(f'#include "../../{path}"\n' for path in sources(cuda)))
    compiler = os.environ.get("CXX", "c++")
    target = [f"-DTORCH_TARGET_VERSION={TARGET}", *(["-DSOFTKERN_WITH_CUDA"] if cuda else [])]
    paths = [f"-I{headers}", *(f"-isystem{path}" for path in include_paths())]
    object = FOLDER / "unit.o"
    subprocess.run([compiler, *FLAGS, *target, *paths, "-c", str(unit), "-o", str(object)], check=True)
    out.mkdir(parents=True, exist_ok=True)
    library = out / "stable.so"
    with_kernels = [f"-L{kernels}", "-lsoftkern", "-Wl,-rpath,$ORIGIN"] if link is None else link
    # libtorch.so knows the library of the CUDA functions, where torch has them. Nothing is exported.
    with_torch = ["-Wl,--no-as-needed", f"-L{TORCH_LIB_PATH}", "-ltorch_cpu", "-ltorch"]
    scope = FOLDER / "scope.map"
    scope.write_text("{ local: *; };\n")
    options = ["-shared", "-s", f"-Wl,--version-script={scope}"]
    subprocess.run(
        [compiler, *options, str(object), *with_kernels, *with_torch, "-o", str(library)], check=True
    )
    return library


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
