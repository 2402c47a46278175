# SPDX-License-Identifier: Apache-2.0
"""`python -m softkern.info` and `softkern.info.environment()`: complete, true, and robust."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
import warnings

import pytest
import torch

import softkern
from softkern import _C, info

ROWS = (
    "softkern",
    "compiled with",
    "called by",
    "torch",
    "torch built with",
    "torch's kernels",
    "parallel",
    "OpenMP",
    "math libraries",
    "numpy",
    "triton",
    "cuda",
    "cuda kernels",
    "cuda driver",
    "python",
    "platform",
    "libc",
    "cpu",
    "cpu flags",
    "cores",
    "threads",
    "memory",
    "huge pages",
    "huge pages, defrag",
    "large results",
    "torch's large tensors",
    "runtimes, allocators",
    "variables",
    "active on cpu",
)


def test_it_prints_what_a_bug_report_needs():
    command = [sys.executable, "-m", "softkern.info"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    (active,) = (b.name for b in softkern.backends() if b.active and b.device == "cpu")
    for word in (active, torch.__version__, softkern.__version__):
        assert word in done.stdout
    names = [line[: line.find("  ")] for line in done.stdout.splitlines()]
    assert [name for name in names if name in ROWS] == list(ROWS)
    assert {f"backend {b.name}" for b in softkern.backends()} <= set(names)


def test_names_and_values_are_text_that_json_keeps():
    rows = info.environment()
    assert set(ROWS) <= set(rows)
    assert all(type(name) is str and type(value) is str and value for name, value in rows.items())
    assert json.loads(json.dumps(rows)) == rows
    assert all("\n" not in value for value in rows.values())


def test_values_are_those_of_this_process():
    torch.set_num_threads(2)
    rows = info.environment()
    assert rows["threads"] == "2" and "get_num_threads 2" in rows["parallel"]
    assert rows["torch's kernels"] == torch.backends.cpu.get_cpu_capability()
    assert (torch.version.git_version or "")[:12] in rows["torch built with"]
    assert rows["cores"].startswith(f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}")
    if "avx2" in rows["cpu flags"].split(";")[0].split():
        assert next(b for b in softkern.backends() if b.name == "avx2").usable


def test_variables_that_matter_are_shown_and_no_others(monkeypatch):
    shown = ("SOFTKERN_HUGE_PAGES", "OMP_PROC_BIND", "MALLOC_ARENA_MAX", "THP_MEM_ALLOC_ENABLE", "LD_PRELOAD")
    for name in (*shown, "HOME", "MY_OMP_SECRET", "SECRET_TOKEN"):
        monkeypatch.setenv(name, "1")
    rows = info.environment()
    found = {assignment.partition("=")[0] for assignment in rows["variables"].split()}
    assert set(shown) <= found and not found & {"HOME", "MY_OMP_SECRET", "SECRET_TOKEN"}
    assert rows["torch's large tensors"] == "ask for huge pages"
    for name in list(os.environ):
        if info.VARIABLES.fullmatch(name):
            monkeypatch.delenv(name)
    assert info.environment()["variables"] == "none set"


def test_a_system_without_proc_is_unknown(monkeypatch):
    monkeypatch.setattr(info, "_read", lambda path: "")
    rows = info.environment()
    unknown = {"cpu", "cpu flags", "memory", "huge pages", "huge pages, defrag", "runtimes, allocators"}
    assert {name for name in unknown if rows[name] == info.UNKNOWN} == unknown
    assert set(ROWS) <= set(rows)


def test_a_file_that_is_not_there_or_is_no_text_is_nothing(tmp_path):
    assert info._read(str(tmp_path / "no such file")) == "" == info._read(str(tmp_path))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xff")
    assert info._read(str(tmp_path / "bytes")) == ""


FILES = {
    "/proc/cpuinfo": "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu avx2 avx512f avx512_bf16\n",
    "/proc/meminfo": "MemTotal:       2097152 kB\nMemAvailable:   1048576 kB",
    "/sys/fs/cgroup/cpu.max": "150000 100000",
    "/proc/self/maps": "7f-7e r-xp 0 08:01 1 /x/libgomp-a34b3233.so.1\n7a-7b r-xp 0 08:01 1 /x/libiomp5.so",
    "/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23",
}


def test_what_the_system_says_is_read(monkeypatch):
    monkeypatch.setattr(info, "_read", lambda path: FILES.get(path, ""))
    rows = info.environment()
    assert rows["cpu"] == "A CPU"
    assert rows["cpu flags"] == "avx2 avx512f avx512_bf16; without fma f16c avx512bw avx512dq avx512vl"
    assert rows["memory"] == "2048 MiB, 1024 MiB available"
    assert rows["cores"].endswith(", quota of 1.5")
    assert rows["runtimes, allocators"] == "libgomp-a34b3233.so.1, libiomp5.so"
    assert rows["cuda driver"] == "580.95.05"


def test_an_arm_cpu_has_features_and_numbers(monkeypatch):
    said = "processor\t: 0\nFeatures\t: fp asimd asimdhp sve\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"
    monkeypatch.setattr(info, "_read", lambda path: said if path == "/proc/cpuinfo" else "")
    rows = info.environment()
    assert rows["cpu"] == "implementer 0x41, part 0xd40"
    assert rows["cpu flags"] == "asimd sve; without bf16 svebf16"


def test_triton_that_cannot_be_imported_says_why(monkeypatch):
    monkeypatch.setattr(info, "find_spec", lambda name: None)
    assert info.environment()["triton"] == "not installed"
    monkeypatch.setattr(info, "find_spec", lambda name: object())

    def broken(name: str) -> types.ModuleType:
        raise OSError("libcuda.so: no such file")

    monkeypatch.setattr(info, "import_module", broken)
    assert info.environment()["triton"] == "not importable: OSError: libcuda.so: no such file"
    monkeypatch.setattr(info, "import_module", lambda name: types.SimpleNamespace(__version__="3.8.0"))
    assert info.environment()["triton"] == "3.8.0"


def test_cuda_devices_are_listed(monkeypatch):
    device = types.SimpleNamespace(name="A GPU", major=9, minor=0, total_memory=80 << 30)
    without = {**_C.build(), "cuda_architectures": "", "cuda_emulated": False}
    monkeypatch.setattr(_C, "build", lambda: without)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: device)
    rows = info.environment()
    assert rows["cuda"] == "torch built for 13.0" and "cuda devices" not in rows
    assert rows["cuda device 1"] == "A GPU, capability 9.0, 81920 MiB"


def test_a_driver_that_torch_warns_of_is_a_row_and_no_warning(monkeypatch):
    def unavailable() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", unavailable)
    assert info.environment()["cuda devices"].startswith("none; CUDA initialization: The NVIDIA driver")


@pytest.mark.parametrize("error", (ValueError, OSError, AttributeError))
def test_another_libc_than_glibc_is_named_or_unknown(monkeypatch, error):
    def confstr(name: str) -> str:
        raise error("unrecognized configuration name")

    monkeypatch.setattr(os, "confstr", confstr)
    monkeypatch.setattr(info.platform, "libc_ver", lambda: ("", ""))
    assert info._libc() == info.UNKNOWN


def test_importing_says_nothing():
    done = subprocess.run([sys.executable, "-c", "import softkern.info"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("binding", "row", "note"),
    (
        (("pybind", ""), "an extension", ""),
        (("2.13", ""), "a library for torch 2.13", ""),
        (("stable", "why"), "a library for every torch: why", "called through torch's stable ABI: why"),
        (("none", "why"), "nothing compiled: why", ""),
    ),
)
def test_how_the_kernels_are_called(monkeypatch, binding, row, note):
    monkeypatch.setattr(_C, "binding", lambda: binding)
    assert info.environment()["called by"] == row
    assert {backend.note for backend in softkern.backends()} == {note}
