# SPDX-License-Identifier: Apache-2.0
"""A whole run on a machine with a GPU: build, tests, checks, times, comparisons (docs/gpu-run.md).

    python tools/gpu_run.py               # 480 s at most
    python tools/gpu_run.py --dry-run     # without a GPU: compiles and emulates what it can, checks the rest

Each step has a time limit, and writes its results to a JSON of its own in --out when it ends.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).resolve().parent
sys.path.insert(0, str(TOOLS))

from gpu import build_step, check_step, peers_step, suite_step, times_step, variants_step  # noqa: E402
from gpu.budget import Budget  # noqa: E402
from gpu.record import Record, as_text  # noqa: E402
from gpu.run import ROOT, Device, NotRun, Run, where_is  # noqa: E402

Step = Callable[[Run], dict[str, Any]]
SECONDS = 480.0
# What a dry run has to compile the emulated kernels, perhaps on two cores that do other work as well. It is
# no part of the run's seconds.
COMPILING = 1200.0
# In this order, with the seconds of each: what a step does not use, the next ones have. The extension is
# compiled while `check` is at work.
STEPS: dict[str, tuple[float, Step]] = {
    "native": (60, build_step.native),
    "check": (55, check_step.check),
    "extension": (60, build_step.extension),
    "suite": (75, suite_step.suite),
    "times": (50, times_step.times),
    "variants": (30, variants_step.variants),
    "peers": (150, peers_step.peers),
}


def main(argv: Sequence[str] | None = None) -> int:
    args = parsed(argv)
    device = None if args.dry_run else found_device()
    before = json.loads(args.before.read_text()) if args.before else None
    run = Run(Budget(args.seconds), device, before, args.wheels)
    about = {
        "commit": args.commit or commit(),
        "device": device.name if device else "none: a dry run",
        "capability": device.capability if device else "",
        "driver": device.driver if device else "",
        "python": sys.version.split()[0],
        "cpus": run.jobs,
        "started": f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}",
        "budget": args.seconds,
    }
    record = Record(args.out, about)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for name in args.steps:
            own, step = STEPS[name]
            compiles = device is None and name == "native"
            if compiles:
                own, run.budget = COMPILING, Budget(COMPILING)
            record.add(name, taken(run, step, own))
            if compiles:
                run.budget = Budget(args.seconds)
            print(as_text(record.summary).splitlines()[-1], flush=True)
    finally:
        for command in run.started.values():
            command.finish(0)
    record.finish(run.budget.spent())
    print("\n" + as_text(record.summary))
    print(f"{run.budget.spent():.0f} s of {args.seconds:.0f}; results: {args.out}")
    return int(any(step["status"] in ("failed", "timed out") for step in record.summary["steps"]))


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build/gpu-run", help="folder of the results")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for the run (default: %(default)g)")
    parser.add_argument(
        "--steps", type=names, default=list(STEPS), metavar="A,B", help=f"of {', '.join(STEPS)}"
    )
    parser.add_argument("--dry-run", action="store_true", help="without a GPU")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="packages to install for this run")
    parser.add_argument(
        "--before", type=Path, metavar="FILE", help="check.json of a run to compare bits with"
    )
    parser.add_argument("--commit", help="what is measured, where git does not know it")
    return parser.parse_args(argv)


def names(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := [name for name in chosen if name not in STEPS]:
        raise argparse.ArgumentTypeError(f"no steps: {', '.join(unknown)}; there are {', '.join(STEPS)}")
    return [name for name in STEPS if name in chosen]


def taken(run: Run, step: Step, own: float) -> dict[str, Any]:
    """What a step has found, or why it has not."""
    begun = time.monotonic()
    run.commands = []
    if run.budget.begin(own) <= 0:
        found = {"status": "not run", "reason": "no time left", "summary": ""}
    else:
        if step is suite_step.suite:
            variants_step.begin(run)
        try:
            found = step(run)
        except NotRun as reason:
            found = {"status": "not run", "reason": str(reason), "summary": ""}
        except Exception:  # the other steps run all the same
            last = traceback.format_exc()
            found = {"status": "failed", "reason": last.splitlines()[-1], "summary": "", "traceback": last}
    run.budget.end()
    return {**found, "seconds": round(time.monotonic() - begun, 1), "commands": run.commands}


def found_device() -> Device:
    program = where_is("nvidia-smi")
    if program is None:
        raise SystemExit("no GPU on this machine: there is no nvidia-smi. --dry-run runs without one.")
    query = [program, "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    if done.returncode != 0 or not done.stdout.strip():
        raise SystemExit(f"no GPU on this machine: {(done.stdout + done.stderr).strip()}")
    return Device(*(part.strip() for part in done.stdout.splitlines()[0].split(",")))


def commit() -> str:
    """Of this folder, and whether files differ from it."""
    try:
        text = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return text.strip()


if __name__ == "__main__":
    sys.exit(main())
