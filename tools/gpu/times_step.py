# SPDX-License-Identifier: Apache-2.0
"""The kernels alone: times of all cells, and what the hardware counts in one of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from gpu.build_step import EMULATED_ELEMENT
from gpu.run import NotRun, Run, found, where_is

ELEMENTS = ("bfloat16", "float")
PROFILED = "=cross_entropy with gradient bfloat16 2048x128256"
SECTIONS = ("SpeedOfLight", "WarpStateStats", "Occupancy", "LaunchStats", "MemoryWorkloadAnalysis")
# What a dry run computes: every op on two rows of few classes.
FEW = ("--rows", "2", "--most", "20000", "--calls", "1")
SHOWN = (
    "dram__",
    "gpu__time_duration",
    "issue_stalled",
    "achieved",
    "registers",
    "throughput",
    "warps_active",
)


def times(run: Run) -> dict[str, Any]:
    if run.dry:
        program = run.program("time_cuda", EMULATED_ELEMENT)
        command = run.run("few", [program, *FEW])
        listed = run.run("listed", [program, "--list", "--only", PROFILED])
        assert len(listed.text().split()) > 0, f"no cell {PROFILED}"
        for element in ELEMENTS:
            run.would("times", [run.program("time_cuda", element), "--seconds", "..."])
        return found([command, listed], told(command.lines()))
    commands = []
    for i, element in enumerate(ELEMENTS):
        # One after the other: alone on the device.
        seconds = run.budget.of_step() / (len(ELEMENTS) - i)
        command = [run.program("time_cuda", element), "--seconds", f"{max(1.0, seconds - 3):.0f}"]
        commands.append(run.run(f"times {element}", command, seconds))
    lines = [line for command in commands for line in command.lines()]
    return found(commands, told(lines), lines=lines)


def told(lines: Sequence[dict[str, Any]]) -> str:
    cells = [line for line in lines if "op" in line]
    left = sum(line.get("left", 0) for line in lines)
    return f"{len(cells)} cells" + (f", {left} not reached" if left else "")


def profile(run: Run) -> dict[str, Any]:
    program = [run.program("time_cuda", "bfloat16"), "--only", PROFILED, "--calls", "1"]
    ncu, nsys = where_is("ncu"), where_is("nsys")
    sections = [part for section in SECTIONS for part in ("--section", section)]
    # As the device is found: another user's clocks are not to be changed.
    options = ["--clock-control", "none", "--page", "raw", "--csv", "--launch-count", "2", *sections]
    command = [ncu or "ncu", *options, *program]
    if run.dry:
        run.would("ncu", command)
        return {"status": "would run", "reason": "", "summary": "ncu is there" if ncu else "no ncu here"}
    if ncu is not None:
        done = run.run("ncu", command)
        metrics = metrics_of(done.text())
        if metrics:
            return found([done], f"{len(metrics)} kernels", kernels=metrics, raw=done.text())
    if nsys is None:
        raise NotRun("ncu reads no counters here, and there is no nsys" if ncu else "neither ncu nor nsys")
    report = run.programs / "nsys"
    command = [nsys, "profile", "--stats=true", "--force-overwrite=true", "-o", report, *program]
    done = run.run("nsys", command)
    return found([done], "nsys", raw=done.text())


def metrics_of(text: str) -> list[dict[str, str]]:
    """Of ncu's CSV, a row for each kernel below the rows of names and units: the metrics that decide."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    rows = list(csv.DictReader(io.StringIO("\n".join(lines))))
    return [
        {k: v for k, v in row.items() if k and (k == "Kernel Name" or any(part in k for part in SHOWN))}
        for row in rows
        if row.get("ID")
    ]
