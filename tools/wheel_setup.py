# SPDX-License-Identifier: Apache-2.0
"""What setup.py does with SOFTKERN_LIBRARIES: a wheel for every Python.

``SOFTKERN_LIBRARIES=FOLDER`` packs the libraries of tools/library_build.py; ``SOFTKERN_LIBRARIES=none`` makes
a wheel without anything compiled, for every system. Neither needs torch.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from setuptools import Distribution
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

NOTHING = "none"
PLACES = {"libsoftkern.so": "lib", "stable.so": "lib", "torch*.so": "lib", "_behind.abi3.so": ""}


def arguments(libraries: str) -> dict[str, Any]:
    """Arguments of setuptools.setup."""
    if libraries == NOTHING:
        return {}
    folder = Path(libraries).resolve()
    if not (folder / "libsoftkern.so").is_file():
        raise SystemExit(
            f"SOFTKERN_LIBRARIES={libraries}: expected {NOTHING!r} or a folder made by "
            "tools/library_build.py, and there is no libsoftkern.so in it."
        )
    files = {path: place for pattern, place in PLACES.items() for path in sorted(folder.glob(pattern))}

    class BuildPy(build_py):
        def run(self) -> None:
            super().run()
            for path, target in self._targets():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target)

        def get_outputs(self, include_bytecode: bool = True) -> list[str]:
            return [*super().get_outputs(include_bytecode), *(str(target) for _, target in self._targets())]

        def _targets(self) -> list[tuple[Path, Path]]:
            package = Path(self.build_lib) / "softkern"
            return [(path, package / place / path.name) for path, place in files.items()]

    class Wheel(bdist_wheel):
        def get_tag(self) -> tuple[str, str, str]:
            return "py3", "none", super().get_tag()[2]

    class Compiled(Distribution):
        def has_ext_modules(self) -> bool:
            return True

    return {"cmdclass": {"build_py": BuildPy, "bdist_wheel": Wheel}, "distclass": Compiled}
