# SPDX-License-Identifier: Apache-2.0
"""The functions of ``csrc/c_api.cpp``, which are called without tensors, by ctypes."""

from __future__ import annotations

import builtins
import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

from softkern._binding.modes import exports_to_onnx

_TEXT = ("op_names", "isas", "active_isa", "last_isa", "last_path", "thread_choice", "required", "build")
_TritonProbe = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p)
_OnnxProbe = ctypes.CFUNCTYPE(ctypes.c_int)


def load(path: Path) -> dict[str, Callable[..., Any]]:
    """The functions of a library, by their names in the stub of ``softkern._C``."""
    api = CApi(ctypes.CDLL(str(path)))
    return {name: getattr(api, name) for name in dir(api) if not name.startswith("_")}


class CApi:
    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        for name in (*_TEXT, "why_no_cuda", "choose_for_process", "choose_for_thread"):
            self._function(name).restype = ctypes.c_char_p
        self._function("set_patience").argtypes = [ctypes.c_double]
        for name in ("set_triton_probe", "set_onnx_probe"):
            self._function(name).restype = None
        # ctypes frees a callback that nothing refers to.
        self._triton_probe: Any = None
        self._onnx_probe = _OnnxProbe(exports_to_onnx)
        self._function("set_onnx_probe")(self._onnx_probe)

    def op_names(self) -> list[str]:
        return self._text("op_names").splitlines()

    def isas(self) -> list[tuple[str, bool, str]]:
        lines = (line.split("\t") for line in self._text("isas").splitlines())
        return [(name, compiled == "1", reason) for name, compiled, reason in lines]

    def active_isa(self) -> str:
        return self._text("active_isa")

    def last_isa(self) -> str:
        return self._text("last_isa")

    def last_path(self) -> str:
        return self._text("last_path")

    def set_last(self, isa: str, path: str, /) -> None:
        self._function("set_last")(isa.encode(), path.encode())

    def why_no_cuda(self, device: int, /) -> str:
        return self._text("why_no_cuda", device)

    def set_triton_probe(self, probe: Callable[[str], bool], /) -> None:
        def answer(device_type: bytes) -> int:
            try:
                return int(probe(device_type.decode()))
            except BaseException as error:  # an exception can't pass through C
                self._function("raise")(f"{type(error).__name__}: {error}".encode())
                return -1

        held = _TritonProbe(answer)
        self._function("set_triton_probe")(held)
        self._triton_probe = held

    def choose_for_process(self, name: str, required: bool, /) -> None:
        _raised(self._text("choose_for_process", name.encode(), int(required)))

    def choose_for_thread(self, name: str, /) -> None:
        _raised(self._text("choose_for_thread", name.encode()))

    def thread_choice(self) -> str:
        return self._text("thread_choice")

    def required(self) -> str:
        return self._text("required")

    def huge_pages_wanted(self) -> bool:
        return bool(self._function("huge_pages_wanted")())

    def set_patience(self, seconds: float, /) -> None:
        self._function("set_patience")(seconds)

    def build(self) -> dict[str, str | int]:
        lines = (line.partition("\t") for line in self._text("build").splitlines())
        found: dict[str, str | int] = {name: value for name, _, value in lines}
        standard, emulated = int(found["cxx_standard"]), bool(found["cuda_emulated"])
        return {**found, "cxx_standard": standard, "cuda_emulated": emulated}

    def _function(self, name: str) -> Any:
        return getattr(self._library, f"softkern_{name}")

    def _text(self, name: str, *arguments: Any) -> str:
        text: bytes = self._function(name)(*arguments)
        return text.decode()


def _raised(outcome: str) -> None:
    """Raises the exception that a function of C reports as its name and its text."""
    if outcome:
        name, _, text = outcome.partition("\t")
        raise getattr(builtins, name)(text)
