# SPDX-License-Identifier: Apache-2.0
"""What setup.py does otherwise: the extension softkern._pybind for the torch of the environment."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

try:
    import torch
except ModuleNotFoundError:
    # Build isolation hides the environment's torch, the only one this extension may be compiled against: one
    # named in build-system.requires would be the newest release, and its binary would not load here.
    sys.path.append(sysconfig.get_paths()["purelib"])
    try:
        import torch
    except ModuleNotFoundError:
        raise SystemExit(
            "softkern compiles against the torch of your environment, and there is none.\n"
            "Install torch (2.11 or newer) first, then: pip install --no-build-isolation ."
        ) from None

from build_progress import compiled_lines
from cuda_build import BEGUN, add_kernels
from glue_build import FLAGS, of_binding, together
from torch.utils.cpp_extension import BuildExtension, CppExtension

VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "softkern/_version.py").read_text())[1]

TORCH_RELEASE = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
if TORCH_RELEASE < (2, 11):
    raise SystemExit(f"softkern needs torch 2.11 or newer; this environment has {torch.__version__}.")


def sources(*suffixes: str) -> list[str]:
    files = (path for path in (ROOT / "csrc").rglob("*") if path.suffix in suffixes)
    return sorted(str(path.relative_to(ROOT)) for path in files)


class Build(BuildExtension):
    def finalize_options(self) -> None:
        super().finalize_options()
        if self.editable_mode:
            # pip would have it in a temporary folder, and everything compiled anew each time.
            build = self.distribution.get_command_class("build")(self.distribution)
            build.ensure_finalized()
            self.build_temp = build.build_temp

    def build_extensions(self) -> None:
        rocm = torch.version.hip is not None
        gpu = torch.version.cuda is not None and torch.cuda.is_available()
        for ext in self.extensions:
            add_kernels(ext, ROOT, os.environ, rocm=rocm, gpu=gpu, flags=FLAGS)
            if os.environ.get("SOFTKERN_CUDA") == "emulate":  # for tests: -O3 takes longer than they do
                ext.extra_compile_args = {"cxx": [*FLAGS, "-O0"]}
            ext.depends += ext.sources
            ext.sources = together(ext.sources, ROOT)
        with compiled_lines(ROOT, BEGUN):
            super().build_extensions()


def arguments() -> dict[str, Any]:
    """Arguments of setuptools.setup."""
    extension = CppExtension(
        "softkern._pybind",
        sources=of_binding(sources(".cpp"), "pybind"),
        depends=sources(".h", ".cuh", ".cu"),
        extra_compile_args={"cxx": FLAGS},
        extra_link_args=["-g0"],
        define_macros=[
            ("SOFTKERN_VERSION", f'"{VERSION}"'),
            ("SOFTKERN_TORCH_VERSION", f'"{torch.__version__}"'),
        ],
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": Build}}
