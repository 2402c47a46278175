# SPDX-License-Identifier: Apache-2.0
"""Builds softkern._pybind. Metadata is in pyproject.toml."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent

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

from torch.utils.cpp_extension import BuildExtension, CppExtension

sys.path.insert(0, str(ROOT / "tools"))  # a build backend is not started as a script of this folder
from build_progress import compiled_lines
from cuda_build import BEGUN, add_kernels
from glue_build import FLAGS, of_binding, together

VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "softkern/_version.py").read_text()).group(1)

TORCH_RELEASE = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
if TORCH_RELEASE < (2, 11):
    raise SystemExit(f"softkern needs torch 2.11 or newer; this environment has {torch.__version__}.")

# A wheel that is handed on says in its version and its requirements which torch it was compiled against:
# torch's C++ interface holds within a minor release only.
PIN_TORCH = os.environ.get("SOFTKERN_PIN_TORCH") == "1"
MINOR = "{}.{}".format(*TORCH_RELEASE)

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


setup(
    install_requires=[f"torch=={MINOR}.*" if PIN_TORCH else "torch>=2.11", "numpy"],
    options={"egg_info": {"tag_build": f"+torch{MINOR}"}} if PIN_TORCH else {},
    ext_modules=[
        CppExtension(
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
    ],
    cmdclass={"build_ext": Build},
)
