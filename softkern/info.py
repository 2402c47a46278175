# SPDX-License-Identifier: Apache-2.0
"""`python -m softkern.info`: what a bug report about this machine and this build needs."""

from __future__ import annotations

import os
import platform
import re
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

from softkern import _C, __version__, backends

UNKNOWN = "unknown"
# The flags that softkern's kernels are compiled for, and those by which torch chooses its own.
CPU_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16")
ARM_FEATURES = ("asimd", "bf16", "sve", "svebf16")  # "asimd" is NEON
# Variables that change which kernels run, on how many threads, and where memory comes from.
VARIABLES = re.compile(
    r"(SOFTKERN|OMP|KMP|GOMP|MKL|MALLOC|TRITON|CUDA)_\w+|THP_MEM_ALLOC_ENABLE|ATEN_CPU_CAPABILITY|GLIBC_TUNABLES|LD_PRELOAD"
)
# Two OpenMP runtimes in one process compete for the cores; another allocator causes other page faults.
LIBRARIES = re.compile(r"/(lib(?:gomp|iomp|omp|jemalloc|tcmalloc|mimalloc)[^/\s]*)$", re.MULTILINE)
PAGES = "/sys/kernel/mm/transparent_hugepage"


def environment() -> dict[str, str]:
    """Names and values in the order of printing; "unknown" if the system does not tell."""
    rows = {"softkern": __version__, "compiled with": _compiled_with(), "called by": _binding()}
    rows.update(_torch_rows())
    rows.update(_cuda_rows())
    rows.update(_system_rows())
    every = backends()
    for device in dict.fromkeys(["cpu", *(b.device for b in every if b.active)]):
        active = ", ".join(b.name for b in every if b.active and b.device == device) or "none"
        isa_forced = device == "cpu" and os.environ.get("SOFTKERN_CPU_ISA")
        rows[f"active on {device}"] = active + (" (forced)" if _C.required() or isa_forced else "")
    for backend in every:
        state = "usable" if backend.usable else f"not usable: {backend.reason}"
        rows[f"backend {backend.name}"] = state if backend.compiled else f"not compiled: {backend.reason}"
    return rows


def _compiled_with() -> str:
    build = _C.build()
    return f"{str(build['compiler']).strip()}, C++ {build['cxx_standard']}, torch {build['torch']}"


def _binding() -> str:
    """How Python reaches the kernels, and why not in a better way."""
    name, reason = _C.binding()
    way = {"pybind": "an extension", "stable": "a library for every torch", "none": "nothing compiled"}
    return way.get(name, f"a library for torch {name}") + (f": {reason}" if reason else "")


def _torch_rows() -> Iterator[tuple[str, str]]:
    built, parallel = torch.__config__.show(), torch.__config__.parallel_info()
    compiler = _match(r"- ((?:GCC|clang|MSVC|C\+\+ Compiler)[^\n]*)", built)
    yield "torch", str(torch.__version__)
    yield "torch built with", f"{compiler}, commit {(torch.version.git_version or UNKNOWN)[:12]}"
    yield "torch's kernels", torch.backends.cpu.get_cpu_capability()
    counts = re.findall(r"(\w+)\(\) : (\d+)", parallel)
    backend = _match(r"ATen parallel backend: ([^\n]+)", parallel)
    yield "parallel", ", ".join([backend, *(f"{name} {count}" for name, count in counts)])
    yield "OpenMP", _match(r"^(OpenMP [^\n]+)", parallel)
    libraries = re.findall(r"^(Intel\(R\) (?:oneAPI Math|MKL-DNN|Math)[^\n]+)", parallel, re.MULTILINE)
    yield "math libraries", "; ".join(libraries) or "neither MKL nor oneDNN"
    yield "numpy", _version("numpy")
    yield "triton", _version("triton")


def _version(package: str) -> str:
    if find_spec(package) is None:
        return "not installed"
    try:
        return str(import_module(package).__version__)
    except Exception as error:  # any error is a reason why it is not there
        return f"not importable: {type(error).__name__}: {error}"


