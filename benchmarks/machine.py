# SPDX-License-Identifier: Apache-2.0
"""The environment of a run, and whether this machine is fit for measuring."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
ASSUMED_CACHE = 32 << 20  # if the system does not tell


def environment(device: str = "cpu") -> dict[str, str]:
    """The rows of softkern.info, and more that benchmarks need."""
    from softkern import info

    return {
        **info.environment(),
        **({"device": _cuda_name()} if device == "cuda" else {}),
        "cpus": str(cpus()),
        "caches": ", ".join(f"L{level} {size >> 10} KiB" for level, size in sorted(caches().items())),
        "memory": f"{_meminfo('MemTotal') >> 20} MiB",
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "not visible",
        "hypervisor": "yes" if "hypervisor" in _read("/proc/cpuinfo") else "no",
        "load": f"{os.getloadavg()[0]:.2f}",
        "commit": _git("rev-parse", "HEAD") or "unknown",
        "dirty": "yes" if _git("status", "--porcelain", "--untracked-files=no") else "no",
    }


def _cuda_name() -> str:
    import torch

    return f"{torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}"


def cpus() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def caches() -> dict[int, int]:
    """Bytes of each level of the first core's caches that hold data."""
    found = {}
    for index in CACHES.glob("index*"):
        size = re.fullmatch(r"(\d+)([KMG]?)", _read(index / "size"))
        if size and _read(index / "type") != "Instruction":
            unit = {"": 0, "K": 10, "M": 20, "G": 30}[size[2]]
            found[int(_read(index / "level"))] = int(size[1]) << unit
    return found


def last_level_cache() -> int:
    return max(caches().values(), default=ASSUMED_CACHE)


def available_memory() -> int:
    return _meminfo("MemAvailable")


def short_name(environment: dict[str, str]) -> str:
    """A folder name for results: CPU model and number of cores."""
    words = re.findall(r"[a-z0-9]+", environment["cpu"].lower().replace("(r)", "").replace("(tm)", ""))
    return "-".join([*words[:5], environment["cpus"], "cpus"])


class Watch:
    """Steal and load over a run."""

    def __init__(self) -> None:
        self.start = _cpu_ticks()
        self.load = os.getloadavg()[0]

    def steal_percent(self) -> float:
        """Percent of the time that the hypervisor gave to other machines."""
        delta = [now - then for now, then in zip(_cpu_ticks(), self.start, strict=True)]
        return 100 * delta[7] / max(1, sum(delta)) if len(delta) > 7 else 0.0


def unfit_before(environment: dict[str, str]) -> list[str]:
    """Reasons not to trust figures of this machine in its present state."""
    found = []
    load, cpus = float(environment["load"]), int(environment["cpus"])
    if load > 0.3 * cpus:
        found.append(f"load average {load:.2f} on {cpus} cores before the run: other programs are running")
    if environment["governor"] not in ("performance", "not visible"):
        found.append(f"frequency scaling governor is '{environment['governor']}', not 'performance'")
    turbo = _read("/sys/devices/system/cpu/intel_pstate/no_turbo")
    if turbo == "0":
        found.append("turbo is on: the clock depends on temperature and on the other cores")
    if environment["dirty"] == "yes":
        found.append("the working tree has changes that the commit does not have")
    return found


def unfit_after(watch: Watch) -> list[str]:
    steal = watch.steal_percent()
    return [f"{steal:.1f} % of the time was stolen by other virtual machines"] if steal > 1 else []


def _cpu_ticks() -> list[int]:
    line = _read("/proc/stat").split("\n")[0]
    return [int(field) for field in line.split()[1:9]]


def _meminfo(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    return int(match[1]) << 10 if match else 0


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
