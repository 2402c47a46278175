# SPDX-License-Identifier: Apache-2.0
"""Whether Triton computes, as csrc/ops/backend.cpp chooses (there is no other backend), and what ran."""

from __future__ import annotations

import threading
from collections.abc import Callable

from softkern._binding.stable.checks import DEVICE_TYPES

TRITON = "triton"
_TYPES = {number: name for name, number in DEVICE_TYPES.items()}


class _OfThread(threading.local):
    named = ""
    ran = ("", "")


_thread = _OfThread()
_process = ""
_answers: dict[int, bool] = {}
_probe: Callable[[str], bool] | None = None


def set_probe(probe: Callable[[str], bool], /) -> None:
    global _probe
    _probe = probe
    _answers.clear()


def choose_for_process(name: str, required: bool, /) -> None:
    global _process
    _process = _checked(name)


def choose_for_thread(name: str, /) -> None:
    _thread.named = _checked(name)


def _checked(name: str) -> str:
    if name not in ("", TRITON):
        raise ValueError(f"unknown backend {name!r}: expected {TRITON!r}")
    return name


def thread_choice() -> str:
    return _thread.named


def required() -> str:
    return _thread.named or _process


def computes_on(device_type: int, index: int) -> bool:
    """Whether Triton computes tensors on devices of a type. Interpreted, on the CPU, it has to be named."""
    if _TYPES[device_type] == "cpu" and required() != TRITON:
        return False
    if device_type not in _answers:
        _answers[device_type] = _asked(_TYPES[device_type])
    return _answers[device_type]


def _asked(device_type: str) -> bool:
    try:
        return _probe is not None and _probe(device_type)
    except Exception:
        if required() == TRITON:
            raise
        return False


def ran() -> tuple[str, str]:
    return _thread.ran


def set_ran(isa: str, path: str, /) -> None:
    _thread.ran = (isa, path)
