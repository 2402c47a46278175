# SPDX-License-Identifier: Apache-2.0
"""Compiles the kernels of softkern._pybind for setup.py (CUDA's with nvcc); docs/building.md has the variables.

torch's CUDAExtension can't be used: with a torch without CUDA it never finds a toolkit. The kernels do not
depend on torch or Python, so their objects stay in build for every torch and Python.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from setuptools import Extension

BEGUN = time.monotonic()  # start of the build: setup.py imports this module first
DEFAULT_ROOT = Path("/usr/local/cuda")
KERNELS = "csrc/cuda"
CPU_KERNELS = "csrc/cpu/isa/"
# Host code that is compiled only together with the kernels.
CUDA_ONLY = (f"{KERNELS}/", "csrc/ops/cuda/")
ELEMENTS = {
    "float": "float",
    "double": "double",
    "bfloat16": "softkern::BFloat16",
    "half": "softkern::Half",
}
HEADERS = (".h", ".cuh")
ONE_TYPE = ("reduce.cu",)  # it sums in double for all dtypes of rows

DEFAULT_ARCHITECTURES = ("8.0", "9.0", "10.0", "12.0")
LEAST_MAJOR = 8  # the kernels need conversions of bfloat16, and a max that keeps NaN
ARCHITECTURE = re.compile(r"(\d+)\.(\d)([af]?)(\+PTX)?")

# Never --use_fast_math or -fmad=true: the kernels define which multiply-adds are fused.
# No NDEBUG: an assertion catches targets that are out of range.
NVCC_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fmad=false",
    "--expt-relaxed-constexpr",
    "-Xcompiler=-fPIC",  # visible: the wheel has the kernels in a library of their own
    "-Xfatbin=-compress-all",  # a quarter of the size
    "-Xptxas=-v",
]
# Variables from which setuptools and nvcc read flags.
HOST_VARIABLES = ("CFLAGS", "CPPFLAGS", "CXXFLAGS")
NVCC_VARIABLES = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN")
EMULATED_FLAGS = [
    "-std=c++17",
    "-O1",
    "-g1",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fPIC",
    "-fvisibility=hidden",
    "-DSOFTKERN_EMULATED",
    "-U_FORTIFY_SOURCE",  # with it, a jump to another stack is an error
]

WITHOUT = "SOFTKERN_CUDA=0 builds without CUDA kernels."
FORCED = "FORCE_CUDA=1 compiles them all the same."

Environment = Mapping[str, str]


@dataclass(frozen=True)
class Toolkit:
    nvcc: Path
    include: Path
    cudart: Path


@dataclass
class Compiler:
    """How to compile kernels, and what the rest of the extension needs together with their objects."""

    command: list[str]
    identity: str  # part of the key: the same command may run another compiler later
    folder: str
    headers: list[str]
    macros: list[tuple[str, str | None]]
    include_dirs: list[str] = field(default_factory=list)
    archives: list[str] = field(default_factory=list)
    link_args: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Unit:
    source: str
    command: list[str]
    object: Path
    key: str

    @property
    def key_file(self) -> Path:
        return self.object.with_suffix(".key")

    @property
    def log(self) -> Path:
        return self.object.with_suffix(".log")

    def is_current(self) -> bool:
        return self.object.is_file() and self.key_file.is_file() and self.key_file.read_text() == self.key


def add_kernels(
    ext: Extension, root: Path, env: Environment, *, rocm: bool, gpu: bool, flags: Sequence[str] = ()
) -> None:
    """Compile the kernels and add them to ext. Without CUDA kernels, remove the sources that need them.

    rocm: torch is built for ROCm; gpu: torch sees an NVIDIA GPU.
    """
    cpu = sorted(name for name in ext.sources if name.startswith(CPU_KERNELS))
    cuda = sorted(str(path.relative_to(root)) for path in (root / KERNELS).glob("*.cu"))
    compiler = choose(root, env, rocm, gpu, bool(cuda))
    others = [name for name in ext.sources if name not in cpu]
    ext.depends += cpu
    ext.sources = [name for name in others if compiler is not None or not name.startswith(CUDA_ONLY)]
    # The CPU kernels come first: each takes long, and with short ones at the end all cores stay busy.
    made = units(host(env, flags), cpu, root) if cpu else []
    if compiler is not None:
        made += units(compiler, cuda, root)
        ext.define_macros += compiler.macros
        ext.include_dirs += compiler.include_dirs
        ext.extra_link_args += compiler.link_args
    if made:
        ext.extra_objects += compile_all(made, root, jobs(env))
    ext.extra_objects += compiler.archives if compiler is not None else []


def choose(root: Path, env: Environment, rocm: bool, gpu: bool, kernels: bool) -> Compiler | None:
    """The compiler for the CUDA kernels; None for a build without them.

    An nvcc alone is not enough: many machines without a GPU have one, and compiling takes minutes.
    """
    wanted, forced = env.get("SOFTKERN_CUDA", ""), env.get("FORCE_CUDA") == "1"
    if wanted not in ("", "0", "emulate"):
        raise SystemExit(f"SOFTKERN_CUDA={wanted}: expected 0 (no CUDA kernels), emulate (tests) or nothing.")
    if env.get("SOFTKERN_SANITIZE") and wanted != "emulate":
        raise SystemExit("SOFTKERN_SANITIZE needs SOFTKERN_CUDA=emulate: nvcc's code cannot be sanitized.")
    if wanted == "0":
        return None
    if not kernels:
        if wanted or forced:
            raise SystemExit(f"{'SOFTKERN_CUDA=emulate' if wanted else 'FORCE_CUDA=1'}: no .cu in {KERNELS}.")
        return None
    if wanted == "emulate":
        return emulator(root, env)
    if rocm:
        if forced:
            raise SystemExit("FORCE_CUDA=1, but the torch of this environment is built for ROCm.")
        return None
    if not (gpu or forced):
        print(f"softkern: no CUDA kernels, since torch sees no GPU. {FORCED}", flush=True)
        return None
    toolkit, looked = find_toolkit(env)
    if toolkit is None:
        where = "\n".join(f"  {line}" for line in looked)
        if forced:
            raise SystemExit(f"FORCE_CUDA=1, but there is no CUDA toolkit:\n{where}\nCUDA_HOME names it.")
        print(f"softkern: no CUDA kernels\n{where}", flush=True)
        return None
    return nvcc(toolkit, env)


def find_toolkit(env: Environment) -> tuple[Toolkit | None, list[str]]:
    """The first complete toolkit, and for each place before it, why it was not used."""
    looked = []
    for name, root in _places(env):
        if root is None:
            looked.append(f"{name}: not there")
            continue
        found = _toolkit(root.resolve())
        if isinstance(found, Toolkit):
            return found, looked
        looked.append(f"{name}: {root} has no {found}")
    return None, looked


def _places(env: Environment) -> Iterator[tuple[str, Path | None]]:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if env.get(name):
            yield name, Path(env[name])
    on_path = shutil.which("nvcc", path=env.get("PATH", os.defpath))
    yield "nvcc on PATH", Path(on_path).resolve().parent.parent if on_path else None
    if on_path:
        # A wrapper (a script or ccache) is outside the toolkit, but nvcc itself tells where the toolkit is.
        done = subprocess.run(
            [on_path, "--dryrun", "-E", "a.cu"], capture_output=True, text=True, errors="replace"
        )
        if top := re.search(r"^#\$ TOP=(.+)$", done.stderr, re.MULTILINE):
            yield "nvcc on PATH, which is a wrapper", Path(top[1].strip())
    yield "by default", DEFAULT_ROOT


def _toolkit(root: Path) -> Toolkit | str:
    """The toolkit, or the missing file. Layouts: NVIDIA's installer, conda (targets/), Debian (/usr)."""
    machine = platform.machine()
    target = f"targets/{'sbsa' if machine == 'aarch64' else machine}-linux"
    nvcc = root / "bin" / "nvcc"
    if not os.access(nvcc, os.X_OK) or nvcc.is_dir():
        return "bin/nvcc"
    include = _first(root, "cuda_runtime.h", "include", f"{target}/include")
    if include is None:
        return "include/cuda_runtime.h"
    libraries = ("lib64", "lib", f"{target}/lib", f"lib/{machine}-linux-gnu")
    library = _first(root, "libcudart_static.a", *libraries)
    if library is None:
        return "lib64/libcudart_static.a"
    return Toolkit(nvcc, include, library / "libcudart_static.a")


