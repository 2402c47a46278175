# SPDX-License-Identifier: Apache-2.0
"""How Python reaches the kernels, best first; ``SOFTKERN_GLUE`` names one of the last three for tests.

- "pybind": an extension module, compiled against this torch and this Python (a build from source).
- "2.13" and the like: a library compiled against this minor release of torch, for any Python (the wheel).
- "stable": a library for torch's stable ABI with the autograd part in Python, for every torch (the wheel).
- "none": nothing compiled: Triton computes CUDA tensors, and torch all others.

torch's C++ interface holds within a minor release: a library of another one may load and corrupt memory.
So the release has to match exactly, and builds that are no release (nightly, vendors') use the stable ABI.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, NamedTuple

import torch

PACKAGE = Path(__file__).parent.parent
LIBRARIES = PACKAGE / "lib"
OLDEST = (2, 11)
_MACH_O = (b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")  # of macOS, whose loader checks the size itself
_RELEASE = re.compile(r"(\d+\.\d+)\.\d+(\.post\d+)?(\+(cpu|cu\d+|rocm[\d.]+|xpu))?")
KERNELS = "libsoftkern.so"
_SUFFIX = ".so"


class Binding(NamedTuple):
    name: str
    reason: str  # why no better one; empty if this is the best one
    functions: dict[str, Callable[..., Any]]


def choose() -> Binding:
    """Loads the best binding that works here.

    Raises:
        ImportError: this torch is too old, the extension was compiled against another torch, or
            ``SOFTKERN_GLUE`` names a binding that is not here or does not load.
    """
    version = str(torch.__version__)
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST:
        raise ImportError(
            f"softkern needs torch 2.11 or newer; this environment has {version}: pip install 'torch>=2.11'"
        )
    named = os.environ.get("SOFTKERN_GLUE", "")
    # Beside this file alone: an editable installation's finder knows the extension of that one.
    if not named and any((PACKAGE / f"_pybind{suffix}").is_file() for suffix in EXTENSION_SUFFIXES):
        return _finished(Binding("pybind", "", _pybind(version)))
    if named:
        return _finished(Binding(named, "SOFTKERN_GLUE names it", _named(named)))
    reasons = []
    minor = _RELEASE.fullmatch(version)
    for name in (minor[1] if minor else "", "stable"):
        try:
            if not name:
                reasons.append(f"torch {version} is not a release")
            elif not path_of(name).is_file():
                reasons.append(_missing(name))
            else:
                return _finished(Binding(name, "; ".join(reasons), _load(name)))
        except (OSError, ImportError) as error:  # the text of OSError has the library's path
            reasons.append(str(error).partition("\n")[0])
    return _finished(Binding("none", "; ".join(dict.fromkeys(reasons)), _load("none")))


def path_of(name: str) -> Path:
    return LIBRARIES / (f"{name}{_SUFFIX}" if name == "stable" else f"torch{name}{_SUFFIX}")


def available() -> list[str]:
    """The names that ``SOFTKERN_GLUE`` may have here."""
    minors = [path.stem.removeprefix("torch") for path in LIBRARIES.glob(f"torch*{_SUFFIX}")]
    minors.sort(key=lambda minor: [int(part) for part in minor.split(".")])
    return [*minors, *(["stable"] if path_of("stable").is_file() else []), "none"]


def _missing(name: str) -> str:
    if name == "stable":
        return "this installation of softkern has no compiled part"
    return f"this installation of softkern has no library for torch {name}"


def _named(name: str) -> dict[str, Callable[..., Any]]:
    choices = available()
    if name not in choices:
        raise ImportError(f"SOFTKERN_GLUE: expected one of {', '.join(map(repr, choices))}, got {name!r}")
    try:
        return _load(name)
    except OSError as error:
        raise ImportError(f"SOFTKERN_GLUE={name}: {error}") from None


def _pybind(version: str) -> dict[str, Callable[..., Any]]:
    try:
        extension = import_module("softkern._pybind")
    except ImportError as error:
        raise ImportError(
            f"softkern's extension does not load with torch {version} (softkern was compiled against another "
            "one?): reinstall softkern, or install the torch that it was compiled against. "
            f"{str(error).partition(chr(10))[0]}"
        ) from error
    return {name: function for name, function in vars(extension).items() if not name.startswith("__")}


def _load(name: str) -> dict[str, Callable[..., Any]]:
    path = path_of(name)
    if name != "none":
        refuse_truncated(path)
        refuse_truncated(LIBRARIES / KERNELS)
        if other := _ops_of_others(path):
            raise ImportError(other)
    module = {"stable": "stable", "none": "none"}.get(name, "glue")
    functions: dict[str, Callable[..., Any]] = import_module(f"softkern._binding.{module}").load(path)
    return functions


def refuse_truncated(path: Path) -> None:
    """Raises OSError for a part of a library: the system's loader would end the process with SIGBUS.

    The table of sections is the last part of an ELF file.
    """
    with path.open("rb") as file:
        header = file.read(64)
        size = file.seek(0, os.SEEK_END)
    if header[:5] == b"\x7fELF\x02" and len(header) == 64:
        table, each, count = struct.unpack_from("<40xQ10xHH", header)
        if table + each * count <= size:
            return
    elif header[:4] in _MACH_O:
        return
    raise OSError(f"{path}: not a whole library ({size} bytes); reinstall softkern")


def _ops_of_others(path: Path) -> str:
    """Two copies of the ops in one process end it, so this is asked before a library is loaded."""
    if str(path) in torch.ops.loaded_libraries:
        return ""
    registered = "softkern::softmax" in torch._C._dispatch_get_all_op_names()
    return "another copy of softkern is loaded in this process" if registered else ""


def _finished(binding: Binding) -> Binding:
    binding.functions["binding"] = lambda: (binding.name, binding.reason)
    return binding
