# SPDX-License-Identifier: Apache-2.0
"""What csrc/autograd asks and does with tensors in C++."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from softkern._binding.modes import exports_to_onnx
from softkern._binding.stable import native

Result = TypeVar("Result")

_C = torch._C
_PYTHON = _C.DispatchKey.Python
ops = torch.ops.softkern


def _keys(*names: str) -> Any:
    keys = _C.DispatchKeySet(_C._dispatch_key_parse(names[0]))
    for name in names[1:]:
        keys = keys.add(_C._dispatch_key_parse(name))
    return keys


# Batched is an older key, which torch.autograd.grad(..., is_grads_batched=True) still uses.
_TRANSFORMED = _keys("FuncTorchGradWrapper", "FuncTorchBatched", "Batched")
_WRAPPED = _keys("FuncTorchGradWrapper", "FuncTorchBatched", "Batched", "Python", "Functionalize")


def _has_any(x: Tensor, keys: Any) -> bool:
    return bool((_C._dispatch_keys(x) & keys).raw_repr())


def wants_composite(*tensors: Tensor | None) -> bool:
    """Whether a transform has wrapped one of the tensors, or it has a forward-mode tangent: ATen's composite
    ops support both, to any order."""
    if _C._are_functorch_transforms_active():
        return True
    given = [x for x in tensors if x is not None]
    if any(_has_any(x, _TRANSFORMED) for x in given):
        return True
    if forward_ad._current_level < 0:
        return False
    return any(forward_ad.unpack_dual(x).tangent is not None for x in given)


def is_plain(x: Tensor) -> bool:
    """Whether the tensor is no fake, functional, batched or other wrapper: it has values to read and memory
    to overwrite."""
    return not _has_any(x, _WRAPPED)


def is_seen(*tensors: Tensor | None) -> bool:
    """Whether a mode or a wrapper has to see the op that is called here. Otherwise the call goes to the
    kernels without a second dispatch."""
    return _C._len_torch_dispatch_stack() > 0 or not all(x is None or is_plain(x) for x in tensors)


def requires_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def class_dim(logits: Tensor) -> int:
    return 0 if logits.dim() == 1 else 1


below_autograd = _C._AutoDispatchBelowADInplaceOrView


def in_backward() -> Any:
    """The same in a backward, whose code compiled autograd traces: it can't trace the other."""
    return nullcontext() if torch.compiler.is_dynamo_compiling() else below_autograd()


def by_aten(result: Result) -> Result:
    """Raises if a backend was required by name: it must not be replaced silently. The argument is the result,
    so that ATen raises its own errors about bad arguments first."""
    if named := native.required():
        raise RuntimeError(
            f"backend {named!r} was asked for and does not compute these arguments (device, layout, dtypes, "
            "transforms); where the choice is softkern's, torch does"
        )
    return result


def is_for_onnx(x: Tensor) -> bool:
    """Whether the new exporter to ONNX traces a call with this tensor. It knows torch's ops alone."""
    return _C._dispatch_keys(x).has(_PYTHON) and exports_to_onnx()


def is_traced_for_onnx(x: Tensor) -> bool:
    """The same, or the old exporter, which traces plain tensors above autograd."""
    return is_for_onnx(x) or (_C._get_tracing_state() is not None and exports_to_onnx())


def keeps_graph() -> bool:
    return bool(_C._autograd._get_current_graph_task_keep_graph())


def has_hooks() -> bool:
    """Whether hooks keep what is saved now."""
    return _C._autograd._top_saved_tensors_default_hooks(True) is not None


class _Kept(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _: Tensor, *tensors: Tensor | None) -> Tensor:
        ctx.save_for_backward(*tensors)
        return torch.empty(0)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> None:
        raise AssertionError("a place for tensors, in no graph")


_ROOT = torch.empty(0, requires_grad=True)


def kept(*tensors: Tensor | None) -> Tensor:
    """Keeps tensors apart from those of the Function that has the result: they are unpacked and checked when
    they are asked for, and freed with the result."""
    with torch.enable_grad():
        result: Tensor = _Kept.apply(_ROOT, *tensors)
    return result


def unpacked(place: Tensor) -> tuple[Any, ...]:
    """What kept() has kept."""
    tensors: tuple[Any, ...] = place.grad_fn.saved_tensors  # type: ignore[union-attr]
    return tensors


def _owners(saved: tuple[Tensor | None, ...], index: int) -> tuple[int, int, int]:
    """Of a tensor: references from Python, owners in C++, owners of its memory."""
    x = saved[index]
    assert x is not None
    memory = _C._storage_Use_Count(x.untyped_storage()._cdata)
    return sys.getrefcount(x), x._use_count(), memory  # type: ignore[attr-defined]


_place = kept(torch.empty(1))
_ALONE = _owners(unpacked(_place), 0)
del _place


def is_alone(saved: tuple[Tensor | None, ...], index: int) -> bool:
    """Whether nothing but a Function and the caller's `saved_tensors` can see the one at `index`. The caller
    has no other reference to it."""
    return all(found <= alone for found, alone in zip(_owners(saved, index), _ALONE, strict=True))