def _first(root: Path, name: str, *folders: str) -> Path | None:
    return next((root / folder for folder in folders if (root / folder / name).is_file()), None)


def architectures(named: str, known: Collection[str]) -> list[str]:
    """TORCH_CUDA_ARCH_LIST as a list, checked against those that this nvcc knows ("9.0")."""
    names = list(dict.fromkeys(re.split(r"[;\s]+", named.strip("; \t\n"))))
    if names == [""]:
        # The newest one is also compiled to PTX, for newer GPUs.
        default = [name for name in DEFAULT_ARCHITECTURES if _is_known(name, known)]
        names = [*default[:-1], f"{default[-1]}+PTX"] if default else list(DEFAULT_ARCHITECTURES)
    for name in names:
        if ARCHITECTURE.fullmatch(name) is None:
            raise SystemExit(
                f"TORCH_CUDA_ARCH_LIST={named}: {name!r} is not an architecture; "
                "expected numbers such as 8.0;9.0;12.0+PTX."
            )
    if too_old := [name for name in names if int(_parts(name)[0]) < LEAST_MAJOR]:
        raise SystemExit(
            f"TORCH_CUDA_ARCH_LIST={';'.join(names)}: the kernels need 8.0 or newer, "
            f"not {', '.join(too_old)}. {WITHOUT}"
        )
    if unknown := [name for name in names if not _is_known(name, known)]:
        raise SystemExit(
            f"TORCH_CUDA_ARCH_LIST={';'.join(names)}: this nvcc does not know {', '.join(unknown)}; "
            f"it knows {', '.join(sorted(known, key=float)) or 'none'}. {WITHOUT}"
        )
    return names


