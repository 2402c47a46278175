# SPDX-License-Identifier: Apache-2.0
"""Tests of the suite that need a GPU, or say more on one."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

from gpu.run import ROOT, NotRun, Run, found

TESTS = ROOT / "tests"
KERNELS = tuple(TESTS / "kernels/cuda" / f"test_{n}.py" for n in ("kernels", "cross_entropy", "orders"))
ON_GPU = TESTS / "kernels/test_gpu.py"
NAMES = "bits or graph or 32_bits or range"
NEEDED = ("pytest", "hypothesis", "numpy")  # what the suite's conftest and these files import
PROCESSES = 6  # each with a context and memory of its own on the device


def suite(run: Run) -> dict[str, Any]:
    if run.dry:
        return dry(run)
    missing = without(run, NEEDED)
    if missing:
        raise NotRun(f"{', '.join(missing)} not installed: bring them with --wheels")
    parallel = [] if without(run, ("xdist",)) else ["-n", str(min(PROCESSES, run.jobs))]
    common = ("-m", "pytest", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider")
    # The device is shared with none of these: one of them takes most of its memory.
    kernels = run.run("kernels", run.python(*common, *parallel, *KERNELS), run.budget.of_step() * 2 / 3)
    on_gpu = run.run("on a GPU", run.python(*common, ON_GPU, "-k", NAMES))
    commands = [kernels, on_gpu]
    lasts = [(command.written.strip().splitlines() or [""])[-1].strip("= ") for command in commands]
    failed = sorted(
        {line for c in commands for line in c.written.splitlines() if line.startswith(("FAILED", "ERROR"))}
    )
    return found(commands, "; ".join(lasts), failed=failed)


def without(run: Run, names: tuple[str, ...]) -> list[str]:
    """Those that the interpreter of the programs does not have."""
    code = "import importlib.util as u, sys; print(*[n for n in sys.argv[1:] if u.find_spec(n) is None])"
    return run.run("packages", run.python("-c", code, *names), 30).written.split()


def dry(run: Run) -> dict[str, Any]:
    for path in (*KERNELS, ON_GPU):
        if not path.is_file():
            raise FileNotFoundError(path)
    names = re.findall(r"^def (test_\w+)", ON_GPU.read_text(), re.MULTILINE)
    chosen = {part: [name for name in names if part in name] for part in NAMES.split(" or ")}
    assert all(chosen.values()), f"no test for {[part for part, found in chosen.items() if not found]}"
    run.would("kernels", run.python("-m", "pytest", "-n", str(PROCESSES), *KERNELS))
    run.would("on a GPU", run.python("-m", "pytest", ON_GPU, "-k", NAMES))
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    return {
        "status": "would run",
        "reason": "",
        "summary": f"{sum(map(len, chosen.values()))} tests by name",
        "missing": missing,
    }
