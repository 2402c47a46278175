# SPDX-License-Identifier: Apache-2.0
"""The part of the matrix with a linear layer before the loss."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from softkern.verify.case import LINEAR, NAMES, Case
from softkern.verify.row_cases import CAPPED, WITHOUT_TARGET
from softkern.verify.rows import STATISTICS

GROUP = "linear layer and loss"
PLANS = ("fast", "lean")
# Each kind of target, with options; "none" and statistics have upstream gradients of their own.
KINDS: tuple[dict[str, Any], ...] = (
    {"bias": True},
    {"bias": True, "weight": True, "ignore": 2, "smoothing": 0.1, "upstream": "random"},
    {"ignore": -100, "reduction": "none", "upstream": "random", "row_weight": "float32"},
    {"probs": True, "smoothing": 0.1, "padding": 2},
    {"indices": 3, "reduction": "sum", **CAPPED},
    {"bias": True, "num_items": "float32", "z_loss": 0.25, "padding": 3, "layout": "transposed"},
    {"stats": STATISTICS, "upstream": "random", "softcap": 8.0},
    {"probs": True, "stats": WITHOUT_TARGET, "bias": True},
)


def linear_matrix(quick: bool) -> Iterator[Case]:
    """Chunks of few rows: the sums over all of them must not lose digits."""
    sizes = ((37, 65, 24),) if quick else ((37, 65, 24), (133, 10, 7), (133, 1000, 64))
    for dtype, plan, kind, (rows, classes, features) in product(NAMES, PLANS, KINDS, sizes):
        fields = {"reduction": "mean", **kind}
        yield Case(
            GROUP, LINEAR, dtype, (rows, classes), features=features, plan=plan, chunk=rows // 12, **fields
        )
