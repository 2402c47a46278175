# SPDX-License-Identifier: Apache-2.0
"""The options of cross_entropy as the ops take them: the list of ``csrc/common/options.h`` for Python.

``tests`` compare the two, and the op's schema, field by field."""

from __future__ import annotations

from typing import NamedTuple


class CrossEntropyOptions(NamedTuple):
    """Handed on as ``*options``; the dispatcher leaves out those at the end that equal their defaults."""

    reduction: int = 1  # of torch.nn._reduction.get_enum
    ignore_index: int = -100
    label_smoothing: float = 0.0

    @property
    def of_torch(self) -> tuple[int, int, float]:
        """Those that torch's loss has, in its order."""
        return self[:3]
