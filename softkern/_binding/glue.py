# SPDX-License-Identifier: Apache-2.0
"""A library for one minor release of torch, without pybind11: ops, derivatives and calls in C++."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from softkern._binding import behind, c_api
from softkern._binding.modes import makes_a_graph

_PREFIX = "softkern_calls::"


def load(path: Path) -> dict[str, Callable[..., Any]]:
    torch.ops.load_library(str(path))
    found = {**c_api.load(path), **_calls(), "makes_a_graph": makes_a_graph}
    return found | behind.functions(found)


def _calls() -> dict[str, Callable[..., Any]]:
    """The functions of ``csrc/calls.cpp``.

    A call goes to the function of a key at once, past tracers and modes, as a function of pybind11 does. All
    keys have the same function.
    """
    any_key = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    names = [n.removeprefix(_PREFIX) for n in torch._C._dispatch_get_all_op_names() if n.startswith(_PREFIX)]
    found: dict[str, Callable[..., Any]] = {}
    for name in names:
        handle = torch._C._dispatch_find_schema_or_throw(_PREFIX + name, "")
        found[name] = partial(handle.redispatch_boxed, any_key)
    return found
