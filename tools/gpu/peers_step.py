# SPDX-License-Identifier: Apache-2.0
"""The benchmark suite against torch and others: `python -m benchmarks`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpu.command import GRACE
from gpu.run import WORK, NotRun, Run, found
from gpu.suite_step import without

NEEDED = ("rich", "matplotlib", "numpy")
PROVIDERS = ("torch", "softkern", "torch-compile", "liger", "quack")
OPS = ("cross_entropy", "softmax")
# The shapes of a run, and its share of the time that is left. The benchmarks begin with small cells, and what
# is ended loses the last ones: so the shapes that matter most come in a run of their own.
SHAPES = {
    "vocabularies": (("2048x32000", "2048x128256"), 0.5),
    "others": (("2048x4096", "8192x4096", "2048x50257", "1000000x10"), 1.0),
}
TYPICAL = 0.75  # of the seconds are asked for: a run does not drop a cell, and may take longer than asked


def arguments(shapes: tuple[str, ...], seconds: float, output: Path | str) -> list[str]:
    return [
        *("--device", "cuda", "--op", ",".join(OPS), "--shape", ",".join(shapes)),
        *("--dtype", "bfloat16,float32", "--pass", "no-grad,forward+backward"),
        *("--provider", ",".join(PROVIDERS), "--minutes", f"{max(0.1, TYPICAL * seconds / 60):.2f}"),
        *("--timeout", "60", "--output", str(output)),
    ]


def peers(run: Run) -> dict[str, Any]:
    if run.dry:
        return dry(run)
    if missing := without(run, NEEDED):
        raise NotRun(f"{', '.join(missing)} not installed: bring them with --wheels")
    commands, results = [], {}
    for name, (shapes, share) in SHAPES.items():
        seconds = run.budget.of_step() * share
        output = WORK / f"benchmarks-{name}.json"
        output.unlink(missing_ok=True)
        command = run.python("-m", "benchmarks", *arguments(shapes, seconds, output))
        commands.append(run.run(name, command, seconds - GRACE))
        if output.is_file():
            results[name] = json.loads(output.read_text())
    rows = [row for result in results.values() for row in result["rows"]]
    absent = {entry["provider"]: entry["reason"] for result in results.values() for entry in result["absent"]}
    summary = f"{len(rows)} rows, {sum(row['status'] != 'ok' for row in rows)} not ok"
    return found(commands, summary, results=results, absent=absent)


def dry(run: Run) -> dict[str, Any]:
    """Whether the benchmarks know all these names."""
    code = "import sys; from benchmarks import cli; print(len(cli.cells_of(cli.parse_run(sys.argv[1:]))))"
    commands = []
    for name, (shapes, _) in SHAPES.items():
        words = arguments(shapes, 60, "results.json")
        commands.append(run.run(name, run.python("-c", code, *words)))
        run.would(name, run.python("-m", "benchmarks", *words))
    cells = [command.written.strip() for command in commands]
    return found(commands, f"{' + '.join(cells)} cells")
