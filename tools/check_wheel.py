# SPDX-License-Identifier: Apache-2.0
"""Build sdist and wheel, check their files, and use the wheel in a new environment.

    python tools/check_wheel.py                     # the extension is compiled once: minutes
    python tools/check_wheel.py --out dist          # leave both files in dist
    python tools/check_wheel.py --out dist --built  # check the files that are in dist
    python tools/check_wheel.py --objects build     # compile only kernels that differ from those objects

It needs the packages of the extra `wheel`, and the interpreter needs the torch to compile against.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from cuda_build import find_toolkit

ROOT = Path(__file__).resolve().parent.parent
COMPILED_FROM = ("*.cpp", "*.h", "*.cu", "*.cuh")
BUILD_TOOLS = ("tools/build_progress.py", "tools/cuda_build.py")
COMPILED = ("*.so", "*.o", "*.a", "*.py[co]")


def tree(folder: str, *patterns: str) -> set[str]:
    """The files of the source tree, relative to its root."""
    found = {str(p.relative_to(ROOT)) for pattern in patterns for p in (ROOT / folder).rglob(pattern)}
    assert found, f"nothing in {folder}: every archive would be complete"
    return found


def modules() -> set[str]:
    return tree("softkern", "*.py", "*.pyi", "py.typed")


def sdist_problems(names: list[str]) -> list[str]:
    """Missing and unwanted files of an sdist that has these files (paths without its root folder)."""
    wanted = modules() | tree("csrc", *COMPILED_FROM)
    wanted |= {"LICENSE", "README.md", "pyproject.toml", "setup.py", "PKG-INFO", *BUILD_TOOLS}
    problems = [f"sdist: {name} is missing" for name in sorted(wanted - set(names))]
    return problems + [f"sdist: {name} was compiled here" for name in sorted(_like(names, *COMPILED))]


def wheel_problems(names: list[str]) -> list[str]:
    """Missing and unwanted files of a wheel."""
    problems = [f"wheel: {name} is missing" for name in sorted(modules() - set(names))]
    info = "softkern-*.dist-info/"
    for what in ("softkern/_C.*.so", f"{info}METADATA", f"{info}licenses/LICENSE"):
        if len(found := _like(names, what)) != 1:
            problems.append(f"wheel: expected one {what}, found {sorted(found)}")
    allowed = modules() | _like(names, "softkern/_C.*.so", f"{info}*")
    return problems + [f"wheel: {name} should not be in it" for name in sorted(set(names) - allowed)]


def _like(names: list[str], *patterns: str) -> set[str]:
    return {name for pattern in patterns for name in fnmatch.filter(names, pattern)}


def contents(archive: Path) -> list[str]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return [name for name in wheel.namelist() if not name.endswith("/")]
    with tarfile.open(archive) as tar:
        return [member.name.partition("/")[2] for member in tar if member.isfile()]


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    print("$", *command, flush=True)
    # Nothing of this environment may replace a file that the wheel lacks.
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    env |= forced(env)
    if (code := subprocess.run(command, cwd=cwd, env=env).returncode) != 0:
        raise SystemExit(f"exit code {code}: {' '.join(map(str, command))}")


def forced(env: Mapping[str, str]) -> dict[str, str]:
    """A wheel is for other machines: it gets CUDA kernels if there is an nvcc, even without a GPU."""
    asked = env.keys() & {"FORCE_CUDA", "SOFTKERN_CUDA"}
    possible = "rocm" not in version("torch") and find_toolkit(env)[0] is not None
    return {"FORCE_CUDA": "1"} if possible and not asked else {}


def only(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"expected one {pattern} in {folder}, found {[p.name for p in found]}")
    return found[0]


def build(out: Path, scratch: Path, objects: Path | None) -> None:
    """Make the wheel from the unpacked sdist: a file that the sdist lacks makes this fail."""
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", out, ROOT)
    with tarfile.open(only(out, "*.tar.gz")) as tar:
        tar.extractall(scratch / "source", filter="data")
    source = only(scratch / "source", "*")
    for folder in ("cpu", "cuda"):
        # The build uses an object again if the hash of all its inputs equals that of the sdist's files.
        if objects and (objects / folder).is_dir():
            shutil.copytree(objects / folder, source / "build" / folder)
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", out, source)


def use(wheel: Path, scratch: Path) -> None:
    """Install the wheel as a user does, and call softkern from an empty folder."""
    venv, empty = scratch / "venv", scratch / "empty"
    empty.mkdir()
    run(sys.executable, "-m", "venv", venv)
    python = venv / "bin" / "python"
    torch = version("torch").partition("+")[0]  # this version also matches a local build
    run(python, "-m", "pip", "install", "--quiet", f"torch=={torch}", wheel.resolve())
    from_here = "import softkern, sys; assert softkern.__file__.startswith(sys.prefix), softkern.__file__"
    run(python, "-c", from_here, cwd=empty)
    run(python, "-m", "softkern.info", cwd=empty)
    run(python, "-m", "softkern.verify", "--quick", cwd=empty)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder of the archives; a temporary one if not given")
    parser.add_argument("--built", action="store_true", help="they are in --out already")
    parser.add_argument(
        "--objects", type=Path, metavar="DIR", help="build/ of another build, for its kernels"
    )
    args = parser.parse_args()
    if args.built and not args.out:
        parser.error("--built needs --out")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        out = (args.out or scratch / "dist").resolve()
        if not args.built:
            build(out, scratch, args.objects)
        sdist, wheel = only(out, "*.tar.gz"), only(out, "*.whl")
        if problems := sdist_problems(contents(sdist)) + wheel_problems(contents(wheel)):
            raise SystemExit("\n".join(problems))
        run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
        use(wheel, scratch)
    print(f"{sdist.name} and {wheel.name}: complete, and they work")


if __name__ == "__main__":
    main()
