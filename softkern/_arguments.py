# SPDX-License-Identifier: Apache-2.0
"""Arguments of the public functions: which tensors the ops take, which numbers F accepts, and how torch is
asked for its result or its error."""

from __future__ import annotations

import operator
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.fx.proxy import Proxy
from torch.overrides import _is_torch_function_mode_enabled  # type: ignore[attr-defined]

from softkern import _C

Result = TypeVar("Result")

# A subclass with its own __torch_dispatch__ knows torch's ops, not softkern's. DTensors have a file of their
# own, _dtensor.py.
PLAIN = {Tensor, torch.nn.Parameter, torch.nn.Buffer, FakeTensor, FunctionalTensor}

# The types that F accepts as a dim, and, besides float, as a label_smoothing. torch imports numpy if it is
# installed, too.
_INTEGERS: tuple[type, ...] = (int,)
_DOUBLES: tuple[type, ...] = (int,)
try:
    import numpy
except ImportError:
    pass
else:
    _INTEGERS += (numpy.integer,)
    _DOUBLES += (numpy.integer, numpy.floating, numpy.bool_)


def is_for_a_class(*arguments: object) -> bool:
    """Whether to pass torch's function, not softkern's, to `__torch_function__`.

    A tensor class knows torch's function and its options. A mode usually calls the function that it gets, and
    torch.fx records it, so these two get softkern's function.
    """
    return not _is_torch_function_mode_enabled() and not any(isinstance(x, Proxy) for x in arguments)


def as_long(target: Any, input: Any) -> Any:
    """Class indices in a dtype that all of torch's functions accept.

    A target with as many dims as the logits holds no indices. It stays as it is, because torch's error
    message names its dtype.
    """
    if not (isinstance(target, Tensor) and isinstance(input, Tensor)) or target.dim() == input.dim():
        return target
    return target.long() if target.dtype in (torch.int32, torch.uint8) else target


def torch_loss(
    input: Tensor, target: Tensor, weight: Tensor | None, mode: int, ignore_index: int, label_smoothing: float
) -> Tensor:
    """The function below F.cross_entropy: softkern.install may have patched F.cross_entropy itself."""
    loss: Tensor = torch._C._nn.cross_entropy_loss(
        input,
        target,
        weight,
        mode,  # type: ignore[arg-type]
        ignore_index,
        label_smoothing,
    )
    return loss


def is_int64(value: object) -> TypeGuard[int]:
    """Whether pybind11 converts the value in the same way as F."""
    return type(value) is int and -(2**63) <= value < 2**63


# Numbers of other types than Python's are converted as F converts them. None means that F has to trace the
# value, or to refuse it with its own message. F accepts more types for an ignore_index (a SymInt, for
# example) than for a dim. torch.compile sees numpy's numbers as tensors, and leaves these to F.


def as_dim(value: object) -> int | None:
    if not isinstance(value, _INTEGERS):
        value = _held_number(value)
    return as_index(value) if isinstance(value, _INTEGERS) else None


def as_index(value: object) -> int | None:
    value = _held_number(value)
    if isinstance(value, (bool, Tensor, torch.SymInt)):
        return None
    if torch.compiler.is_dynamo_compiling():
        return value if isinstance(value, int) else None
    try:
        index = operator.index(value)  # type: ignore[arg-type]
    except Exception:  # F converts it again, and raises
        return None
    return index if is_int64(index) else None


def as_double(value: object) -> float | None:
    value = _held_number(value)
    if torch.compiler.is_dynamo_compiling():
        return value if isinstance(value, (int, float)) else None
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, _DOUBLES):
        try:
            return float(value)  # type: ignore[arg-type]
        except OverflowError:  # F converts it again, and raises
            return None
    return None


def _held_number(value: object) -> object:
    """The number in a tensor that F accepts as a number; any other value unchanged."""
    if type(value) is not Tensor or torch.compiler.is_dynamo_compiling() or torch._C._is_tracing():
        return value
    return value if value.dim() > 0 or value.requires_grad else value.item()


def is_traced() -> bool:
    """Whether sizes may be no numbers, or become constants of a graph if they are compared."""
    return torch.compiler.is_compiling() or torch._C._is_tracing()


def by_torch(result: Result) -> Result:
    """Raises if a backend was named: torch must not replace it silently. Bad arguments raised before."""
    if not torch.compiler.is_dynamo_compiling() and (named := _C.required()):
        raise RuntimeError(
            f"backend {named!r} was asked for and does not compute these arguments (tensor subclasses, "
            "symbolic numbers); where the choice is softkern's, torch does"
        )
    return result