def _is_known(name: str, known: Collection[str]) -> bool:
    return ".".join(_parts(name)[:2]) in known


def _parts(name: str) -> tuple[str, ...]:
    match = ARCHITECTURE.fullmatch(name)
    assert match is not None
    return match.groups("")


def gencode(names: list[str]) -> list[str]:
    flags = []
    for major, minor, feature, ptx in map(_parts, names):
        number = major + minor + feature
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if ptx:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def nvcc(toolkit: Toolkit, env: Environment) -> Compiler:
    listed = re.findall(r"compute_(\d+)(\d)\b", _output(str(toolkit.nvcc), "--list-gpu-arch"))
    known = [".".join(parts) for parts in listed]
    names = architectures(env.get("TORCH_CUDA_ARCH_LIST", ""), known)
    print(f"softkern: CUDA kernels for {' '.join(names)}, {toolkit.nvcc}", flush=True)
    return Compiler(
        command=[str(toolkit.nvcc), *NVCC_FLAGS, *gencode(names)],
        identity=_output(str(toolkit.nvcc), "--version") + str([env.get(name) for name in NVCC_VARIABLES]),
        folder="build/cuda",
        headers=["csrc/common", KERNELS],
        macros=[
            ("SOFTKERN_WITH_CUDA", None),
            ("SOFTKERN_CUDA_ARCHITECTURES", f'"{";".join(names)}"'),
        ],
        include_dirs=[str(toolkit.include)],
        # With the static runtime, one binary fits every torch, with or without its own CUDA runtime.
        archives=[str(toolkit.cudart)],
        link_args=["-ldl", "-lrt", "-lpthread"],
    )


def host(env: Environment, flags: Sequence[str]) -> Compiler:
    """The compiler as setuptools would use it, without the flags of Python's own build."""
    cxx = shlex.split(env.get("CXX") or "c++")
    given = [flag for name in HOST_VARIABLES for flag in shlex.split(env.get(name, ""))]
    return Compiler(
        command=[*cxx, "-std=c++17", "-fPIC", *given, *flags],
        identity=_output(*cxx, "--version"),
        folder="build/cpu",
        headers=["csrc/common", "csrc/cpu"],
        macros=[],
    )


