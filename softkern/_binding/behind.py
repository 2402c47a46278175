# SPDX-License-Identifier: Apache-2.0
"""`softkern.install` for bindings without pybind11: ``csrc/behind_abi3.c`` asks the functions made here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

Softmax = Callable[[Tensor, int], Tensor]
Others = Callable[[Tensor, int, "torch.dtype | None"], "Tensor | None"]
_NAMES = ("input", "dim", "dtype")
_PLAIN = (Tensor, torch.nn.Parameter)


def functions(found: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """`put_behind` and `take_away` for the functions that a binding has; none where the extension for every
    Python does not load: in a Python without the limited API, or where nothing is compiled."""
    try:
        extension = import_module("softkern._behind")
    except ImportError:
        return {}

    def put_behind(function: Callable[..., Tensor], op: str, others: Others, /) -> None:
        extension.put_behind(function, decision(found[op], others, found["makes_a_graph"]))

    return {"put_behind": put_behind, "take_away": extension.take_away}


def decision(op: Softmax, others: Others, makes_a_graph: Callable[[], bool]) -> Callable[..., Any]:
    """A function of the arguments of a softmax of torch's: softkern's result, or NotImplemented.

    softkern takes calls of input, dim and dtype alone, without an override and while no graph is made. For a
    tensor of another class, `others` is asked; None leaves the call to torch's code.
    """

    def ours(*args: Any, **kwargs: Any) -> Any:
        names = (*_NAMES[: len(args)], *kwargs)
        given: dict[str, Any] = dict(zip(names, (*args, *kwargs.values()), strict=False))
        if len(args) > len(_NAMES) or len(given) != len(names) or not given.keys() <= {*_NAMES}:
            return NotImplemented
        input, dim, dtype = given.get("input"), given.get("dim"), given.get("dtype")
        if not isinstance(input, Tensor) or not (dtype is None or isinstance(dtype, torch.dtype)):
            return NotImplemented
        if dim is None or not (type(dim) is int or _is_numpys(dim)):
            return NotImplemented
        if torch._C._len_torch_function_stack() or makes_a_graph():
            return NotImplemented
        if type(input) in _PLAIN:
            if not -(2**63) <= dim < 2**63:
                return NotImplemented
            return op(input if dtype is None else input.to(dtype), int(dim))
        result = others(input, dim, dtype)
        return NotImplemented if result is None else result

    return ours


def _is_numpys(dim: object) -> bool:
    """Whether torch takes it for an integer of numpy's."""
    return type(dim).__module__ == "numpy" and hasattr(dim, "__index__") and not isinstance(dim, bool)
