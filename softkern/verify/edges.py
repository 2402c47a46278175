# SPDX-License-Identifier: Apache-2.0
"""Checks other than the distance from an answer: exceptions, empty tensors, bits that must not change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import softkern
from softkern.verify.bounds import as_words, same_bits
from softkern.verify.cases import NAMES, OPS, SOFTMAXES, Case, Problem, build, rows_of
from softkern.verify.inputs import OPTIONS, logits
from softkern.verify.judge import results, upstream_of


class Outcome(NamedTuple):
    group: str
    op: str
    dtype: str
    subject: str  # the call
    why: str  # what is wrong; empty if the check holds


def _try(group: str, op: str, dtype: str, subject: object, check: Callable[[], str]) -> Outcome:
    try:
        why = check()
    except Exception as error:
        why = f"raised {type(error).__name__}: {error}"
    return Outcome(group, op, dtype, str(subject), why)


def edges(device: str, quick: bool, threads: int | None) -> Iterator[Outcome]:
    """All these checks, on the active backend.

    `threads`: the number of CPU threads in use; None if the backend does not share its work among threads.
    """
    if device == "cpu":  # a wrong target stops a GPU, with torch and with softkern
        yield from _out_of_range(device)
    yield from _empty(device)
    yield from _rows(device, quick)
    if threads is not None:
        yield from _threads(quick, max(threads, 2))


def _out_of_range(device: str) -> Iterator[Outcome]:
    targets = (
        (torch.int64, 10),
        (torch.int64, -1),
        (torch.int64, 2**40),
        (torch.int32, -7),
        (torch.uint8, 200),
    )
    shapes: tuple[tuple[int, ...], ...] = ((10,), (4, 10), (2, 10, 3, 4))
    every_options: tuple[dict[str, Any], ...] = ({}, {"label_smoothing": 0.1, "ignore_index": 3})
    for name, shape, (kind, wrong), inplace in product(NAMES, shapes, targets, (False, True)):
        for options in every_options:
            call = f"cross_entropy(logits{shape}, target with {wrong}, {kind}, {inplace=}, {options})"

            def check(
                name: str = name,
                shape: tuple[int, ...] = shape,
                kind: torch.dtype = kind,
                wrong: int = wrong,
                inplace: bool = inplace,
                options: dict[str, Any] = options,
            ) -> str:
                leaf = logits(*shape, dtype=NAMES[name]).to(device).requires_grad_()
                x = leaf.clone()
                target = torch.zeros(shape[:1] + shape[2:] if len(shape) > 1 else (), dtype=kind)
                target.view(-1)[-1] = wrong
                return _raises_before_writing(x, target.to(device), {**options, "inplace_backward": inplace})

            yield _try("targets out of range", "cross_entropy", name, call, check)


def _raises_before_writing(x: Tensor, target: Tensor, kwargs: dict[str, Any]) -> str:
    before, version = x.detach().clone(), x._version
    their_kwargs = {k: v for k, v in kwargs.items() if k != "inplace_backward"}
    try:
        F.cross_entropy(before, target.long(), **their_kwargs)
    except Exception as error:
        theirs = error
    else:
        return "torch takes this target"
    try:
        softkern.cross_entropy(x, target, **kwargs)
    except IndexError as error:
        if str(error) != str(theirs):
            return f"expected IndexError({str(theirs)!r}), got IndexError({str(error)!r})"
    except Exception as error:
        return f"expected {theirs!r}, got {error!r}"
    else:
        return f"expected {theirs!r}, got a loss"
    if not bool(same_bits(x.cpu(), before.cpu()).all()) or x._version != version:
        return "the logits were written to before the target was refused"
    return ""


def _empty(device: str) -> Iterator[Outcome]:
    """Values and gradients have to equal torch's exactly: almost nothing is computed."""
    for name, op, shape in product(NAMES, SOFTMAXES, ((), (0,), (0, 3), (3, 0), (2, 0, 4))):
        case = Case("empty and 0-d", op, name, shape, dim=-1)
        yield _try(case.group, op, name, case, partial(_as_torch, case, device))
    kinds: tuple[dict[str, Any], ...] = ({}, {"smoothing": 0.1}, {"probs": True})
    for name, shape, kind in product(NAMES, ((0, 3), (2, 3, 0), (0, 40, 2)), kinds):
        for reduction in ("none", "mean", "sum"):
            case = Case("empty and 0-d", "cross_entropy", name, shape, reduction=reduction, **kind)
            yield _try(case.group, case.op, name, case, partial(_as_torch, case, device))


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
            yield _try(case.group, op, name, case, partial(_row_alone, case, device))


def _row_alone(case: Case, device: str) -> str:
    problem = build(case, device)
    whole = results(softkern, case, problem)
    if why := difference(results(softkern, case, problem), whole, "those of the run before"):
        return why
    n = len(problem.x)
    for i in (0, 1, 17, n - 1):
        part = slice(i, i + 1)
        target = None if problem.target is None else problem.target[part]
        row = Problem(problem.x[part], problem.dim, target, problem.kwargs)
        alone = results(softkern, case, row, upstream_of(case, whole[case.op])[part])
        if why := difference(alone, {k: v[part] for k, v in whole.items()}, f"those of row {i} of the batch"):
            return why
    return ""


def _threads(quick: bool, threads: int) -> Iterator[Outcome]:
    """At least 160,000 logits, so that two threads share the work."""
    shapes = ((4099, 40),) if quick else ((4099, 40), (1500, 10, 13), (7, 30011))
    for name, op, shape in product(NAMES, OPS, shapes):
        case = Case("threads", op, name, shape, upstream="random")
        yield _try(case.group, op, name, case, partial(_one_and_more, case, threads))
        if op == "cross_entropy":
            mean = replace(case, reduction="mean", weight=True, smoothing=0.1)
            yield _try(case.group, op, name, mean, partial(_one_and_more, mean, threads))


def _one_and_more(case: Case, threads: int) -> str:
    problem, before = build(case), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = results(softkern, case, problem)
        torch.set_num_threads(threads)
        return difference(results(softkern, case, problem), one, "those of one thread")
    finally:
        torch.set_num_threads(before)
