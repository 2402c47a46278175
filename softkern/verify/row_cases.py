# SPDX-License-Identifier: Apache-2.0
"""The part of the matrix that F does not have: softkern's own options, statistics and their functions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from softkern.verify import inputs
from softkern.verify.case import NAMES, Case, rows_of
from softkern.verify.rows import STATISTICS

CAPPED: dict[str, Any] = {"logit_scale": 1.25, "softcap": 4.0, "temperature": 0.7}
# Options alone, then combined with each other and with F's.
KINDS: tuple[dict[str, Any], ...] = (
    {"row_weight": "float32"},
    {"num_items": "number"},
    {"num_items": "float32"},
    {"padding": 3},
    {"indices": 2},
    {"logit_scale": 0.4},
    {"temperature": 1.7},
    {"softcap": 4.0},
    {"z_loss": 0.25},
    CAPPED,
    {"row_weight": "own", "weight": True, "ignore": 2, "smoothing": 0.1},
    {"num_items": "int64", "ignore": -100, "z_loss": 0.25, "padding": 1},
    {
        "weight": True,
        "ignore": 0,
        "smoothing": 0.3,
        "row_weight": "float32",
        "z_loss": 0.25,
        "padding": 2,
        **CAPPED,
    },
    {"probs": True, "smoothing": 0.1, "row_weight": "own", "z_loss": 0.25, "padding": 2, "softcap": 4.0},
    {"indices": 5, "weight": True, "smoothing": 0.1, "row_weight": "own", "z_loss": 0.25, **CAPPED},
)
MIXED = KINDS[-3]
WITHOUT_TARGET = ("lse", "entropy", "argmax")  # the statistics of targets that are not one index a row
FEW, QUICK_CLASSES = (1, 2, 10, 33, 1000, 70001), (1, 10, 33, 1000)


def _case(group: str, op: str, dtype: str, shape: tuple[int, ...], **fields: Any) -> Case:
    if fields.get("row_weight") == "own":
        fields["row_weight"] = dtype
    return Case(group, op, dtype, shape, **fields)


def row_matrix(quick: bool) -> Iterator[Case]:
    """All cases; quick: all groups, with fewer sizes and combinations."""
    for part in (_options, _statistics, _values, _layouts, _functions):
        yield from part(quick)


def _options(quick: bool) -> Iterator[Case]:
    for dtype, reduction, (i, kind) in product(NAMES, inputs.REDUCTIONS, enumerate(KINDS)):
        if quick and inputs.REDUCTIONS[i % 3] != reduction and "num_items" not in kind:
            continue
        for c in (10,) if quick else (10, 65):
            for inplace in (False, True):
                upstream = "random" if inplace else "ones"
                yield _case(
                    "own options",
                    "cross_entropy",
                    dtype,
                    (37, c),
                    reduction=reduction,
                    upstream=upstream,
                    inplace=inplace,
                    **kind,
                )


def _statistics(quick: bool) -> Iterator[Case]:
    for dtype, c in product(NAMES, QUICK_CLASSES if quick else FEW):
        for kind in ({}, {"ignore": 1, "z_loss": 0.25, **CAPPED}):
            yield _case("statistics", "cross_entropy", dtype, (rows_of(c), c), stats=STATISTICS, **kind)
    for dtype, kind in product(NAMES, (KINDS[3], *KINDS[10:])):
        names = WITHOUT_TARGET if "probs" in kind or "indices" in kind else STATISTICS
        reduction = "mean" if "num_items" in kind else "sum"
        yield _case(
            "statistics",
            "cross_entropy",
            dtype,
            (37, 65),
            stats=names,
            reduction=reduction,
            upstream="random",
            **kind,
        )
    outputs = ("cross_entropy", "log_prob", "lse", "entropy")
    for dtype, name in product(("float32",) if quick else NAMES, outputs):
        others = tuple(other for other in outputs if other != name)
        for still in ((name,), others):  # all upstream gradients but one, and one alone
            kind = {"stats": outputs[1:], "upstream": "random", "still": still, **CAPPED}
            yield _case("statistics", "cross_entropy", dtype, (37, 33), **kind)


def _values(quick: bool) -> Iterator[Case]:
    """Difficult logits, also those that a cap saturates."""
    kinds: tuple[dict[str, Any], ...] = ({}, {"z_loss": 1e-4}, {"softcap": 30.0})
    for dtype, c, kind in product(NAMES, (100,) if quick else (10, 100, 1000), kinds):
        for values in inputs.HURTING:
            if dtype == "float16" and "1e6" in values.__name__:
                continue  # float16 has no such numbers
            if quick and kind and dtype != "float32":
                continue
            names = STATISTICS[:3] if "softcap" in kind else STATISTICS  # a cap makes maxima equal
            fields = {"values": values.__name__, "stats": names, **kind}
            yield _case("statistics of hard values", "cross_entropy", dtype, (rows_of(c), c), **fields)
    for dtype, kind in product(NAMES, (*kinds, {"temperature": 0.5}, {"smoothing": 0.1}, {"ignore": 1})):
        fields = {"values": "masked", "stats": STATISTICS, "upstream": "random", **kind}
        yield _case("statistics of hard values", "cross_entropy", dtype, (37, 33), **fields)


def _layouts(quick: bool) -> Iterator[Case]:
    for dtype, layout in product(NAMES, inputs.LAYOUTS):
        for shape, kind in (((2, 10, 5, 7), MIXED), ((2, 40, 5, 7), KINDS[-2]), ((5, 33, 9), KINDS[-1])):
            names = STATISTICS if kind is MIXED else WITHOUT_TARGET
            yield _case(
                "own options, layouts", "cross_entropy", dtype, shape, layout=layout, stats=names, **kind
            )
            if quick:
                break


def _functions(quick: bool) -> Iterator[Case]:
    shapes = ((3, 5, 33),) if quick else ((10,), (37, 10), (3, 5, 33), (7, 1000), (2, 70001))
    for dtype, shape, indices, kind in product(NAMES, shapes, (0, 1, 4), ({}, CAPPED)):
        for stats in ((), ("entropy",)):
            yield _case(
                "log-probabilities, entropies",
                "selective_log_softmax",
                dtype,
                shape,
                indices=indices,
                stats=stats,
                upstream="random",
                **kind,
            )
    for dtype, shape, kind in product(NAMES, shapes, ({}, CAPPED)):
        for dim in (-1,) if quick else {-1, 0, len(shape) // 2}:
            yield _case(
                "log-probabilities, entropies",
                "entropy_from_logits",
                dtype,
                shape,
                dim=dim,
                upstream="random",
                **kind,
            )
    for dtype, layout in product(NAMES, inputs.LAYOUTS):
        yield _case(
            "log-probabilities, entropies",
            "selective_log_softmax",
            dtype,
            (4, 6, 40),
            layout=layout,
            stats=("entropy",),
            upstream="random",
            target="int32",
        )
