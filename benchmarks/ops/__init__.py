# SPDX-License-Identifier: Apache-2.0
"""The ops, one file each."""

from __future__ import annotations

from types import ModuleType

from benchmarks import options
from benchmarks.cells import Cell, expand
from benchmarks.ops import cross_entropy, end_to_end, log_softmax, selective_log_softmax, softmax

OPS: dict[str, ModuleType] = {
    "softmax": softmax,
    "log_softmax": log_softmax,
    "cross_entropy": cross_entropy,
    "selective_log_softmax": selective_log_softmax,
}


FULL, EDGES, OWN = GROUPS = ("full", "edges", "own")


def all_cells(device: str, group: str = FULL) -> list[Cell]:
    """Every cell of a group on a device: the full run with a few edges, all edges, or what F lacks. Only the
    CPU has edges."""
    cells = []
    for name, op in OPS.items():
        if group == FULL:
            cells += expand(name, op.CPU if device == "cpu" else op.CUDA, device)
        elif group == OWN:
            cells += expand(name, op.OWN if device == "cpu" else op.OWN_CUDA, device)
        elif device == "cpu":
            cells += expand(name, (case for case in op.CPU + op.EDGES if case.edge), device)
    return cells + (end_to_end.cells(device) if group == FULL else [])


def group_of(cell: Cell) -> str:
    return OWN if options.is_own(cell) else EDGES if cell.edge else FULL


def bytes_moved(cell: Cell) -> int:
    """The fewest bytes that a cell's work has to move; 0 for end-to-end jobs: they mostly do other work."""
    return OPS[cell.op].bytes_moved(cell) if cell.op in OPS else 0
