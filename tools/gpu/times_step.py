# SPDX-License-Identifier: Apache-2.0
"""The kernels alone: times of all cells, and what the hardware counts in one of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from gpu.build_step import EMULATED_ELEMENT
from gpu.run import NOT_ALL, WORK, Run, found, where_is

ELEMENTS = ("bfloat16", "float")
PROFILED = "=cross_entropy with gradient bfloat16 2048x128256"
SECTIONS = ("SpeedOfLight", "WarpStateStats", "Occupancy", "LaunchStats", "MemoryWorkloadAnalysis")
# What a dry run computes: every op on two rows of few classes.
FEW = ("--rows", "2", "--most", "20000", "--calls", "1")
KERNELS = ("--kernel-name", "regex:cross_entropy", "--launch-count", "2")
SHARE = 0.4  # of the step's seconds that are left, for an element type
SHOWN = ("dram__", "gpu__time_duration", "issue_stalled", "registers", "throughput", "warps_active")


def times(run: Run) -> dict[str, Any]:
    if run.dry:
        program = run.program("time_cuda", EMULATED_ELEMENT)
        command = run.run("few", [program, *FEW])
        listed = run.run("listed", [program, "--list", "--only", PROFILED])
        assert len(listed.written.splitlines()) == 1, f"no cell {PROFILED}, or several"
        for element in ELEMENTS:
            run.would("times", [run.program("time_cuda", element), "--seconds", "..."])
        return found([command, listed], told(command.lines()), profile=profile(run))
    commands = []
    for element in ELEMENTS:
        # One after the other: alone on the device.
        seconds = run.budget.of_step() * SHARE
        command = [run.program("time_cuda", element), "--seconds", f"{max(1.0, seconds - 3):.0f}"]
        commands.append(run.run(f"times {element}", command, seconds, NOT_ALL))
    lines = [line for command in commands for line in command.lines()]
    return found(commands, told(lines), lines=lines, profile=profile(run))


def told(lines: Sequence[dict[str, Any]]) -> str:
    cells = [line for line in lines if "op" in line]
    left = sum(line.get("left", 0) for line in lines)
    return f"{len(cells)} cells" + (f", {left} not reached" if left else "")


def profile(run: Run) -> dict[str, Any]:
    """By ncu, or where it is missing or reads no counters, by nsys."""
    program = [run.program("time_cuda", "bfloat16"), "--only", PROFILED, "--calls", "1"]
    ncu, nsys = where_is("ncu"), where_is("nsys")
    sections = [part for section in SECTIONS for part in ("--section", section)]
    # As the device is found: another user's clocks are not to be changed.
    options = ["--clock-control", "none", "--page", "raw", "--csv", *KERNELS, *sections]
    if run.dry:
        run.would("ncu", [ncu or "ncu", *options, *program])
        return {"reason": "" if ncu else "no ncu on this machine"}
    if ncu is not None:
        text = run.run("ncu", [ncu, *options, *program], 25).written
        if kernels := metrics_of(text):
            return {"reason": "", "by": "ncu", "kernels": kernels, "raw": text}
    if nsys is None:
        return {"reason": "not run: " + ("ncu reads no counters, and no nsys" if ncu else "no ncu, no nsys")}
    report = WORK / "nsys"
    command = [nsys, "profile", "--stats=true", "--force-overwrite=true", "-o", report, *program]
    return {"reason": "", "by": "nsys", "raw": run.run("nsys", command, 25).written}


def metrics_of(text: str) -> list[dict[str, str]]:
    """Of ncu's CSV, a row for each kernel below the rows of names and units: the metrics that decide."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    rows = list(csv.DictReader(io.StringIO("\n".join(lines))))
    return [
        {k: v for k, v in row.items() if k and (k == "Kernel Name" or any(part in k for part in SHOWN))}
        for row in rows
        if row.get("ID")
    ]
