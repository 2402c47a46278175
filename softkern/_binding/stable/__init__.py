# SPDX-License-Identifier: Apache-2.0
"""A library for torch's stable ABI: the kernels and their drivers in C++ (``csrc/stable/``), all that is above
them in the dispatcher in Python.

A call costs some ten microseconds more than with a library for one release of torch. linear_cross_entropy has no
products of packed bfloat16 matrices on the CPU: it converts the operands.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from softkern._binding import c_api
from softkern._binding.modes import makes_a_graph


def load(path: Path) -> dict[str, Callable[..., Any]]:
    torch.ops.load_library(str(path))
    functions = c_api.load(path)
    # Here, since they register functions for the ops of the library.
    from softkern._binding.stable import checks, linear, losses, row_losses, softmaxes, tensors

    tensors.required = functions["required"]
    library = linear.library = ctypes.CDLL(str(path))
    library.softkern_plan_error.restype = ctypes.c_char_p
    checks.computes_on = library.softkern_computes_on
    for part in (softmaxes, losses, row_losses, linear):
        part.register()
        functions |= part.entries()
    return functions | {"makes_a_graph": makes_a_graph}
