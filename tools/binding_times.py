# SPDX-License-Identifier: Apache-2.0
"""Times of small calls in each way that Python reaches the kernels: the table of docs/wheels.md.

    python tools/binding_times.py FOLDER           # FOLDER: where the wheel was unpacked
    python tools/binding_times.py FOLDER --write   # into docs/wheels.json and docs/wheels.md

One process for each way, with one thread; they take turns. The interpreter's own softkern is the extension.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
JSON, PAGE = ROOT / "docs" / "wheels.json", ROOT / "docs" / "wheels.md"
ROUNDS = 25
WORKER = """
import json, sys, time, torch, softkern
import torch.nn.functional as F
torch.set_num_threads(1)
def case(loss, n, c, training):
    x, y = torch.randn(n, c, requires_grad=training), torch.randint(c, (n,))
    if not training:
        return lambda: loss(x, y)
    return lambda: torch.autograd.grad(loss(x, y), x)
def microseconds(f, calls=300):
    start = time.perf_counter()
    for _ in range(calls):
        f()
    return (time.perf_counter() - start) / calls * 1e6
cases = {}
for n, c in ((101, 7), (1, 2)):
    for training in (False, True):
        name = f"{n}x{c}, " + ("forward and backward" if training else "forward")
        cases[name] = [case(loss, n, c, training) for loss in (softkern.cross_entropy, F.cross_entropy)]
print(json.dumps([softkern._C.binding()[0], torch.__version__]), flush=True)
for _ in sys.stdin:
    print(json.dumps({name: [microseconds(f) for f in fs] for name, fs in cases.items()}), flush=True)
"""


class Worker:
    def __init__(self, env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", WORKER],
            env={**os.environ, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.name, self.torch = self.read()

    def read(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def measure(self) -> dict[str, list[float]]:
        assert self.process.stdin is not None
        print(flush=True, file=self.process.stdin)
        return dict(self.read())


def measure(folder: Path) -> dict[str, Any]:
    import torch

    minor = ".".join(torch.__version__.split(".")[:2])
    ways: list[dict[str, str]] = [{"PYTHONPATH": str(ROOT)}]
    ways += [{"PYTHONPATH": str(folder), "SOFTKERN_GLUE": name} for name in (minor, "stable")]
    workers = [Worker(env) for env in ways]
    rounds = [[worker.measure() for worker in workers] for _ in range(ROUNDS + 2)][2:]
    rows = {}
    for name in rounds[0][0]:
        ours = {w.name: median(each[i][name][0] for each in rounds) for i, w in enumerate(workers)}
        theirs = median(found[name][1] for each in rounds for found in each)
        rows[name] = {"F": round(theirs, 2), **{way: round(us, 2) for way, us in ours.items()}}
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    return {"cpu": cpu[1] if cpu else "", "torch": workers[0].torch, "rounds": ROUNDS, "microseconds": rows}


def table(found: dict[str, Any]) -> str:
    rows = found["microseconds"]
    ways = list(next(iter(rows.values())))
    heads = {"F": "F", "pybind": "extension", "stable": "stable ABI"}
    lines = [
        f"Microseconds a call of `cross_entropy`, medians of {found['rounds']} turns; {found['cpu']}, one "
        "thread, "
        f"torch {found['torch']}; `python tools/binding_times.py FOLDER`.",
        "",
        "| call | " + " | ".join(heads.get(way, f"library for torch {way}") for way in ways) + " |",
        "|---|" + "---:|" * len(ways),
        *(
            f"| {name} | " + " | ".join(f"{us:.1f}" for us in row.values()) + " |"
            for name, row in rows.items()
        ),
    ]
    return "\n".join(lines)


def with_table(page: str, found: dict[str, Any]) -> str:
    """The page with the table between its two marks."""
    marks = r"(<!-- times: begin -->\n).*(<!-- times: end -->)"
    return re.sub(marks, lambda m: f"{m[1]}{table(found)}\n{m[2]}", page, flags=re.S)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    found = measure(args.folder.resolve())
    print(table(found))
    if args.write:
        JSON.write_text(json.dumps(found, indent=1) + "\n")
        PAGE.write_text(with_table(PAGE.read_text(), found))


if __name__ == "__main__":
    main()
