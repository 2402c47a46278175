# SPDX-License-Identifier: Apache-2.0
"""Checks one peer of the benchmarks: which cells it measures, and errors in its results.

Run as a script, with the peer's name, it prints a report in JSON.
"""

from __future__ import annotations

import json
import sys
from itertools import product

import numpy as np
from places import ROOT

sys.path.append(str(ROOT))  # benchmarks is not installed

from benchmarks import problems
from benchmarks.answers import answers
from benchmarks.cells import PASSES, Cell
from benchmarks.ops.cross_entropy import OPTIONS
from benchmarks.providers.base import Absent, Provider
from benchmarks.providers.flash_attention import FlashAttention
from benchmarks.providers.jax_ import Jax
from benchmarks.providers.liger import Liger
from benchmarks.providers.numpy_ import NumPy
from benchmarks.providers.onnxruntime_ import OnnxRuntime
from benchmarks.providers.quack import Quack
from benchmarks.providers.tensorflow_ import TensorFlow

PROVIDERS = {
    p.name: p for p in (NumPy(), Jax(), TensorFlow(), OnnxRuntime(), Liger(), Quack(), FlashAttention())
}
FRAMEWORKS = ("torch", "jax", "tensorflow", "onnxruntime", "onnx", "liger_kernel", "flash_attn")
LAYOUTS = {
    "softmax": (((64, 10), -1), ((16, 1000), -1), ((3, 50, 7), 1)),
    "log_softmax": (((64, 10), -1), ((16, 1000), -1), ((3, 50, 7), 1)),
    "cross_entropy": (((64, 10), 1), ((16, 1000), 1), ((2, 5, 4, 4), 1)),
}


def cells(device: str) -> list[Cell]:
    """The plain ops in all layouts, cross_entropy's options in its last."""
    named = [("", op, *layout) for op, layouts in LAYOUTS.items() for layout in layouts]
    named += [(option, "cross_entropy", *LAYOUTS["cross_entropy"][-1]) for option in OPTIONS]
    return [
        Cell(op, pass_name, dtype, shape, dim, option, device, main=True)
        for (option, op, shape, dim), dtype, pass_name in product(named, problems.EPS, PASSES)
    ]


def complaints(cell: Cell, got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> list[str]:
    """Errors in the results of a cell, or in the check if it accepts damaged results."""

    def verdict(**changed: np.ndarray) -> str | None:
        return problems.verdict(cell, problems.errors(cell, {**got, **changed}, expected))

    wrong = []
    names = ["output"] if cell.pass_name == "no-grad" else ["output", "gradient"]
    if list(got) != names:
        wrong.append(f"results are {list(got)}")
    if verdict():
        wrong.append(verdict())
    for name, array in got.items():
        damaged = {"scaled": array * np.float32(1 + max(0.01, 2 * problems.BOUND[cell.dtype]))}
        if array.size > 1:
            axis = 0 if array.ndim == 1 or cell.dim % array.ndim else 1
            damaged["shifted by a row"] = np.roll(array, 1, axis)
        wrong += [
            f"{name} accepted though {how}" for how, bad in damaged.items() if not verdict(**{name: bad})
        ]
    return [f"{cell.name}: {what}" for what in wrong]


def check(provider: Provider) -> dict:
    """All cells that the provider measures, and the errors found."""
    report: dict = {"early": [name for name in FRAMEWORKS if name in sys.modules], "took": [], "wrong": []}
    try:
        provider.load(1)
    except Absent as absent:
        return {**report, "absent": str(absent)}
    for cell in cells(provider.devices[0]):
        if provider.left_out(cell, None) is not None:
            continue
        problem = problems.make(cell)
        expected = answers(cell, problem)
        prepared = provider.prepare(cell, problem, 2)
        for i in range(2):
            report["wrong"] += complaints(cell, prepared.results(prepared.step(i)), expected)
        report["took"].append((cell.op, cell.pass_name, cell.dtype, cell.option))
    return report


if __name__ == "__main__":
    print(json.dumps(check(PROVIDERS[sys.argv[1]])))
