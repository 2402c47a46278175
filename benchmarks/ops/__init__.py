# SPDX-License-Identifier: Apache-2.0
"""The ops, one file each."""

from __future__ import annotations

from types import ModuleType

from benchmarks import options
from benchmarks.cells import HEAD_OP, Cell, expand
from benchmarks.ops import (
    cross_entropy,
    end_to_end,
    linear_cross_entropy,
    log_softmax,
    selective_log_softmax,
    softmax,
)

OPS: dict[str, ModuleType] = {
    "softmax": softmax,
    "log_softmax": log_softmax,
    "cross_entropy": cross_entropy,
    "selective_log_softmax": selective_log_softmax,
    HEAD_OP: linear_cross_entropy,
}


FULL, EDGES, OWN, HEAD = GROUPS = ("full", "edges", "own", "head")


def all_cells(device: str, group: str = FULL) -> list[Cell]:
    """Every cell of a group on a device: the full run with a few edges, all edges, what F lacks, or the head
    of a language model. Only the CPU has edges."""
    if group == HEAD:
        head = linear_cross_entropy
        return expand(HEAD_OP, head.HEAD if device == "cpu" else head.HEAD_CUDA, device)
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
    if cell.op == HEAD_OP:
        return HEAD
    return OWN if options.is_own(cell) else EDGES if cell.edge else FULL


def bytes_moved(cell: Cell) -> int:
    """The fewest bytes that a cell's work has to move; 0 for end-to-end jobs: they mostly do other work."""
    return OPS[cell.op].bytes_moved(cell) if cell.op in OPS else 0


def flops(cell: Cell) -> int:
    """Of the matrix products that a head needs; 0 for the others."""
    return linear_cross_entropy.flops(cell) if cell.op == HEAD_OP else 0


def result_bytes(cell: Cell) -> int:
    """Of a head's gradients, which its peak memory includes."""
    return linear_cross_entropy.result_bytes(cell) if cell.op == HEAD_OP else 0
