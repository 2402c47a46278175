# SPDX-License-Identifier: Apache-2.0
"""softkern behind torch's own names, for code that can't be edited.

torch's functions stay the same objects; only the code that they run changes. So they can be pickled, and
code that holds one or compares its identity (`__torch_function__`, torch.compile, torch.fx) still works. All
softmaxes call one of six functions written in C, whose code ``csrc/behind.cpp`` replaces. The Python code of
`F.cross_entropy` is exchanged, and where torch has it, that of `F.linear_cross_entropy`. A name that holds
another library's function gets a stand-in instead. ``docs/install.md`` lists the names.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn import _reduction as _Reduction
from torch.overrides import (
    handle_torch_function,
    has_torch_function_unary,
    has_torch_function_variadic,
)

from softkern import _C, _dtensor, _stand_ins, _tracing, functional, linear_losses
from softkern._arguments import by_torch, torch_loss

Function = Callable[..., Tensor]


def install() -> tuple[str, ...]:
    """Put softkern behind torch's names, in the whole process, until `uninstall`.

    Calls are counted: softkern is removed when `uninstall` has been called as often as `install`. The modules
    of torch.nn call the functions by these names, so they are not replaced.

    Returns:
        The names that now run softkern.

    Example:
        >>> softkern.install()[:2]
        ('torch.nn.functional.softmax', 'torch.nn.functional.log_softmax')
    """
    global _depth
    with _lock:
        if _depth == 0:
            _put_behind()
            for place in _PLACES:
                was = vars(place.owner).get(place.attribute, _INHERITED)
                if not place.is_torchs() or (place.torchs is not None and not _EXCHANGES):
                    _before[place] = was
                    was = _stand_in(place, getattr(place.owner, place.attribute))
                    setattr(place.owner, place.attribute, was)
                _held[place] = was
        _depth += 1
        return tuple(place.name for place in _PLACES)


def uninstall() -> None:
    """Undo one `install`; the last call restores everything.

    Raises:
        RuntimeError: softkern is not installed, or a name no longer holds the function that `install` left
            there. In the second case nothing is changed, because the new function may call softkern's. Call
            `uninstall` again after that patch has been removed.
    """
    global _depth
    with _lock:
        if _depth == 0:
            raise RuntimeError("softkern.uninstall: softkern is not installed")
        if _depth == 1:
            _refuse_if_patched_over()
            for place, was in _before.items():
                if was is _INHERITED:
                    delattr(place.owner, place.attribute)
                else:
                    setattr(place.owner, place.attribute, was)
            _before.clear()
            _held.clear()
            _take_away()
        _depth -= 1


@contextmanager
def installed() -> Iterator[tuple[str, ...]]:
    """`install` at the start of a block, `uninstall` at its end; other threads see it, too.

    Yields:
        The result of `install`.

    Raises:
        RuntimeError: at the end of the block, as `uninstall` does.
    """
    names = install()
    try:
        yield names
    finally:
        uninstall()


@dataclass(frozen=True)
class _Place:
    """An attribute of one of torch's modules or classes."""

    owner: object
    module: str
    qualname: str
    torchs: Function | None  # torch's function if it is written in C; None for torch.nn.functional's
    ours: Function  # the function that a stand-in calls

    @property
    def name(self) -> str:
        return f"{self.module}.{self.qualname}"

    @property
    def attribute(self) -> str:
        return self.qualname.rpartition(".")[2]

    def is_torchs(self) -> bool:
        """Whether the attribute is torch's own function."""
        now = getattr(self.owner, self.attribute)
        return _is_of_f(now) if self.torchs is None else now is self.torchs


def _is_of_f(function: object) -> TypeGuard[FunctionType]:
    """Whether the function comes from torch.nn.functional, and is not a patch."""
    return isinstance(function, FunctionType) and function.__globals__ is vars(F) and not function.__closure__


def _put_behind() -> None:
    try:
        for function, op in _IN_C.items():
            _C.put_behind(function, op, _OTHERS[op])
    except ValueError:  # this torch is built in another way
        _take_away_from_c()
        raise
    for name, (function, copy) in _IN_PYTHON.items():
        # torch.jit.script reads the source of the code that a function runs.
        function.__prepare_scriptable__ = lambda copy=copy: copy  # type: ignore[attr-defined]
        if name == "cross_entropy":
            _tracing.look_into(function)
        function.__code__ = _CODE[name].__code__


def _take_away() -> None:
    _take_away_from_c()
    for name, (function, copy) in _IN_PYTHON.items():
        function.__code__ = copy.__code__
        if name == "cross_entropy":
            _tracing.take_as_it_is(function)
        del function.__prepare_scriptable__  # type: ignore[attr-defined]


def _take_away_from_c() -> None:
    for function in _IN_C:
        _C.take_away(function)


def _refuse_if_patched_over() -> None:
    over = {
        place.name: now
        for place, left in _held.items()
        if (now := vars(place.owner).get(place.attribute, _INHERITED)) is not left
    }
    if over:
        listed = ", ".join(f"{name} (now {now!r})" for name, now in over.items())
        raise RuntimeError(f"softkern.uninstall: replaced by somebody else since softkern.install: {listed}")


