# SPDX-License-Identifier: Apache-2.0
"""The inputs of the tests: sizes are here, values and layouts come from softkern.verify."""

from __future__ import annotations

import inspect

import torch

from softkern.verify.inputs import HURTING, LAYOUTS, UPSTREAM, logits, special_rows, upstream
from softkern.verify.oracle import oracle_z

__all__ = [
    "CLASSES",
    "HALVES",
    "HURTING",
    "LAYOUTS",
    "UPSTREAM",
    "logits",
    "name",
    "oracle_z",
    "special_rows",
    "upstream",
]

# Around every power of two a vector or an unrolled block could end at, and some far from all.
CLASSES = (1, 2, 3, 7, 10, 15, 16, 17, 31, 33, 63, 64, 65, 100, 1000, 1025, 4097)

HALVES = (torch.bfloat16, torch.float16)


def name(value) -> str | None:
    """An id for pytest: float32 and not torch.float32, shapes as 2x3."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, tuple):
        return "x".join(map(str, value)) or "0d"
    if isinstance(value, dict):
        return "-".join(f"{k}={v}" for k, v in value.items()) or "plain"
    return value.__name__ if inspect.isfunction(value) else None
