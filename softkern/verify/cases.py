# SPDX-License-Identifier: Apache-2.0
"""The matrix: ops x dtypes x options x layouts x class counts x difficult values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from softkern.verify import inputs
from softkern.verify.case import NAMES, OPS, SOFTMAXES, Case, rows_of
from softkern.verify.linear_cases import linear_matrix
from softkern.verify.row_cases import row_matrix

HALVES = ("bfloat16", "float16")

FEW = (1, 2, 3, 10, 32)  # one row per lane
MANY = (33, 100, 1000, 32000, 70001)  # one row at a time, or one row per lane with sums in the same order
QUICK_CLASSES = (1, 3, 32, 33, 1000)


def matrix(quick: bool) -> Iterator[Case]:
    """All cases; quick: all groups, with fewer sizes and combinations."""
    for part in (_classes, _values, _layouts, _options, _upstream, _inplace, _special, _sums, row_matrix):
        yield from part(quick)
    yield from linear_matrix(quick)


def _classes(quick: bool) -> Iterator[Case]:
    for op, dtype, c in product(OPS, NAMES, QUICK_CLASSES if quick else (*FEW, *MANY)):
        upstream = "ones" if op == "cross_entropy" else "random"
        yield Case("class counts", op, dtype, (rows_of(c), c), upstream=upstream)


def _values(quick: bool) -> Iterator[Case]:
    for op, dtype, c in product(OPS, NAMES, (100,) if quick else (10, 100, 1000)):
        for values in inputs.HURTING:
            if dtype == "float16" and "1e6" in values.__name__:
                continue  # float16 has no such numbers
            yield Case("values", op, dtype, (rows_of(c), c), values=values.__name__)


def _layouts(quick: bool) -> Iterator[Case]:
    shapes = [(37, 65), (2, 10, 5, 7)] if quick else [(37, 10), (37, 65), (5, 33, 9), (2, 10, 5, 7)]
    for op, dtype, shape, layout in product(OPS, NAMES, shapes, inputs.LAYOUTS):
        dims = range(len(shape)) if op != "cross_entropy" and layout == "clone" else (1,)
        for dim in dims:
            yield Case("layouts", op, dtype, shape, layout=layout, dim=dim)
    if not quick:
        for dtype, layout in product(NAMES, inputs.LAYOUTS):
            yield Case("layouts", "cross_entropy", dtype, (2, 40, 5, 7), layout=layout, probs=True)


def _options(quick: bool) -> Iterator[Case]:
    kinds = (inputs.OPTIONS[6], *inputs.OPTIONS[5::6]) if quick else inputs.OPTIONS
    for dtype, reduction, c in product(NAMES, inputs.REDUCTIONS, (10, 65)):
        for kind in kinds:
            yield Case("options", "cross_entropy", dtype, (37, c), reduction=reduction, **kind)
        if quick and c > 10:
            continue
        for target in ("int32", "uint8"):
            yield Case("options", "cross_entropy", dtype, (37, c), reduction=reduction, target=target)
        yield Case("options", "cross_entropy", dtype, (c,), reduction=reduction)


def _upstream(quick: bool) -> Iterator[Case]:
    for op, dtype, upstream, c in product(OPS, NAMES, inputs.UPSTREAM, (33,) if quick else (10, 33, 1000)):
        for reduction in inputs.REDUCTIONS if op == "cross_entropy" else ("none",):
            yield Case("upstream", op, dtype, (rows_of(c), c), reduction=reduction, upstream=upstream)


def _inplace(quick: bool) -> Iterator[Case]:
    upstreams = ("random",) if quick else ("ones", "random")
    shapes = (
        [(37, 10), (2, 65, 5, 7)] if quick else [(37, 10), (37, 65), (7, 5003), (2, 10, 5, 7), (2, 65, 5, 7)]
    )
    combinations = product(NAMES, inputs.REDUCTIONS, shapes, ("clone", "transposed"), upstreams)
    for dtype, reduction, shape, layout, upstream in combinations:
        yield Case(
            "inplace_backward",
            "cross_entropy",
            dtype,
            shape,
            layout=layout,
            reduction=reduction,
            weight=True,
            ignore=1,
            upstream=upstream,
            inplace=True,
        )


def _special(quick: bool) -> Iterator[Case]:
    for op, dtype, c in product(OPS, NAMES, (10, 33) if quick else (2, 10, 33, 1000)):
        case = Case("NaN and infinities", op, dtype, (0, c), values="special")
        yield case
        if op == "cross_entropy":
            yield replace(case, ignore=1)  # some of these rows are ignored
            yield replace(case, smoothing=0.1, ignore=-100, weight=True)
            yield replace(case, reduction="mean")


def _sums(quick: bool) -> Iterator[Case]:
    for dtype, reduction in product(HALVES, ("mean", "sum")):
        yield Case("16-bit sums", "cross_entropy", dtype, (70000, 2), reduction=reduction)
    for op, dtype in product(SOFTMAXES, HALVES):
        yield Case("16-bit sums", op, dtype, (1, 131072), values="equal")
