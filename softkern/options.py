# SPDX-License-Identifier: Apache-2.0
"""The options of the ops: the lists of ``csrc/common/options.h`` for Python.

``tests`` compare the two, and the ops' schemas, field by field."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, TypedDict

if TYPE_CHECKING:
    from torch import Tensor


class CrossEntropyOptions(NamedTuple):
    """Handed on as ``*options``; the dispatcher leaves out those at the end that equal their defaults."""

    reduction: int = 1  # of torch.nn._reduction.get_enum
    ignore_index: int = -100
    label_smoothing: float = 0.0

    @property
    def of_torch(self) -> tuple[int, int, float]:
        """Those that torch's loss has, in its order."""
        return self[:3]


class RowOptions(NamedTuple):
    """The options of row_losses: those of cross_entropy, then softkern's own."""

    reduction: int = 1
    ignore_index: int = -100
    label_smoothing: float = 0.0
    valid_classes: int = -1  # all classes
    logit_scale: float = 1.0
    softcap: float = 0.0  # none
    temperature: float = 1.0
    z_loss: float = 0.0
    outputs: int = 1  # a sum of OUTPUTS


class LinearOptions(NamedTuple):
    """The options of linear_cross_entropy: those of row_losses, then those of the plan."""

    reduction: int = 1
    ignore_index: int = -100
    label_smoothing: float = 0.0
    valid_classes: int = -1
    logit_scale: float = 1.0
    softcap: float = 0.0
    temperature: float = 1.0
    z_loss: float = 0.0
    outputs: int = 1
    plan: int = 0  # an index of PLANS
    max_bytes: int = -1  # no limit
    chunk_rows: int = 0  # the plan chooses
    wide_loss: int = 0  # 1: the loss has the compute dtype

    @property
    def of_rows(self) -> RowOptions:
        return RowOptions._make(self[: len(RowOptions._fields)])


PLANS = ("auto", "fast", "lean", "reference")

# The results of row_losses in their order, as bits of its option `outputs`.
OUTPUTS = {"loss": 1, "log_prob": 2, "lse": 4, "entropy": 8, "argmax": 16, "correct": 32}


class OwnKeywords(TypedDict, total=False):
    """The keywords of `cross_entropy` that F lacks, but for `stats` and `inplace_backward`."""

    row_weight: Tensor | None
    num_items: float | Tensor | None
    valid_classes: int | None
    target_probs: Tensor | None
    logit_scale: float
    softcap: float | None
    temperature: float
    z_loss: float


class RowKeywords(OwnKeywords, total=False):
    """The same with `inplace_backward`."""

    inplace_backward: bool


class StatsKeywords(OwnKeywords, total=False):
    """The same with `stats`."""

    stats: Iterable[str]
