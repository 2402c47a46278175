# SPDX-License-Identifier: Apache-2.0
"""softkern behind torch's own names, for code that can't be edited.

Each name is given a stand-in that keeps torch's signature and calls softkern; what softkern does not take
goes to the function that was there. ``docs/install.md`` says what is in reach and what is not.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, update_wrapper
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.overrides import (  # type: ignore[attr-defined]
    _is_torch_function_mode_enabled,
    handle_torch_function,
    has_torch_function,
    has_torch_function_unary,
    has_torch_function_variadic,
)

from softkern import _C, functional

Function = Callable[..., Tensor]


def install() -> tuple[str, ...]:
    """Put softkern behind torch's names, in the whole process, until `uninstall`.

    Calls count: softkern goes when `uninstall` has been called as often as `install`. Modules need no
    replacing: those of torch.nn call the functions by these names.

    Returns:
        The names softkern is behind, in the order in which they were replaced.

    Example:
        >>> softkern.install()[:2]
        ('torch.nn.functional.softmax', 'torch.nn.functional.log_softmax')
    """
    global _depth
    with _lock:
        if _depth == 0:
            _let_torch_list_its_functions()
            before = {place: vars(place.owner).get(place.attribute, _INHERITED) for place in _PLACES}
            new = {place: _stand_in(place, getattr(place.owner, place.attribute)) for place in _PLACES}
            for place in _PLACES:
                setattr(place.owner, place.attribute, new[place])
            _before.update(before)
            _installed.update(new)
        _depth += 1
        return tuple(place.name for place in _PLACES)


def uninstall() -> None:
    """Undo one `install`; the last one puts back exactly the objects that were there.

    Raises:
        RuntimeError: softkern is not installed; or it is the last one and some name no longer holds what
            `install` put there. Nothing is changed then: what somebody else has put over softkern may call
            it, and is theirs to take away. Call `uninstall` again when they have.
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
            _installed.clear()
        _depth -= 1


@contextmanager
def installed() -> Iterator[tuple[str, ...]]:
    """`install` for the length of a block, `uninstall` after it; other threads see it too.

    Yields:
        What `install` returns.

    Raises:
        RuntimeError: at the end, as `uninstall` does.
    """
    names = install()
    try:
        yield names
    finally:
        uninstall()


@dataclass(frozen=True)
class _Place:
    """An attribute of torch's, and what makes the function that stands in for it."""

    owner: object
    module: str
    qualname: str
    make: Callable[[Function], Function]

    @property
    def name(self) -> str:
        return f"{self.module}.{self.qualname}"

    @property
    def attribute(self) -> str:
        return self.qualname.rpartition(".")[2]


def _let_torch_list_its_functions() -> None:
    """torch looks its functions up by name once, for torch.compile and for overrides: before they change.

    torch.compile would take a stand-in for one of torch's functions, and not look into it. What it imports is
    what the first step of any optimizer imports.
    """
    import torch._dynamo

    torch._dynamo.trace_rules.get_torch_obj_rule_map()
    torch._dynamo.trace_rules.get_tensor_method()
    torch.overrides.get_overridable_functions()


def _refuse_if_patched_over() -> None:
    over = {
        place.name: now
        for place, ours in _installed.items()
        if (now := vars(place.owner).get(place.attribute)) is not ours
    }
    if over:
        listed = ", ".join(f"{name} (now {now!r})" for name, now in over.items())
        raise RuntimeError(f"softkern.uninstall: replaced by somebody else since softkern.install: {listed}")


@cache  # one function for good: what torch.compile has compiled for it holds when it is installed again
def _stand_in(place: _Place, original: Function) -> Function:
    function = update_wrapper(place.make(original), original)
    # Under which it can be pickled, and read back where softkern is not.
    function.__module__, function.__qualname__ = place.module, place.qualname
    function.__name__ = place.attribute
    # torch.jit.script compiles torch's own function.
    if inspect.isfunction(original):
        function.__prepare_scriptable__ = lambda: original  # type: ignore[attr-defined]
    elif builtin := torch.jit._builtins._find_builtin(original):  # type: ignore[no-untyped-call]
        torch.jit._builtins._register_builtin(function, builtin)
    return function


