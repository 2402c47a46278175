# SPDX-License-Identifier: Apache-2.0
"""Correctness without torch: every way once against float64, bits against an earlier run's, compute-sanitizer
and a device that has no room for clusters."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cuda_build

from gpu.build_step import EMULATED_ELEMENT
from gpu.command import Command
from gpu.run import NOT_ALL, ROOT, Run, found, where_is

TOOLS = ("memcheck", "racecheck", "synccheck")
SANITIZED = ("float", "bfloat16")
PLAN = ROOT / "csrc/cuda/plan.h"
MPS = "softmax 3x262144"
MARGIN = 5.0  # seconds between the last case and the end of the step


def check(run: Run) -> dict[str, Any]:
    if run.dry:
        return dry(run)
    seconds = run.budget.of_step() - MARGIN
    plain = {e: run.start(f"check {e}", [run.program("check_cuda", e)]) for e in cuda_build.ELEMENTS}
    sanitized = sanitizers(run, seconds)
    commands = [run.finish(command) for command in plain.values()]
    cases = [line for command in commands for line in command.lines()]
    commands.append(run.run("spoiled", [run.program("check_cuda", "float"), "--spoil", "--most", "5000"]))
    commands += [run.finish(command) for command in sanitized]
    lasts = [{"name": command.name, **(command.lines() or [{}])[-1]} for command in sanitized]
    seen = "; ".join(f"{last['name']}: {last.get('cases', 0)} cases" for last in lasts)
    return {
        **found(commands, "; ".join(part for part in (summary_of(cases), seen) if part)),
        **judged(cases, run.before),
        "sanitized": lasts,
        "mps": without_room(run),
    }


def dry(run: Run) -> dict[str, Any]:
    """In the emulator: cases of few classes, every way of the others once, and that an error is noticed."""
    program = run.program("check_cuda", EMULATED_ELEMENT)
    commands = [
        run.start("small", [program, "--most", "512"]),
        run.start("sampled", [program, "--every", "29"]),
        run.start("spoiled", [program, "--spoil", "--most", "512", "--every", "5"]),
    ]
    commands = [run.finish(command) for command in commands]
    for tool in TOOLS:
        for element in SANITIZED:
            run.would(tool, sanitizer(tool, run.program("check_cuda", element), 40))
    listed = run.run("listed", [program, "--list", "--only", MPS])
    cases = [line for command in commands[:2] for line in command.lines()]
    assert listed.written.strip(), f"no case {MPS}"
    return {**found([*commands, listed], summary_of(cases)), **judged(cases, run.before)}


def sanitizer(tool: str, program: Path, seconds: float) -> list[str | Path]:
    # Mixed: what is not reached in time is of all kinds.
    own = [program, "--mixed", "--seconds", f"{seconds:.0f}"]
    checker = where_is("compute-sanitizer") or "compute-sanitizer"
    return [checker, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20", *own]


def sanitizers(run: Run, seconds: float) -> list[Command]:
    if where_is("compute-sanitizer") is None:
        run.commands.append({"name": "compute-sanitizer", "reason": "not run: it is not on this machine"})
        return []
    return [
        run.start(f"{tool} {element}", sanitizer(tool, run.program("check_cuda", element), seconds), NOT_ALL)
        for tool in TOOLS
        for element in SANITIZED
    ]


def without_room(run: Run) -> dict[str, Any]:
    """Clusters whose blocks find no room: in a process that may use a twentieth of the device. Such rows are
    read twice."""
    control = where_is("nvidia-cuda-mps-control")
    if control is None:
        return {"reason": "not run: no nvidia-cuda-mps-control on this machine"}
    with tempfile.TemporaryDirectory() as folder:
        places = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        if not run.run("MPS", [control, "-d"], 10, **places).ok:
            return {"reason": "not run: MPS does not start here"}
        try:
            command = [run.program("check_cuda", "float"), "--only", MPS]
            share = {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "5"}
            done = run.run("under MPS", command, 20, **places, **share)
        finally:
            run.start("MPS ends", ["bash", "-c", f"echo quit | {control}"], **places).finish(10)
    return {"reason": "" if done.ok else f"exit code {done.code}", "cases": done.lines()}


def summary_of(lines: Sequence[dict[str, Any]]) -> str:
    ends = [line for line in lines if "cases" in line]
    return ", ".join(f"{e['dtype']}: {e['failed']} of {e['cases']} wrong" for e in ends)


def judged(lines: Sequence[dict[str, Any]], before: dict[str, Any] | None) -> dict[str, Any]:
    """What was wrong, which ways of the plan no case went, and the bits, compared with those of before."""
    cases = [line for line in lines if "case" in line]
    bits = {f"{case['dtype']} {case['case']}": case["bits"] for case in cases}
    ways = sorted({case["way"] for case in cases})
    return {
        "wrong": [case for case in cases if case["wrong"]],
        "worst": max((case["worst"] for case in cases), default=0.0),
        "ways": ways,
        "ways not taken": sorted(ways_of_plan() - set(ways)),
        "bits": bits,
        "changed": compared(bits, before["bits"]) if before else None,
    }


def ways_of_plan() -> set[str]:
    """The names of ways that csrc/cuda/plan.h gives."""
    return set(re.findall(r'"([a-z ,]+)"', PLAN.read_text()))


def compared(bits: dict[str, str], before: dict[str, str]) -> dict[str, Any]:
    both = bits.keys() & before.keys()
    changed = sorted(name for name in both if bits[name] != before[name])
    return {"equal": len(both) - len(changed), "changed": changed, "new": len(bits) - len(both)}
