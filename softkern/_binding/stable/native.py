# SPDX-License-Identifier: Apache-2.0
"""Functions of the library that take no tensors, by ctypes (``csrc/stable/library.cpp``)."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

_library: Any = None


def load(path: Path) -> None:
    global _library
    _library = ctypes.CDLL(str(path))
    _library.softkern_required.restype = ctypes.c_char_p
    _library.softkern_plan_error.restype = ctypes.c_char_p


def required() -> str:
    name: bytes = _library.softkern_required()
    return name.decode()


def computes_on(device_type: int, index: int) -> bool:
    """True also if asking raised an exception: the op raises it again."""
    return bool(_library.softkern_computes_on(device_type, index))


def chosen_plan(
    sizes: tuple[int, int, int], element_size: int, on_cpu: bool, numbers: tuple[int, ...], is_half: bool
) -> int:
    """`sizes`: rows, classes, features; `numbers`: plan, outputs, reduction, max_bytes, chunk_rows, needs."""
    long = ctypes.c_int64
    plan: int = _library.softkern_chosen_plan(
        *map(long, sizes), element_size, int(on_cpu), *map(long, numbers), int(is_half)
    )
    if plan == 0:
        raise ValueError(_library.softkern_plan_error().decode())
    return plan