def _others(op: str) -> Callable[[Tensor, int, torch.dtype | None], Tensor | None]:
    """The function that the code in C calls for tensors of another type than torch.Tensor."""
    overload = getattr(torch.ops.softkern, op)

    def softmax(input: Tensor, dim: int, dtype: torch.dtype | None) -> Tensor | None:
        if has_torch_function_unary(input) or _has_no_values(input):
            return None
        if _dtensor.is_dtensor(input):
            result = _dtensor.softmax(overload, input, int(dim), dtype)
            if result is not None:
                return result
        by_torch(input)
        return None

    return softmax


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """The code of `F.cross_entropy` while softkern is installed, with the globals of torch.nn.functional."""
    # While torch.compile traces the override of a class, the first condition is true for that class as well.
    if has_torch_function_variadic(input, target, weight) and (
        torch._C._is_torch_function_enabled() or not torch.compiler.is_dynamo_compiling()
    ):
        return handle_torch_function(
            cross_entropy,
            (input, target, weight),
            input,
            target,
            weight=weight,
            size_average=size_average,
            ignore_index=ignore_index,
            reduce=reduce,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
    import softkern

    return softkern.patching._loss(
        input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing
    )


def _loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    size_average: bool | None,
    ignore_index: int,
    reduce: bool | None,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    if not _is_torchs(input):
        return functional._cross_entropy(
            input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing
        )
    if size_average is not None or reduce is not None:
        reduction = _Reduction.legacy_get_string(size_average, reduce)
    mode = _Reduction.get_enum(reduction)
    return torch_loss(input, target, weight, mode, ignore_index, label_smoothing)


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
) -> Tensor:
    """The code of `F.linear_cross_entropy` while softkern is installed, with the globals of
    torch.nn.functional."""
    if has_torch_function_variadic(input, linear_weight, target, linear_bias, weight) and (
        torch._C._is_torch_function_enabled() or not torch.compiler.is_dynamo_compiling()
    ):
        return handle_torch_function(
            linear_cross_entropy,
            (input, linear_weight, target, linear_bias, weight),
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            weight=weight,
            reduction=reduction,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            options=options,
        )
    import softkern

    return softkern.patching._linear_loss(
        input, linear_weight, target, linear_bias, weight, reduction, ignore_index, label_smoothing, options
    )


def _linear_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int | None,
    label_smoothing: float,
    options: Any,
) -> Tensor:
    torchs = input.dim() > 2 or _is_torchs(input)  # torch refuses more dims
    compute = _IN_PYTHON["linear_cross_entropy"][1] if torchs else linear_losses.linear_cross_entropy
    loss: Tensor = compute(
        input,
        linear_weight,
        target,
        linear_bias=linear_bias,
        weight=weight,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        options=options,
    )
    return loss


def _is_torchs(input: object) -> bool:
    """Whether torch's own code has to run, so that a saved graph has torch's ops."""
    if torch.compiler.is_dynamo_compiling():
        # torch 2.11's compiler takes is_exporting() for true; all read this flag.
        return torch.compiler._is_exporting_flag
    return _has_no_values(input) or _C.makes_a_graph()


def _has_no_values(input: object) -> bool:
    """Whether a compiler or an exporter is tracing one of torch's functions.

    The graph, and the key of a compiler's cache on disk, name only torch's function. So the compiled code
    must not depend on whether softkern is installed.
    """
    return type(input) in (FakeTensor, FunctionalTensor)


@cache  # always the same function: code that torch.compile made for it is valid after the next install
def _stand_in(place: _Place, theirs: Function) -> Function:
    if place.is_torchs():
        function = _stand_ins.for_c(place.attribute, _OTHERS[place.attribute], theirs)
    else:
        function = _stand_ins.for_a_patch(place.ours, theirs)
    # With these names it can be pickled, and loaded without softkern.
    function.__module__, function.__qualname__ = place.module, place.qualname
    function.__name__ = place.attribute
    return function


def _in_c(owner: object, module: str, prefix: str, own: object, own_prefix: str = "") -> tuple[_Place, ...]:
    places = []
    for op in ("softmax", "log_softmax"):
        torchs = getattr(own, own_prefix + op)
        places.append(_Place(owner, module, prefix + op, torchs, torchs))
    return tuple(places)


_PLACES = (
    _Place(F, "torch.nn.functional", "softmax", None, functional.softmax),
    _Place(F, "torch.nn.functional", "log_softmax", None, functional.log_softmax),
    _Place(F, "torch.nn.functional", "cross_entropy", None, functional.cross_entropy),
    *(
        _Place(F, "torch.nn.functional", name, None, linear_losses.linear_cross_entropy)
        for name in ("linear_cross_entropy",)
        if hasattr(F, name)
    ),
    *_in_c(torch, "torch", "", torch._C._VariableFunctions),
    *_in_c(Tensor, "torch", "Tensor.", torch._C.TensorBase),
    *_in_c(torch.special, "torch.special", "", torch._C._special, "special_"),  # type: ignore[attr-defined]
)
# Where no extension can exchange their code, the six names hold stand-ins.
_EXCHANGES = hasattr(_C, "put_behind")
_IN_C = {place.torchs: place.attribute for place in _PLACES if place.torchs is not None and _EXCHANGES}
_OTHERS = {op: _others(op) for op in ("softmax", "log_softmax")}


def _copy(function: FunctionType) -> FunctionType:
    """A function that runs the present code of `function`."""
    copy = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__annotations__, copy.__doc__ = function.__annotations__, function.__doc__
    return copy


_CODE: dict[str, Any] = {"cross_entropy": cross_entropy, "linear_cross_entropy": linear_cross_entropy}
# torch's functions, each with a copy. Those that other code had replaced before softkern was imported, and
# those that this torch does not have, are not here.
_IN_PYTHON = {
    name: (function, _copy(function)) for name in _CODE if _is_of_f(function := getattr(F, name, None))
}

_INHERITED = object()  # the class inherits this attribute from its base
_lock = threading.Lock()
_depth = 0
_before: dict[_Place, object] = {}  # the former content of places that hold stand-ins
_held: dict[_Place, object] = {}  # the content of all places while softkern is installed
