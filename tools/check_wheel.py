# SPDX-License-Identifier: Apache-2.0
"""Make the wheels out of an sdist, check their files and libraries, and use them in other environments.

    python tools/check_wheel.py                     # everything is compiled once: minutes
    python tools/check_wheel.py --out dist          # leave the files in dist
    python tools/check_wheel.py --out dist --built  # check the files that are in dist
    python tools/check_wheel.py --objects build     # compile only kernels that differ from those objects
    python tools/check_wheel.py --torch own         # with this torch alone; see tools/torches.py

It needs the packages of the extra `wheel`, and the interpreter needs a torch.
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

import check_libraries
import torches
from cuda_build import find_toolkit

ROOT = Path(__file__).resolve().parent.parent
COMPILED_FROM = ("*.cpp", "*.c", "*.h", "*.cu", "*.cuh")
BUILD_TOOLS = (
    "tools/library_build.py",
    "tools/stable_build.py",
    "tools/source_setup.py",
    "tools/glue_build.py",
    "tools/torches.py",
    "tools/build_progress.py",
    "tools/cuda_build.py",
    "tools/make_wheels.py",
    "tools/wheel_setup.py",
)
COMPILED = ("*.so", "*.o", "*.a", "*.py[co]")


def tree(folder: str, *patterns: str) -> set[str]:
    """The files of the source tree, relative to its root."""
    found = {str(p.relative_to(ROOT)) for pattern in patterns for p in (ROOT / folder).rglob(pattern)}
    assert found, f"nothing in {folder}: every archive would be complete"
    return found


def modules() -> set[str]:
    return tree("softkern", "*.py", "*.pyi", "*.txt", "py.typed")


def sdist_problems(names: list[str]) -> list[str]:
    """Missing and unwanted files of an sdist that has these files (paths without its root folder)."""
    wanted = modules() | tree("csrc", *COMPILED_FROM)
    wanted |= {"LICENSE", "README.md", "pyproject.toml", "setup.py", "PKG-INFO", *BUILD_TOOLS}
    problems = [f"sdist: {name} is missing" for name in sorted(wanted - set(names))]
    return problems + [f"sdist: {name} was compiled here" for name in sorted(_like(names, *COMPILED))]


def wheel_problems(names: list[str], libraries: bool) -> list[str]:
    """Missing and unwanted files of a wheel, with or without libraries."""
    problems = [f"wheel: {name} is missing" for name in sorted(modules() - set(names))]
    info = "softkern-*.dist-info/"
    once = [f"{info}METADATA", f"{info}licenses/LICENSE"]
    once += ["softkern/lib/libsoftkern.so", "softkern/lib/stable.so", "softkern/_behind.abi3.so"] * libraries
    for what in once:
        if len(found := _like(names, what)) != 1:
            problems.append(f"wheel: expected one {what}, found {sorted(found)}")
    allowed = modules() | _like(names, f"{info}*", *once, *["softkern/lib/torch*.so"] * libraries)
    return problems + [f"wheel: {name} should not be in it" for name in sorted(set(names) - allowed)]


def _like(names: list[str], *patterns: str) -> set[str]:
    return {name for pattern in patterns for name in fnmatch.filter(names, pattern)}


def contents(archive: Path) -> list[str]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return [name for name in wheel.namelist() if not name.endswith("/")]
    with tarfile.open(archive) as tar:
        return [member.name.partition("/")[2] for member in tar if member.isfile()]


def run(*command: str | Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> None:
    print("$", *(f"{name}={value}" for name, value in (env or {}).items()), *command, flush=True)
    # Nothing of this environment may replace a file that the wheel lacks.
    given = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    given |= forced(given) | dict(env or {})
    if (code := subprocess.run(command, cwd=cwd, env=given).returncode) != 0:
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


def build(out: Path, scratch: Path, objects: Path | None, minors: list[str], folder: Path) -> None:
    """Make the wheels from the unpacked sdist: a file that the sdist lacks makes this fail."""
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", out, ROOT)
    with tarfile.open(only(out, "*.tar.gz")) as tar:
        tar.extractall(scratch / "source", filter="data")
    source = only(scratch / "source", "*")
    for name in ("cpu", "cuda"):
        # The build uses an object again if the hash of all its inputs equals that of the sdist's files.
        if objects and (objects / name).is_dir():
            shutil.copytree(objects / name, source / "build" / name)
    tool = (sys.executable, source / "tools" / "make_wheels.py", "--out", out)
    run(*tool, "--torch", *minors, "--torches", folder, cwd=source)


def use(wheel: Path, python: Path, scratch: Path, bindings: Mapping[str, str]) -> None:
    """Install a wheel for an interpreter that has torch, and call softkern from an empty folder.

    bindings: values of SOFTKERN_GLUE, and how softkern then has to reach its kernels ("minor": by the library
    for this torch).
    """
    place, empty = Path(tempfile.mkdtemp(dir=scratch)), Path(tempfile.mkdtemp(dir=scratch))
    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target", place)
    run(python, *pip, wheel.resolve())
    check = (
        "import softkern, sys, torch; binding, reason = softkern._C.binding(); print(binding, reason); "
        f"assert softkern.__file__.startswith({str(place)!r}), softkern.__file__; "
        "minor = '.'.join(torch.__version__.split('.')[:2]); "
        "assert binding == (minor if sys.argv[1] == 'minor' else sys.argv[1])"
    )
    for named, expected in bindings.items():
        env = {"PYTHONPATH": str(place), "SOFTKERN_GLUE": named}
        run(python, "-c", check, expected, cwd=empty, env=env)
        run(python, "-m", "softkern.info", cwd=empty, env=env)
        if expected != "none":
            run(python, "-m", "softkern.verify", "--quick", cwd=empty, env=env)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder of the archives; a temporary one if not given")
    parser.add_argument("--built", action="store_true", help="they are in --out already")
    parser.add_argument(
        "--objects", type=Path, metavar="DIR", help="build/ of another build, for its kernels"
    )
    parser.add_argument(
        "--torch",
        nargs="+",
        default=["own", "2.11", "2.14", "2.14:python3.12"],
        metavar="MINOR",
        help="environments to use the wheel in; default: %(default)s",
    )
    parser.add_argument("--torches", type=Path, default=torches.FOLDER, help="folder of these environments")
    args = parser.parse_args()
    if args.built and not args.out:
        parser.error("--built needs --out")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        out = (args.out or scratch / "dist").resolve()
        if not args.built:
            minors = list(dict.fromkeys(name.partition(":")[0] for name in args.torch))
            build(out, scratch, args.objects, minors, args.torches)
        sdist, wheel, without = only(out, "*.tar.gz"), only(out, "*linux*.whl"), only(out, "*-any.whl")
        found = sdist_problems(contents(sdist)) + wheel_problems(contents(wheel), libraries=True)
        found += wheel_problems(contents(without), libraries=False)
        shutil.unpack_archive(wheel, scratch / "unpacked", "zip")
        if found := found + check_libraries.problems(scratch / "unpacked"):
            raise SystemExit("\n".join(found))
        run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel, without)
        run(sys.executable, "-m", "auditwheel", "show", wheel)
        for named in args.torch:
            python = torches.interpreter(named, args.torches)
            if isinstance(python, str):
                print(f"softkern: not used with torch {named}: {python}", flush=True)
                continue
            use(wheel, python, scratch, {"": "minor", "stable": "stable"})
            use(without, python, scratch, {"": "none"})
    print(f"{sdist.name}, {wheel.name} and {without.name}: complete, and they work")


if __name__ == "__main__":
    main()
