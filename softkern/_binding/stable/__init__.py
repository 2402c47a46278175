# SPDX-License-Identifier: Apache-2.0
"""A library for torch's stable ABI: the kernels and their drivers in C++ (``csrc/stable/``), all that is
above them in the dispatcher in Python.

Small calls take several times as long as with a library for one release of torch. On the CPU,
linear_cross_entropy has no products of packed bfloat16 matrices: it converts the operands.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from softkern._binding import behind, c_api
from softkern._binding.modes import makes_a_graph


def load(path: Path) -> dict[str, Callable[..., Any]]:
    torch.ops.load_library(str(path))
    functions = c_api.load(path)
    # Here, since they register functions for the ops of the library.
    from softkern._binding.stable import linear, losses, native, row_losses, softmaxes

    native.load(path)
    for part in (softmaxes, losses, row_losses, linear):
        part.register()
        functions |= part.entries()
    functions["makes_a_graph"] = makes_a_graph
    return functions | behind.functions(functions)
