# SPDX-License-Identifier: Apache-2.0
"""Calls that have to raise: targets out of range, and bad values of softkern's own options."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import softkern
from softkern.verify.bounds import same_bits
from softkern.verify.case import NAMES
from softkern.verify.inputs import logits

# For logits (4, 10) and four class indices.
BAD: tuple[tuple[str, object], ...] = (
    ("softcap", 0.0),
    ("softcap", -1.0),
    ("softcap", math.nan),
    ("temperature", 0.0),
    ("temperature", -2.0),
    ("logit_scale", math.inf),
    ("z_loss", math.nan),
    ("valid_classes", 0),
    ("valid_classes", 11),
    ("row_weight", torch.ones(3)),
    ("row_weight", torch.ones(4, dtype=torch.int64)),
    ("num_items", torch.ones(2)),
    ("target_probs", torch.ones(4)),
    ("stats", ("loss",)),
)


class Outcome(NamedTuple):
    group: str
    op: str
    dtype: str
    subject: str  # the call
    why: str  # what is wrong; empty if the check holds


def attempt(group: str, op: str, dtype: str, subject: object, check: Callable[[], str]) -> Outcome:
    try:
        why = check()
    except Exception as error:
        why = f"raised {type(error).__name__}: {error}"
    return Outcome(group, op, dtype, str(subject), why)


def out_of_range(device: str) -> Iterator[Outcome]:
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

            yield attempt("targets out of range", "cross_entropy", name, call, check)


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
    return _written(x, before, version)


def _written(x: Tensor, before: Tensor, version: int) -> str:
    if not bool(same_bits(x.cpu(), before.cpu()).all()) or x._version != version:
        return "the logits were written to before the call was refused"
    return ""


def refused_options(device: str) -> Iterator[Outcome]:
    """Bad values of softkern's own options: an error that names the option, before anything is written."""
    refused = (ValueError, RuntimeError, TypeError)
    for name, (option, value) in product(NAMES, BAD):
        call = f"cross_entropy(logits(4, 10), target, {option}={value!r})"
        check = partial(_names_the_option, option, value, NAMES[name], device, refused)
        yield attempt("own options refused", "cross_entropy", name, call, check)
    if device == "cpu":  # as above
        for name in NAMES:
            check = partial(_names_the_option, "valid_classes", 9, NAMES[name], device, (IndexError,))
            call = "cross_entropy(logits(4, 10), target with 9, valid_classes=9)"
            yield attempt("own options refused", "cross_entropy", name, call, check)


def _names_the_option(
    option: str, value: object, dtype: torch.dtype, device: str, errors: tuple[type[Exception], ...]
) -> str:
    leaf = logits(4, 10, dtype=dtype).to(device).requires_grad_()
    x, target = leaf.clone(), torch.arange(6, 10, device=device)
    if isinstance(value, Tensor):
        value = value.to(device)
    before, version = x.detach().clone(), x._version
    try:
        call: Callable[..., object] = softkern.cross_entropy
        call(x, target, **{option: value}, inplace_backward=True)
    except errors as error:
        words = "Target 9 is out of bounds" if errors == (IndexError,) else option
        if words not in str(error):
            return f"expected an error about {words!r}, got {error!r}"
    except Exception as error:
        return f"expected {errors[0].__name__}, got {error!r}"
    else:
        return f"expected {errors[0].__name__}, got a loss"
    return _written(x, before, version)
