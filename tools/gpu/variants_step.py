# SPDX-License-Identifier: Apache-2.0
"""Kernels compiled in several variants: their times in turns, and whether their bits differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from gpu.check_step import compared
from gpu.command import Command
from gpu.run import TOOLS, WORK, NotRun, Run, found

ELEMENTS = ("bfloat16", "float")
ROUNDS = 3
# Cells in turns, for each element type.
CELLS = ("2048x128256", "2048x32000", "2048x50257")


@dataclass(frozen=True)
class Variant:
    """Macros, and the sources of csrc/cuda that are compiled with them."""

    macros: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


LONG_ROWS = ("cross_entropy.cu", "softmax.cu")
# The first is what the others are compared with.
VARIANTS: dict[str, Variant] = {
    "baseline": Variant(),
    # The acquiring wait for other blocks' sums costs a CCTL.IVALL in every thread.
    "waits of block scope": Variant(('SOFTKERN_INBOX_SCOPE="cta"',), LONG_ROWS),
    "all long rows in registers": Variant(("SOFTKERN_SHARED_FROM=0x10000000",), LONG_ROWS),
    "rows of 32 KiB and more in shared memory": Variant(("SOFTKERN_SHARED_FROM=0x7fff",), LONG_ROWS),
}


def command_of(run: Run, variant: Variant, number: int) -> list[Any]:
    macros = [part for macro in variant.macros for part in ("-D", macro)]
    into = WORK / f"variant{number}"
    named = ["--variant", ",".join(variant.sources), *macros]
    return run.python("-m", "gpu.native", "--into", into, "--element", ",".join(ELEMENTS), *named)


def begin(run: Run) -> None:
    """Compile them while the device computes other things."""
    for number, (name, variant) in enumerate(VARIANTS.items()):
        if number > 0 and name not in run.started and not run.dry:
            run.started[name] = run.start(name, command_of(run, variant, number), **TOOLS)


def variants(run: Run) -> dict[str, Any]:
    if run.dry:
        for number, (name, variant) in enumerate(VARIANTS.items()):
            run.would(name, command_of(run, variant, number))
        return {"status": "would run", "reason": "", "summary": f"{len(VARIANTS)} variants"}
    if len(VARIANTS) < 2:
        raise NotRun("there is only one variant")
    begin(run)  # where no earlier step has
    commands: list[Command] = []
    folders = {}
    for number, name in enumerate(VARIANTS):
        if number:
            commands.append(run.finish(run.started.pop(name)))
        if not number or commands[-1].ok:
            folders[name] = WORK / f"variant{number}" if number else run.programs
    lines: dict[str, list[dict[str, Any]]] = {name: [] for name in folders}
    for turn in range(ROUNDS):
        for name, folder in folders.items():
            for element in ELEMENTS:
                for cell in CELLS if run.budget.of_step() > 2 else ():
                    command = [folder / f"time_cuda.{element}", "--only", cell, "--calls", "7"]
                    done = run.run(f"{name}, round {turn + 1}", command, 15)
                    lines[name] += [line for line in done.lines() if "op" in line]
                    commands.append(done)
    bits = {}
    for name, folder in folders.items():
        done = run.run(f"{name}, bits", [folder / "check_cuda.bfloat16", "--most", "140000"], 15)
        bits[name] = {line["case"]: line["bits"] for line in done.lines() if "case" in line}
        commands.append(done)
    first = next(iter(bits))
    changed = {name: compared(of, bits[first]) for name, of in bits.items() if name != first}
    return found(commands, f"{len(folders)} variants", cells=medians(lines), bits=changed)


def medians(lines: dict[str, Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """For each cell the median of a variant's percentages over the rounds."""
    cells: dict[str, dict[str, list[float]]] = {}
    for name, found_lines in lines.items():
        for line in found_lines:
            if "percent" in line:
                shape = "x".join(map(str, line["shape"]))
                cell = cells.setdefault(f"{line['op']} {line['dtype']} {shape}", {})
                cell.setdefault(name, []).append(line["percent"])
    return [
        {"cell": cell, **{name: median(each) for name, each in of.items()}}
        for cell, of in sorted(cells.items())
    ]