def _cuda_rows() -> Iterator[tuple[str, str]]:
    yield "cuda", f"torch built for {torch.version.cuda}" if torch.version.cuda else "torch built without"
    build = _C.build()
    compiled, emulated = str(build["cuda_architectures"]), bool(build["cuda_emulated"])
    yield "cuda kernels", _cuda_kernels(compiled, emulated)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")  # torch warns if a driver is too old
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    yield "cuda driver", _match(r"Module\s+([\d.]+)", _read("/proc/driver/nvidia/version"), "none")
    if not count:
        yield "cuda devices", "; ".join(["none", *(str(warning.message).split("\n")[0] for warning in said)])
    for i in range(count):
        device = torch.cuda.get_device_properties(i)
        memory = f"{device.total_memory >> 20} MiB"
        why_not = _C.why_no_cuda(i) if compiled and not emulated else ""
        yield (
            f"cuda device {i}",
            f"{device.name}, capability {device.major}.{device.minor}, {memory}"
            + (f"; not for the CUDA kernels: {why_not}" if why_not else ""),
        )


def _cuda_kernels(architectures: str, emulated: bool) -> str:
    if emulated:
        return "emulated on the CPU, for tests"
    return f"compiled for {architectures}" if architectures else "not compiled"


def _system_rows() -> Iterator[tuple[str, str]]:
    cpuinfo, meminfo = _read("/proc/cpuinfo"), _read("/proc/meminfo")
    yield "python", sys.version.split()[0]
    yield "platform", platform.platform()
    yield "libc", _libc()
    yield "cpu", _cpu(cpuinfo)
    yield "cpu flags", _flags(cpuinfo)
    yield "cores", _cores()
    yield "threads", str(torch.get_num_threads())
    total, available = (_match(rf"^{name}:\s+(\d+) kB", meminfo) for name in ("MemTotal", "MemAvailable"))
    yield (
        "memory",
        ", ".join(
            f"{int(size) >> 10} MiB{what}"
            for size, what in ((total, ""), (available, " available"))
            if size.isdigit()
        )
        or UNKNOWN,
    )
    yield "huge pages", _read(f"{PAGES}/enabled") or UNKNOWN
    yield "huge pages, defrag", _read(f"{PAGES}/defrag") or UNKNOWN
    yield "large results", "ask for huge pages" if _C.huge_pages_wanted() else "SOFTKERN_HUGE_PAGES=0"
    asked = os.environ.get("THP_MEM_ALLOC_ENABLE") == "1"
    yield "torch's large tensors", "ask for huge pages" if asked else "no THP_MEM_ALLOC_ENABLE=1"
    maps = _read("/proc/self/maps")
    loaded = sorted(set(LIBRARIES.findall(maps)))
    yield "runtimes, allocators", ", ".join(loaded) or ("none loaded" if maps else UNKNOWN)
    named = (f"{name}={value}" for name, value in sorted(os.environ.items()) if VARIABLES.fullmatch(name))
    yield "variables", " ".join(named) or "none set"


def _libc() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or UNKNOWN
    except (AttributeError, ValueError, OSError):  # Windows, macOS, musl
        return " ".join(filter(None, platform.libc_ver())) or UNKNOWN


def _cpu(cpuinfo: str) -> str:
    """By name, or on ARM by the numbers that Linux has instead."""
    numbers = [_match(rf"^CPU {number}\s*:\s*(.+)$", cpuinfo, "") for number in ("implementer", "part")]
    otherwise = "implementer {}, part {}".format(*numbers) if all(numbers) else UNKNOWN
    return _match(r"^model name\s*:\s*(.+)$", cpuinfo, otherwise)


def _flags(cpuinfo: str) -> str:
    for named, known in (("flags", CPU_FLAGS), ("Features", ARM_FEATURES)):
        if line := _match(rf"^{named}\s*:\s*(.+)$", cpuinfo, ""):
            have = set(line.split())
            missing = " ".join(flag for flag in known if flag not in have)
            found = " ".join(flag for flag in known if flag in have)
            return found + (f"; without {missing}" if missing else "")
    return UNKNOWN


def _cores() -> str:
    """The cores of the system, those that this process may use, and a container's limit."""
    count = os.cpu_count() or UNKNOWN
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count
    quota = re.fullmatch(r"(\d+) (\d+)", _read("/sys/fs/cgroup/cpu.max"))
    limit = f", quota of {int(quota[1]) / int(quota[2]):g}" if quota else ""
    return f"{usable} usable of {count}{limit}"


def _match(pattern: str, text: str, otherwise: str = UNKNOWN) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1].strip() if found else otherwise


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def main() -> None:
    rows = environment()
    width = max(len(name) for name in rows)
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    main()
