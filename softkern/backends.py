# SPDX-License-Identifier: Apache-2.0
"""The backends: which of them this build has, which can run here, and which one computes."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import torch

from softkern import _C

CUDA = "cuda"
TRITON = "triton"
_registering = threading.RLock()


@dataclass(frozen=True)
class Backend:
    """One set of kernels.

    Attributes:
        name: the name for `use_backend`, ``SOFTKERN_BACKEND`` and (CPU backends) ``SOFTKERN_CPU_ISA``.
        device: device type of the tensors that it computes. "triton" computes on "cuda", on "xpu" if torch
            has such a device, and on "cpu" if ``TRITON_INTERPRET=1`` is set (slowly, for tests). In a build
            that emulates CUDA, "cuda" also computes on "cpu".
        compiled: whether this build contains it; "triton" is compiled at its first use.
        usable: whether it can run on at least one device of this machine.
        reason: why it can't run; empty if it can.
        active: whether it computes the calling thread's tensors on at least one of its devices: "cuda" may be
            compiled for one GPU while "triton" computes on another. An interpreted "triton" and an emulated
            "cuda" are active only if they were named.
        note: why its calls take a slower way than they could, with the same bits; empty if they don't.
    """

    name: str
    device: str
    compiled: bool
    usable: bool
    reason: str
    active: bool
    note: str = ""


def backends() -> list[Backend]:
    """All backends, best first for each device.

    Imports Triton if there is a GPU, or if its interpreter is turned on.

    Example:
        >>> [b.name for b in softkern.backends() if b.active and b.device == "cpu"]
        ['avx512']
    """
    named, isa, note = _C.required(), _C.active_isa(), _why_slower()
    found = [
        Backend(name, "cpu", compiled, not reason, reason, name == isa and named in ("", name), note)
        for name, compiled, reason in _C.isas()
    ]
    device, reason = _cuda_device(), _why_no_cuda()
    chosen = named == CUDA or (not named and device == "cuda")
    cuda = Backend(CUDA, device, _cuda_compiled(), not reason, reason, chosen and not reason, note)

    device, reason = _triton_device(), _why_no_triton()
    chosen = named == TRITON or (not named and device != "cpu" and (not cuda.active or any(_cuda_refusals())))
    return [*found, cuda, Backend(TRITON, device, True, not reason, reason, chosen and not reason, note)]


def _why_slower() -> str:
    """Why derivatives are computed in Python; empty if they are computed in C++."""
    name, reason = _C.binding()
    return f"called through torch's stable ABI: {reason}" if name == "stable" else ""


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Compute with the named backend, in this block and in this thread only.

    CPU backends give the same bits: this function is for tests, benchmarks and bug reports. A named backend
    never falls back to torch: what its kernels do not accept raises a RuntimeError (tensors on other devices,
    other dtypes, functorch's transforms). Derivatives of higher order always use torch's ops. "avx2" refuses
    CUDA tensors, "cuda" and "triton" refuse CPU tensors, unless ``TRITON_INTERPRET=1`` lets Triton compute
    them.

    A backward in the block uses the same backend if it runs in this thread, as on the CPU. For other devices
    torch runs the backward in its own threads, where softkern chooses the backend.

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
    reasons = {isa: reason for isa, _, reason in _C.isas()}
    # Only the named backend is examined: importing Triton takes seconds.
    if where != "SOFTKERN_CPU_ISA":
        reasons[CUDA] = _why_no_cuda() if name == CUDA else ""
        reasons[TRITON] = _why_no_triton() if name == TRITON else ""
    if name not in reasons:
        listed = ", ".join(map(repr, reasons))
        raise ValueError(f"{where}: expected one of {listed}, got {name!r}")
    if reasons[name]:
        raise RuntimeError(f"{where}: backend {name!r} can't run here: {reasons[name]}")
    return name


def _cuda_compiled() -> bool:
    return bool(_C.build()["cuda_architectures"])


def _cuda_device() -> str:
    """Device type of the tensors that the CUDA kernels compute in this build."""
    return "cpu" if _C.build()["cuda_emulated"] else "cuda"


def _why_no_cuda() -> str:
    """Why the CUDA kernels can't compute here; empty if they can on at least one device."""
    if not _cuda_compiled():
        return _C.why_no_cuda(0)
    if _cuda_device() == "cpu":
        return ""
    if reason := _why_no_gpu():
        return f"torch sees no GPU: {reason}"
    refusals = _cuda_refusals()
    return "; ".join(dict.fromkeys(refusals)) if all(refusals) else ""


def _cuda_refusals() -> list[str]:
    """For each CUDA device, why the CUDA kernels can't compute on it; empty if they can."""
    return [_C.why_no_cuda(index) for index in range(torch.cuda.device_count())]


def _triton_device() -> str:
    """Device type of the tensors that Triton computes in this process."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "cpu"
    return "xpu" if torch.xpu.is_available() else "cuda"


def _why_no_triton() -> str:
    """Why Triton can't compute here. Empty if it can; then its kernels have been registered."""
    if find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    if _triton_device() == "cuda" and (reason := _why_no_gpu()):
        return f"torch sees no GPU: {reason}"
    try:
        _register_triton()
    except Exception as error:  # any error is a reason why there are no Triton kernels
        return f"softkern.triton can't be imported: {type(error).__name__}: {error}"
    return ""


def _why_no_gpu() -> str:
    if not (torch.version.cuda or torch.version.hip):
        return "this torch is built without CUDA"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")  # torch warns if a driver is too old
        if torch.cuda.is_available():
            return ""
    return "; ".join(["there is no device that it can use", *(str(w.message).split("\n")[0] for w in said)])


def _register_triton() -> None:
    with _registering:
        import_module("softkern.triton").register()


def _triton_computes(device_type: str) -> bool:
    """Whether Triton computes on this device type. The ops call this at their first tensor of each type."""
    if device_type != _triton_device() or find_spec("triton") is None:
        return False
    if device_type == "cuda" and _why_no_gpu():
        return False
    _register_triton()
    return True


def choose_from_environment() -> None:
    """Apply ``SOFTKERN_CPU_ISA`` and ``SOFTKERN_BACKEND``; raises as `use_backend` does."""
    named = {v: os.environ[v] for v in ("SOFTKERN_CPU_ISA", "SOFTKERN_BACKEND") if os.environ.get(v)}
    for variable, name in named.items():
        # SOFTKERN_CPU_ISA chooses an instruction set for CPU tensors only; SOFTKERN_BACKEND names the backend
        # that has to compute.
        _C.choose_for_process(_checked(name, variable), variable == "SOFTKERN_BACKEND")
    if len({*named.values()} - {CUDA, TRITON}) > 1:
        raise ValueError(
            "SOFTKERN_CPU_ISA and SOFTKERN_BACKEND name different backends: "
            + ", ".join(f"{variable}={name}" for variable, name in named.items())
        )


_C.set_triton_probe(_triton_computes)
