# SPDX-License-Identifier: Apache-2.0
"""The matrix: ops x dtypes x options x layouts x class counts x difficult values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from softkern.verify import inputs
from softkern.verify.bounds import DTYPES

SOFTMAXES = ("softmax", "log_softmax")
OPS = (*SOFTMAXES, "cross_entropy")
NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
HALVES = ("bfloat16", "float16")

FEW = (1, 2, 3, 10, 32)  # one row per lane
MANY = (33, 100, 1000, 32000, 70001)  # one row at a time, or one row per lane with sums in the same order
QUICK_CLASSES = (1, 3, 32, 33, 1000)


@dataclass(frozen=True)
class Case:
    """One call and its backward pass; `str` gives the expression that makes the case.

    Attributes:
        group: the part of the matrix that it belongs to.
        op: "softmax", "log_softmax" or "cross_entropy".
        dtype: dtype of logits, weights and class probabilities, for example "float32".
        shape: shape of the logits.
        values: "normal", "special" (NaN and infinities) or one of `inputs.HURTING`.
        layout: one of `inputs.LAYOUTS`, for the logits and the class probabilities.
        dim: dim of the softmaxes; cross-entropy uses the dimension of its classes.
        reduction: reduction of cross-entropy; the options below are cross-entropy's, too.
        weight: whether classes are weighted.
        ignore: `ignore_index`; a third of the rows have it as target.
        smoothing: `label_smoothing`.
        probs: class probabilities instead of class indices.
        target: dtype of class indices.
        inplace: `inplace_backward`.
        upstream: one of `inputs.UPSTREAM`, the gradient that backward starts from.
        seed: seed of the logits.
    """

    group: str
    op: str
    dtype: str
    shape: tuple[int, ...]
    values: str = "normal"
    layout: str = "clone"
    dim: int = 1
    reduction: str = "none"
    weight: bool = False
    ignore: int | None = None
    smoothing: float = 0.0
    probs: bool = False
    target: str = "int64"
    inplace: bool = False
    upstream: str = "ones"
    seed: int = 0

    def __str__(self) -> str:
        given = ((f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default)
        return f"Case({', '.join(f'{name}={value!r}' for name, value in given)})"

    @property
    def plain(self) -> bool:
        """Whether the documentation states its errors in ulp."""
        if self.values == "special":
            return False
        optioned = self.weight or self.probs or self.smoothing or self.ignore is not None
        return self.op in SOFTMAXES or not (optioned or self.reduction != "none" or self.upstream != "ones")


@dataclass(frozen=True)
class Problem:
    """The arguments of a case's call."""

    x: Tensor
    dim: int
    target: Tensor | None = None
    kwargs: dict[str, Any] | None = None


def build(case: Case, device: str = "cpu") -> Problem:
    """The tensors of a case; the same on every call."""
    dtype, place = NAMES[case.dtype], inputs.LAYOUTS[case.layout]
    x = _logits(case, dtype)
    shape = tuple(x.shape)
    if case.op in SOFTMAXES:
        return Problem(place(x.to(device)), case.dim)
    _, target, kwargs = inputs.problem(
        shape, dtype, weight=case.weight, ignore=case.ignore, smoothing=case.smoothing, probs=case.probs
    )
    kwargs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in kwargs.items()}
    dim = min(1, len(shape) - 1)
    if case.probs:
        return Problem(place(x.to(device)), dim, place(target.to(device)), kwargs)
    if case.values != "normal":  # every other row is confident and right, as in a trained classifier
        likely = (torch.arange(target.numel()).reshape(target.shape) % 2 == 0) & (target != case.ignore)
        target = torch.where(likely, x.argmax(dim), target)
    return Problem(place(x.to(device)), dim, target.to(device, getattr(torch, case.target)), kwargs)


def _logits(case: Case, dtype: torch.dtype) -> Tensor:
    if case.values == "normal":
        return inputs.logits(*case.shape, dtype=dtype, seed=case.seed)
    if case.values == "special":
        return inputs.special_rows(case.shape[1], dtype)
    rows, classes = case.shape
    return next(f for f in inputs.HURTING if f.__name__ == case.values)(rows, classes, dtype)


def rows_of(classes: int) -> int:
    """A number of rows that no number of lanes divides; smaller for long rows."""
    return 133 if classes <= 100 else 37 if classes <= 1000 else 3


def matrix(quick: bool) -> Iterator[Case]:
    """All cases; quick: all groups, with fewer sizes and combinations."""
    for part in (_classes, _values, _layouts, _options, _upstream, _inplace, _special, _sums):
        yield from part(quick)


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
