# SPDX-License-Identifier: Apache-2.0
"""Checks other than the distance from an answer: exceptions, empty tensors, bits that must not change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import softkern
from softkern.verify.bounds import as_words, same_bits
from softkern.verify.case import NAMES, OPS, SOFTMAXES, Case, Problem, build, rows_of
from softkern.verify.inputs import OPTIONS
from softkern.verify.judge import results, upstream_of
from softkern.verify.refusals import Outcome, attempt, out_of_range, refused_options
from softkern.verify.row_cases import MIXED, WITHOUT_TARGET
from softkern.verify.rows import STATISTICS

# Calls with softkern's own options.
OWN: tuple[dict[str, Any], ...] = (
    {**MIXED, "stats": STATISTICS},
    {"padding": 1, "indices": 2, "row_weight": "float32", "softcap": 4.0, "stats": WITHOUT_TARGET},
)
PER_ROW = ("row_weight", "target_probs")


def edges(device: str, quick: bool, threads: int | None) -> Iterator[Outcome]:
    """All these checks, on the active backend.

    `threads`: the number of CPU threads in use; None if the backend does not share its work among threads.
    """
    if device == "cpu":  # a wrong target stops a GPU, with torch and with softkern
        yield from out_of_range(device)
    yield from refused_options(device)
    yield from _empty(device)
    yield from _rows(device, quick)
    if threads is not None:
        yield from _threads(quick, max(threads, 2))


def _empty(device: str) -> Iterator[Outcome]:
    """Values and gradients have to equal torch's exactly: almost nothing is computed."""
    for name, op, shape in product(NAMES, SOFTMAXES, ((), (0,), (0, 3), (3, 0), (2, 0, 4))):
        case = Case("empty and 0-d", op, name, shape, dim=-1)
        yield attempt(case.group, op, name, case, partial(_as_torch, case, device))
    kinds: tuple[dict[str, Any], ...] = ({}, {"smoothing": 0.1}, {"probs": True})
    for name, shape, kind in product(NAMES, ((0, 3), (2, 3, 0), (0, 40, 2)), kinds):
        for reduction in ("none", "mean", "sum"):
            case = Case("empty and 0-d", "cross_entropy", name, shape, reduction=reduction, **kind)
            yield attempt(case.group, case.op, name, case, partial(_as_torch, case, device))


def _as_torch(case: Case, device: str) -> str:
    problem = build(case, device)
    ours, theirs = results(softkern, case, problem), results(F, case, problem)
    for quantity, a in ours.items():
        b = theirs[quantity]
        if a.dtype != b.dtype or not (a.shape == b.shape and torch.equal(a.nan_to_num(7), b.nan_to_num(7))):
            return f"{quantity}: expected {b!r}, got {a!r}"
    return ""


def difference(ours: dict[str, Tensor], others: dict[str, Tensor], whose: str) -> str:
    """Why two sets of results have different bits; empty if they have the same."""
    for quantity, a in ours.items():
        b = others[quantity]
        if a.dtype != b.dtype or a.shape != b.shape:
            return f"{quantity}: expected {b.dtype} {tuple(b.shape)}, got {a.dtype} {tuple(a.shape)}"
        if not torch.equal(*map(as_words, (a, b))) and not bool((same := same_bits(a, b)).all()):
            worst = int((~same).int().argmax())
            where = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), same.shape))
            expected, got = b.reshape(-1)[worst].item(), a.reshape(-1)[worst].item()
            return f"{quantity}: bits other than {whose}, at {where}: expected {expected!r}, got {got!r}"
    return ""


def _rows(device: str, quick: bool) -> Iterator[Outcome]:
    """A row has the same bits alone, at any place of a batch, and in every run."""
    kinds: tuple[dict[str, Any], ...] = ({}, {"weight": True, "smoothing": 0.3}, OPTIONS[-1])
    for name, op, c in product(NAMES, OPS, (10, 33) if quick else (3, 10, 33, 1000)):
        for kind in kinds if op == "cross_entropy" else kinds[:1]:
            case = Case("a row alone", op, name, (rows_of(c), c), upstream="random", **kind)
            yield attempt(case.group, op, name, case, partial(_row_alone, case, device))
        for kind in OWN if op == "cross_entropy" else ():
            case = Case("a row alone", op, name, (rows_of(c), c), upstream="random", **kind)
            yield attempt(case.group, op, name, case, partial(_row_alone, case, device))


def _row_alone(case: Case, device: str) -> str:
    problem = build(case, device)
    whole = results(softkern, case, problem)
    if why := difference(results(softkern, case, problem), whole, "those of the run before"):
        return why
    n = len(problem.x)
    for i in (0, 1, 17, n - 1):
        part = slice(i, i + 1)
        target = None if problem.target is None else problem.target[part]
        kwargs = {k: v[part] if k in PER_ROW else v for k, v in (problem.kwargs or {}).items()}
        row = Problem(problem.x[part], problem.dim, target, kwargs)
        upstream = {name: g[part] for name, g in upstream_of(case, whole).items()}
        alone = results(softkern, case, row, upstream)
        if why := difference(alone, {k: v[part] for k, v in whole.items()}, f"those of row {i} of the batch"):
            return why
    return ""


def _threads(quick: bool, threads: int) -> Iterator[Outcome]:
    """At least 160,000 logits, so that two threads share the work."""
    shapes = ((4099, 40),) if quick else ((4099, 40), (1500, 10, 13), (7, 30011))
    for name, op, shape in product(NAMES, OPS, shapes):
        case = Case("threads", op, name, shape, upstream="random")
        yield attempt(case.group, op, name, case, partial(_one_and_more, case, threads))
        if op == "cross_entropy":
            mean = replace(case, reduction="mean", weight=True, smoothing=0.1)
            own = replace(mean, **OWN[0])
            for reduced in (mean, own):
                yield attempt(case.group, op, name, reduced, partial(_one_and_more, reduced, threads))


def _one_and_more(case: Case, threads: int) -> str:
    problem, before = build(case), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = results(softkern, case, problem)
        torch.set_num_threads(threads)
        return difference(results(softkern, case, problem), one, "those of one thread")
    finally:
        torch.set_num_threads(before)
