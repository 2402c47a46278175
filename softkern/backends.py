# SPDX-License-Identifier: Apache-2.0
"""Which kernels exist in this build, which of them can run here, and which one does."""

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
        name: what `use_backend`, ``SOFTKERN_BACKEND`` and (for CPU backends) ``SOFTKERN_CPU_ISA`` take.
        device: device type of the tensors it computes. "triton" computes on "cuda", on "xpu" where torch has
            such a device, and on "cpu" where ``TRITON_INTERPRET=1`` is set: slowly, for tests. So does "cuda"
            in a build that emulates it.
        compiled: whether this build contains it; "triton" is compiled when it is first used.
        usable: whether it can run on this machine, on one of its devices at least.
        reason: why it can't; empty if it can.
        active: whether it computes the calling thread's tensors on its device, or on some of several:
            "cuda" may be compiled for one GPU and "triton" compute on the other. An interpreted "triton" and
            an emulated "cuda" do so if they were named.
    """

    name: str
    device: str
    compiled: bool
    usable: bool
    reason: str
    active: bool


def backends() -> list[Backend]:
    """All backends, best first for each device.

    Triton is imported where there is a GPU, or its interpreter is turned on.

    Example:
        >>> [b.name for b in softkern.backends() if b.active and b.device == "cpu"]
        ['avx512']
    """
    named, isa = _C.required(), _C.active_isa()
    found = [
        Backend(name, "cpu", compiled, not reason, reason, name == isa and named in ("", name))
        for name, compiled, reason in _C.isas()
    ]
    device, reason = _cuda_device(), _why_no_cuda()
    chosen = named == CUDA or (not named and device == "cuda")
    cuda = Backend(CUDA, device, _cuda_compiled(), not reason, reason, chosen and not reason)

    device, reason = _triton_device(), _why_no_triton()
    chosen = named == TRITON or (not named and device != "cpu" and (not cuda.active or any(_cuda_refusals())))
    return [*found, cuda, Backend(TRITON, device, True, not reason, reason, chosen and not reason)]


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block, and in this thread alone, compute with the named backend.

    CPU backends give the same bits; this is for tests, benchmarks and bug reports. A backend that is named
    never falls back: what its kernels don't take raises a RuntimeError, where torch would have computed it
    otherwise (tensors elsewhere, other dtypes, functorch's transforms). Derivatives of higher order are made
    of torch's ops in any case. "avx2" refuses CUDA tensors, and "cuda" and "triton" those of the CPU, unless
    ``TRITON_INTERPRET=1`` lets Triton compute them.

    A backward within the block is computed by the same backend where it runs in this thread, as the CPU's
    does. torch runs the backward of other devices in threads of its own, where the choice is softkern's.

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
    # Only the one that was named is looked for: Triton takes seconds to import.
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
    """Device type of the tensors that the CUDA kernels would compute."""
    return "cpu" if _C.build()["cuda_emulated"] else "cuda"


def _why_no_cuda() -> str:
    """Why the CUDA kernels can't compute here; empty if they can on one device at least."""
    if not _cuda_compiled():
        return _C.why_no_cuda(0)
    if _cuda_device() == "cpu":
        return ""
    if reason := _why_no_gpu():
        return f"torch sees no GPU: {reason}"
    refusals = _cuda_refusals()
    return "; ".join(dict.fromkeys(refusals)) if all(refusals) else ""


def _cuda_refusals() -> list[str]:
    """By index of a device of CUDA: why the CUDA kernels can't compute there; empty if they can."""
    return [_C.why_no_cuda(index) for index in range(torch.cuda.device_count())]


def _triton_device() -> str:
    """Device type of the tensors that Triton would compute."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "cpu"
    return "xpu" if torch.xpu.is_available() else "cuda"


def _why_no_triton() -> str:
    """Why Triton can't compute here; empty if it can, and its kernels are registered then."""
    if find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    if _triton_device() == "cuda" and (reason := _why_no_gpu()):
        return f"torch sees no GPU: {reason}"
    try:
        _register_triton()
    except Exception as error:  # whatever it is, it is why there are no Triton kernels
        return f"softkern.triton can't be imported: {type(error).__name__}: {error}"
    return ""


def _why_no_gpu() -> str:
    if not (torch.version.cuda or torch.version.hip):
        return "this torch is built without CUDA"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")  # a driver that is too old is told in a warning
        if torch.cuda.is_available():
            return ""
    return "; ".join(["there is no device that it can use", *(str(w.message).split("\n")[0] for w in said)])


def _register_triton() -> None:
    with _registering:
        import_module("softkern.triton").register()


def _triton_computes(device_type: str) -> bool:
    """What the ops ask when they meet their first tensor of a device type."""
    if device_type != _triton_device() or find_spec("triton") is None:
        return False
    if device_type == "cuda" and _why_no_gpu():
        return False
    _register_triton()
    return True


def choose_from_environment() -> None:
    """``SOFTKERN_CPU_ISA`` and ``SOFTKERN_BACKEND``; raises as `use_backend` if one can't be followed."""
    named = {v: os.environ[v] for v in ("SOFTKERN_CPU_ISA", "SOFTKERN_BACKEND") if os.environ.get(v)}
    for variable, name in named.items():
        # The one chooses among the CPU's instruction sets and says nothing of other tensors; the other names
        # what has to compute.
        _C.choose_for_process(_checked(name, variable), variable == "SOFTKERN_BACKEND")
    if len({*named.values()} - {CUDA, TRITON}) > 1:
        raise ValueError(
            "SOFTKERN_CPU_ISA and SOFTKERN_BACKEND name different backends: "
            + ", ".join(f"{variable}={name}" for variable, name in named.items())
        )


_C.set_triton_probe(_triton_computes)
