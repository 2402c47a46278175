# SPDX-License-Identifier: Apache-2.0
"""Which kernels exist in this build, which of them can run here, and which one does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from softkern import _C


@dataclass(frozen=True)
class Backend:
    """One set of kernels.

    Attributes:
        name: what `use_backend`, ``SOFTKERN_BACKEND`` and (for CPU backends) ``SOFTKERN_CPU_ISA`` take.
        device: device type of the tensors it computes, "cpu" for all backends so far.
        compiled: whether this build contains it.
        usable: whether it can run on this machine.
        reason: why it can't; empty if it can.
        active: whether it computes the calling thread's tensors on its device.
    """

    name: str
    device: str
    compiled: bool
    usable: bool
    reason: str
    active: bool


def backends() -> list[Backend]:
    """All backends, best first.

    Example:
        >>> [b.name for b in softkern.backends() if b.active]
        ['avx512']
    """
    active = _C.active_isa()
    return [
        Backend(name, "cpu", compiled, not reason, reason, name == active)
        for name, compiled, reason in _C.isas()
    ]


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block, and in this thread alone, compute with the named backend.

    CPU backends give the same bits; this is for tests, benchmarks and bug reports. A backend that is named
    never falls back: what its kernels don't take raises a RuntimeError, where torch would have computed it
    otherwise (tensors elsewhere, other dtypes, functorch's transforms). Derivatives of higher order are made
    of torch's ops in any case.

    Args:
        name: a name from `backends()`.

    Raises:
        ValueError: there is no backend of this name; the text lists the choices.
        RuntimeError: the backend can't run on this machine; the text says why.
    """
    before = _C.thread_choice()
    _C.choose_for_thread(_checked(name, "use_backend"))
    try:
        yield
    finally:
        _C.choose_for_thread(before)


def _checked(name: str, where: str) -> str:
    choices = {isa: reason for isa, _, reason in _C.isas()}
    if name not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{where}: expected one of {listed}, got {name!r}")
    if choices[name]:
        raise RuntimeError(f"{where}: backend {name!r} can't run here: {choices[name]}")
    return name


def _choose_from_environment() -> None:
    named = {v: os.environ[v] for v in ("SOFTKERN_CPU_ISA", "SOFTKERN_BACKEND") if os.environ.get(v)}
    for variable, name in named.items():
        # The one chooses among the CPU's instruction sets and says nothing of other tensors; the other names
        # what has to compute.
        _C.choose_for_process(_checked(name, variable), variable == "SOFTKERN_BACKEND")
    if len(set(named.values())) > 1:
        raise ValueError(
            "SOFTKERN_CPU_ISA and SOFTKERN_BACKEND name different backends: "
            + ", ".join(f"{variable}={name}" for variable, name in named.items())
        )


_choose_from_environment()
