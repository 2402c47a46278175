# SPDX-License-Identifier: Apache-2.0
"""softkern without anything compiled: Triton computes softmax, log_softmax and cross_entropy of CUDA tensors
where it is installed; torch computes everything else, softkern's own options by formulas in its ops.

The ops have the schemas of the compiled ones, and above their kernels the same Python as the stable ABI's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from softkern import _version
from softkern._binding.modes import makes_a_graph

WITHOUT = (
    "this installation of softkern has no compiled part: install a wheel for this system, or from source"
)


def load(_: Path) -> dict[str, Callable[..., Any]]:
    schemas = (Path(__file__).parent / "schemas.txt").read_text().splitlines()
    names = [schema.partition("(")[0] for schema in schemas]
    _define(schemas)
    # Here, since they register functions for the ops.
    from softkern._binding.none import choice, kernels
    from softkern._binding.stable import checks, linear, losses, native, row_losses, softmaxes

    native.required, native.computes_on = choice.required, choice.computes_on
    checks.has_row_kernels = False
    functions: dict[str, Callable[..., Any]] = {}
    for part in (softmaxes, losses, row_losses, linear):
        part.register()
        functions |= part.entries()
    kernels.register(names)
    return {
        **functions,
        "makes_a_graph": makes_a_graph,
        "op_names": lambda: names,
        "isas": lambda: [],
        "active_isa": lambda: "",
        "last_isa": lambda: choice.ran()[0],
        "last_path": lambda: choice.ran()[1],
        "set_last": choice.set_ran,
        "why_no_cuda": lambda device: WITHOUT,
        "set_triton_probe": choice.set_probe,
        "choose_for_process": choice.choose_for_process,
        "choose_for_thread": choice.choose_for_thread,
        "thread_choice": choice.thread_choice,
        "required": choice.required,
        "huge_pages_wanted": lambda: False,
        "set_patience": lambda seconds: None,
        "build": _build,
    }


_library: Any = None  # torch removes the ops when it is freed


def _define(schemas: list[str]) -> None:
    global _library
    _library = torch.library.Library("softkern", "DEF")
    for schema in schemas:
        _library.define(schema)


def _build() -> dict[str, str | int]:
    return {
        "compiler": "none",
        "cxx_standard": 0,
        "torch": str(torch.__version__),
        "version": _version.__version__,
        "cuda_architectures": "",
        "cuda_emulated": False,
    }