def emulator(root: Path, env: Environment) -> Compiler:
    cxx = shlex.split(env.get("CXX") or "g++")
    sanitizers = env.get("SOFTKERN_SANITIZE")
    sanitize = [f"-fsanitize={sanitizers}"] if sanitizers else []
    recover = ["-fno-sanitize-recover=undefined"] if sanitizers else []
    print("softkern: CUDA kernels emulated on the CPU, for tests alone", flush=True)
    return Compiler(
        command=[*cxx, *EMULATED_FLAGS, *sanitize, *recover, "-xc++"],
        identity=_output(*cxx, "--version"),
        folder="build/emulated",
        headers=["csrc/common", "csrc/cpu", KERNELS],
        macros=[
            ("SOFTKERN_WITH_CUDA", None),
            ("SOFTKERN_CUDA_ARCHITECTURES", '"emulated"'),
            ("SOFTKERN_EMULATED", None),
        ],
        link_args=sanitize,
    )


def units(compiler: Compiler, kernels: list[str], root: Path) -> list[Unit]:
    """One object per file and element type: they compile in parallel, and each stays small."""
    headers = [p for folder in compiler.headers for p in (root / folder).rglob("*") if p.suffix in HEADERS]
    shared = {str(path.relative_to(root)): digest(path.read_bytes()) for path in sorted(headers)}
    result = []
    for source in kernels:
        path = Path(source)
        for element in [""] if path.name in ONE_TYPE else ELEMENTS:
            define = [f"-DSOFTKERN_ELEMENT={ELEMENTS[element]}"] if element else []
            command = [*compiler.command, *define, "-c", source]
            content = digest((root / source).read_bytes())
            key = digest(json.dumps([compiler.identity, command, content, shared]).encode())
            target = root / compiler.folder / ".".join(filter(None, (path.stem, element, "o")))
            result.append(Unit(source, command, target, key))
    return result


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def jobs(env: Environment) -> int:
    named = env.get("MAX_JOBS", "")
    if named.isdigit() and int(named) > 0:
        return int(named)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compile_all(every: list[Unit], root: Path, jobs: int) -> list[str]:
    """The objects of all units; compiles those whose inputs have changed."""
    stale = [unit for unit in every if not unit.is_current()]
    print(f"softkern: {len(stale)} of {len(every)} kernel objects to compile, {jobs} at a time", flush=True)

    def compile_nth(n: int, unit: Unit) -> None:
        name, seconds = unit.object.relative_to(root), time.monotonic() - BEGUN
        print(f"softkern: {seconds:.0f} s, compiling {n} of {len(stale)}: {name}", flush=True)
        compile_one(unit, root)

    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(compile_nth, n, unit) for n, unit in enumerate(stale, 1)]
        try:
            for done in as_completed(running):
                done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [str(unit.object.relative_to(root)) for unit in every]


def compile_one(unit: Unit, root: Path) -> None:
    unit.object.parent.mkdir(parents=True, exist_ok=True)
    unit.key_file.unlink(missing_ok=True)  # without a key, a half-written object is not used
    command = [*unit.command, "-o", str(unit.object)]
    # Compiled in the root, so that assertions name their files in the same way in every folder.
    done = subprocess.run(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    unit.log.write_text(done.stdout)
    if done.returncode != 0:
        raise SystemExit(
            f"{shlex.join(command)}\n{done.stdout}\n{unit.source} does not compile "
            f"(exit code {done.returncode}). {WITHOUT if unit.source.endswith('.cu') else ''}"
        )
    for line in done.stdout.splitlines():
        if "warning" in line:
            print(line, flush=True)
    unit.key_file.write_text(unit.key)


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, errors="replace").stdout
    except (OSError, subprocess.CalledProcessError) as error:
        said = str(getattr(error, "stderr", None) or error).strip()
        raise SystemExit(f"{shlex.join(command)}: {said}\n{WITHOUT}") from None
