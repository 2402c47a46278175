# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of cross-entropy forward + backward, softkern against torch, on this machine.

    python tools/compare_with_torch.py [--threads N] [--rounds N]

The two take turns, so that drift of the machine hits both; medians with the 20 % and 80 % quantiles. Each
step allocates its own outputs, as training does. Peak memory is measured in a process of its own each, as
growth of the resident set above the logits.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import softkern
from softkern import info

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {"torch": F.cross_entropy, "softkern": softkern.cross_entropy}
SHAPES = [(101, 7), (512, 1000), (4096, 1000), (65536, 10), (2048, 32000)]


def problem(rows: int, classes: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, classes, generator=g).requires_grad_()
    return logits, torch.randint(0, classes, (rows,), generator=g)


def step(loss: Loss, logits: Tensor, target: Tensor) -> None:
    logits.grad = None
    loss(logits, target).backward()


def seconds(loss: Loss, logits: Tensor, target: Tensor, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        step(loss, logits, target)
    return (time.perf_counter() - start) / repeats


def compare(rows: int, classes: int, rounds: int) -> str:
    logits, target = problem(rows, classes)
    once = {name: seconds(loss, logits, target, 3) for name, loss in LOSSES.items()}
    repeats = max(1, int(0.02 / max(once.values())))
    times: dict[str, list[float]] = {name: [] for name in LOSSES}
    for _ in range(rounds):
        for name, loss in LOSSES.items():
            times[name].append(seconds(loss, logits, target, repeats))
    cells = [f"{rows}x{classes}".rjust(11)]
    for name in LOSSES:
        low, *_, high = statistics.quantiles(times[name], n=5)
        cells.append(
            f"{name} {statistics.median(times[name]) * 1e6:10.1f} us [{low * 1e6:.1f}, {high * 1e6:.1f}]"
        )
    ratio = statistics.median(times["torch"]) / statistics.median(times["softkern"])
    return "   ".join([*cells, f"ratio {ratio:.2f}"])


def peak_above_logits(name: str, rows: int, classes: int) -> float:
    """Growth of this process's resident set to its peak, in units of the logits; for a fresh process."""
    small, few = problem(64, 64)
    step(LOSSES[name], small, few)  # libraries loaded, threads started
    logits, target = problem(rows, classes)
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # restarts VmHWM
    before = kilobytes("VmRSS")
    step(LOSSES[name], logits, target)
    return (kilobytes("VmHWM") - before) * 1024 / (logits.numel() * logits.element_size())


def kilobytes(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field + ":"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--peak", choices=LOSSES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        print(peak_above_logits(args.peak, 2048, 32000))
        return
    where = info.environment()
    print(
        ", ".join(
            f"{key} {where[key]}" for key in ("cpu", "torch", "softkern", "active on cpu", "huge pages")
        )
    )
    print(f"cross_entropy forward + backward, float32, {args.threads} threads")
    for rows, classes in SHAPES:
        print(compare(rows, classes, args.rounds), flush=True)
    for name in LOSSES:
        command = [sys.executable, __file__, "--peak", name, "--threads", str(args.threads)]
        peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"peak above the logits, 2048x32000: {name} {peak:.2f} N x C buffers")


if __name__ == "__main__":
    main()
