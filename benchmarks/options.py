# SPDX-License-Identifier: Apache-2.0
"""softkern's own options of cross_entropy, which F.cross_entropy lacks, and its own ops: their names, values
and keywords. A cell has one of these options."""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.cells import Cell

LOGIT_SCALE = 0.0625  # of Cohere's models
SOFTCAP = 30.0  # of Gemma 2
TEMPERATURE = 0.7
Z_LOSS = 1e-4  # of PaLM
ACCUMULATED = 4  # batches that share a normaliser, in num_items
PADDING = 100  # in valid_classes, one class of so many is padding, and at least one
PADDED = 20.0  # logit of padding: e^20 is more than all others together
TARGETS = {"target_probs:2": 2, "target_probs:8": 8}  # indices a row: MixUp, and the top of a teacher

SCALARS = {"logit_scale": LOGIT_SCALE, "temperature": TEMPERATURE, "softcap": SOFTCAP, "z_loss": Z_LOSS}
OWN = ("row_weight", "num_items", "valid_classes", *TARGETS, *SCALARS, "stats")


OWN_OPS = ("selective_log_softmax",)


def is_own(cell: Cell) -> bool:
    """Whether F lacks the op or its option."""
    return cell.op in OWN_OPS or cell.option in OWN


class RowStats(NamedTuple):
    """Row statistics, in the order of softkern.RowStats, which is not known where torch is timed."""

    log_prob: Any
    lse: Any
    entropy: Any
    argmax: Any
    correct: Any


def valid_classes(cell: Cell) -> int:
    """How many classes are no padding."""
    return cell.classes - (max(1, cell.classes // PADDING) if cell.option == "valid_classes" else 0)


def keywords(cell: Cell, weight: Any) -> dict[str, Any]:
    """The keywords of the cell's option. `weight`: the operand of `row_weight`, `num_items` and
    `target_probs`."""
    if cell.option in SCALARS:
        return {cell.option: SCALARS[cell.option]}
    if cell.option == "valid_classes":
        return {cell.option: valid_classes(cell)}
    if cell.option == "stats":
        return {cell.option: RowStats._fields}
    return {cell.option.partition(":")[0]: weight}


def bytes_beside(cell: Cell) -> int:
    """Bytes that the option adds to those of the plain loss."""
    per_row = 0
    if cell.option == "num_items":
        return 8  # int64
    if cell.option == "row_weight":
        per_row = cell.item_size
    elif cell.option == "valid_classes":
        per_row = -(cell.classes - valid_classes(cell)) * cell.item_size  # which are not read
    elif cell.option in TARGETS:
        count = TARGETS[cell.option]
        per_row = count * (8 + cell.item_size) - 8  # instead of one index
    elif cell.option == "stats":
        per_row = 3 * max(4, cell.item_size) + 8 + 1  # three in the compute dtype, int64, bool
    return per_row * cell.rows