def _public(stand_in: Function, original: Function) -> Function:
    """What `__torch_function__` is told was called.

    Classes know torch's functions by the objects that were there when they registered their own. A mode
    (torch.set_default_device is one) mostly calls what it is handed, which then has to be softkern.
    """
    return stand_in if _is_torch_function_mode_enabled() else original


def _has_no_values(input: object) -> bool:
    """Whether a compiler or an exporter is tracing a function of torch's that calls this one.

    Graph and key of a compiler's cache on disk name torch's function alone, so what it compiles must not
    depend on what is installed. What torch.export and torch.jit.trace make is loaded where softkern may not
    be.
    """
    return (
        type(input) in (FakeTensor, FunctionalTensor)
        or torch.compiler.is_exporting()
        or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    )


def _softmax_of_functional(op: str) -> Callable[[Function], Function]:
    entry, overload = getattr(_C, op), getattr(torch.ops.softkern, op)

    def make(original: Function) -> Function:
        def stand_in(
            input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
        ) -> Tensor:
            if has_torch_function_unary(input):
                return handle_torch_function(
                    _public(stand_in, original),
                    (input,),
                    input,
                    dim=dim,
                    _stacklevel=_stacklevel,
                    dtype=dtype,
                )
            if _has_no_values(input):
                return original(input, dim, _stacklevel + 1, dtype)
            return functional._softmax(stand_in, original, entry, overload, input, dim, _stacklevel, dtype)

        return stand_in

    return make


def _softmax_in_c(op: str) -> Callable[[Function], Function]:
    """For torch.softmax and Tensor.softmax, whose signatures are in C and take more than one spelling."""
    entry, overload = getattr(_C, op), getattr(torch.ops.softkern, op)

    def make(original: Function) -> Function:
        def stand_in(*args: Any, **kwargs: Any) -> Tensor:
            given = (*args, *kwargs.values())
            if has_torch_function(given):
                return handle_torch_function(_public(stand_in, original), given, *args, **kwargs)
            call = _common_call(args, kwargs)
            if call is None or _has_no_values(call[0]):
                return original(*args, **kwargs)
            input, dim, dtype = call
            return functional._softmax(stand_in, original, entry, overload, input, dim, 3, dtype)

        return stand_in

    return make


def _common_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, int, torch.dtype | None] | None:
    """Input, dim and dtype of a call that gives these and no more; None for others, wrong ones included."""
    call = dict(zip(("input", "dim", "dtype"), args, strict=False))
    if len(args) > 3 or call.keys() & kwargs.keys():
        return None
    call.update(kwargs)
    dim: object = call.get("dim")
    dtype: object = call.get("dtype")
    if call.keys() - {"input", "dim", "dtype"} or "input" not in call or not functional._is_int64(dim):
        return None
    return (call["input"], dim, dtype) if dtype is None or isinstance(dtype, torch.dtype) else None


def _cross_entropy(original: Function) -> Function:
    def stand_in(
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> Tensor:
        if has_torch_function_variadic(input, target, weight):
            return handle_torch_function(
                _public(stand_in, original),
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
        options = (weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        if _has_no_values(input):
            return original(input, target, *options)
        return functional._cross_entropy(original, input, target, *options)

    return stand_in


_softmax_of_f, _log_softmax_of_f = map(_softmax_of_functional, ("softmax", "log_softmax"))
_softmax_of_c, _log_softmax_of_c = map(_softmax_in_c, ("softmax", "log_softmax"))

_PLACES = (
    _Place(F, "torch.nn.functional", "softmax", _softmax_of_f),
    _Place(F, "torch.nn.functional", "log_softmax", _log_softmax_of_f),
    _Place(F, "torch.nn.functional", "cross_entropy", _cross_entropy),
    _Place(torch, "torch", "softmax", _softmax_of_c),
    _Place(torch, "torch", "log_softmax", _log_softmax_of_c),
    _Place(Tensor, "torch", "Tensor.softmax", _softmax_of_c),
    _Place(Tensor, "torch", "Tensor.log_softmax", _log_softmax_of_c),
    _Place(torch.special, "torch.special", "softmax", _softmax_of_c),
    _Place(torch.special, "torch.special", "log_softmax", _log_softmax_of_c),
)

_INHERITED = object()  # the class has no attribute of this name of its own: its base has
_lock = threading.Lock()
_depth = 0
_before: dict[_Place, object] = {}
_installed: dict[_Place, Function] = {}
