# SPDX-License-Identifier: Apache-2.0
"""What the steps of a run share: where things are, the environment of their programs, and these programs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu.budget import Budget
from gpu.command import Command

ROOT = Path(__file__).resolve().parent.parent.parent
WORK = ROOT / "build/gpu-run-work"  # programs, and what is no result
TOOLS = {"PYTHONPATH": str(ROOT / "tools")}  # the environment of programs that import these modules
NOT_ALL = (0, 3)  # exit codes of the programs where the seconds may not be enough for all


# Where NVIDIA's installers put programs that may not be on the path.
PLACES = ("/usr/local/cuda/bin", "/opt/nvidia/nsight-compute/*", "/opt/nvidia/nsight-systems/*/bin")


def where_is(program: str) -> str | None:
    if on_path := shutil.which(program):
        return on_path
    home = os.environ.get("CUDA_HOME")
    for place in (*([f"{home}/bin"] if home else []), *PLACES):
        for path in sorted(Path("/").glob(f"{place}/{program}".lstrip("/")), reverse=True):
            if os.access(path, os.X_OK):
                return str(path)
    return None


@dataclass
class Device:
    name: str
    capability: str  # "9.0"
    driver: str


class NotRun(Exception):
    """Why a step can't run here."""


@dataclass
class Run:
    budget: Budget
    device: Device | None  # None: a dry run
    before: dict[str, Any] | None = None  # the results of an earlier run's step `check`
    wheels: Path | None = None
    jobs: int = len(os.sched_getaffinity(0))
    commands: list[dict[str, Any]] = field(default_factory=list)  # of the present step
    started: dict[str, Command] = field(default_factory=dict)

    @property
    def dry(self) -> bool:
        return self.device is None

    @property
    def programs(self) -> Path:
        return WORK / ("emulated" if self.dry else "programs")

    def program(self, name: str, element: str) -> Path:
        return self.programs / f"{name}.{element}"

    def environment(self) -> dict[str, str]:
        site = WORK / "site"
        paths = [str(path) for path in (ROOT, *([site] if site.is_dir() else []))]
        given = os.environ.get("PYTHONPATH")
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*paths, *([given] if given else [])]),
            "PYTHONUNBUFFERED": "1",
            "TORCH_CUDA_ARCH_LIST": self.device.capability if self.device else "9.0",
            "MAX_JOBS": str(self.jobs),
        }

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        accepted: Sequence[int] = (0,),
        **environment: str,
    ) -> Command:
        """Start a program; `finish` waits for it."""
        return Command(name, command, ROOT, {**self.environment(), **environment}, accepted)

    def finish(self, command: Command, seconds: float = float("inf")) -> Command:
        """Wait until the program ends, so many seconds at most, and as long as the step may take."""
        command.finish(min(seconds, self.budget.of_step()))
        self.commands.append(command.record())
        return command

    def run(
        self,
        name: str,
        command: Sequence[str | Path],
        seconds: float = float("inf"),
        accepted: Sequence[int] = (0,),
        **environment: str,
    ) -> Command:
        return self.finish(self.start(name, command, accepted, **environment), seconds)

    def would(self, name: str, command: Sequence[str | Path]) -> None:
        """In a dry run: write down what would run."""
        self.commands.append({"name": name, "would run": " ".join(str(part) for part in command)})

    def python(self, *arguments: str | Path) -> list[str | Path]:
        return [sys.executable, *arguments]


def found(commands: Sequence[Command], summary: str = "", **content: Any) -> dict[str, Any]:
    """What a step returns: its status is that of its programs."""
    wrong = [command for command in commands if not command.ok]
    late = [command for command in wrong if command.reason.startswith("not done")]
    reasons = dict.fromkeys(f"{c.name}: {c.reason or f'exit code {c.code}'}" for c in wrong)
    status = "ok" if not wrong else "timed out" if late == wrong else "failed"
    return {"status": status, "reason": "; ".join(list(reasons)[:5]), "summary": summary, **content}
