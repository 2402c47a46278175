# SPDX-License-Identifier: Apache-2.0
"""The base class of providers. A provider is one library's softmax, called as its users call it.

A provider's module has to import without its framework: the conductor calls `left_out` of providers that are
not installed. Everything else runs in the provider's own worker process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.cells import HEAD_OP, Cell
from benchmarks.problems import Problem


class Absent(Exception):
    """The provider can't run on this machine; the message gives the reason in one line."""


@dataclass
class Prepared:
    """A cell that one provider has prepared.

    `step(i)` does the timed work once, on the i-th of the `buffers` copies of the inputs, and returns a value
    for `results`. On the CPU it must not return before the work is done; a CUDA device is timed by its own
    events. `results(value)` gives the arrays of a step for the check, in the shapes of the problem: "output"
    and, if the pass computes it, "gradient".
    """

    step: Callable[[int], Any]
    results: Callable[[Any], dict[str, np.ndarray]]


class Provider:
    """Base of all providers."""

    name: str
    devices: tuple[str, ...] = ("cpu",)
    regimes: tuple[str, ...] = ("default",)
    # Measured for comparison, in fewer cells than torch and softkern.
    peer = True

    def left_out(self, cell: Cell, threads: int | None) -> str | None:
        """Why this provider does not measure this cell, or None. `threads` is None for all threads.

        All providers of a cell do the same work: a provider that computes gradients in its forward is left
        out of the pass "forward".
        """
        raise NotImplementedError

    def rounds(self, cell: Cell) -> int | None:
        """The most rounds that it takes part in; None for all that the cell has."""
        return None

    def environment(self, regime: str) -> dict[str, str]:
        """Variables to set before the worker starts."""
        return {}

    def load(self, threads: int) -> str:
        """Import the framework, use that many threads, return its version; raise Absent if it can't.

        A worker with one thread is also pinned to one core before this.
        """
        raise NotImplementedError

    def prepare(self, cell: Cell, problem: Problem, buffers: int) -> Prepared:
        """Copy the inputs `buffers` times into the framework and return the calls."""
        raise NotImplementedError


LARGE = 16 << 20  # bytes of logits
PEER_PASSES = ("no-grad", "forward+backward")


def peer_left_out(cell: Cell, ops: tuple[str, ...], dtypes: tuple[str, ...]) -> str | None:
    """The reasons that apply to every provider outside the torch family."""
    if not cell.shape or cell.pass_name == "step":
        return "has no end-to-end jobs"
    if cell.op not in ops:
        return f"does not compute {cell.op}"
    if cell.op != "cross_entropy" and cell.option:
        return "not measured with a sum of the output"
    if not cell.main and cell.op != HEAD_OP:
        return "peers are measured in the main cells only"
    if cell.pass_name not in PEER_PASSES:
        return "has no separate pass to set beside torch's recorded forward and backward"
    if cell.dtype not in dtypes:
        return f"not measured in {cell.dtype}"
    return None
