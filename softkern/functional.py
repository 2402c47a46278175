# SPDX-License-Identifier: Apache-2.0
"""`torch.nn.functional`-shaped functions: argument normalisation, and the way to the ops.

What the kernels don't take (other dtypes, devices without a backend, sparse or nested tensors, tensor
subclasses with a `__torch_dispatch__` of their own, DTensors with sharded classes) is computed by
`torch.nn.functional` itself, and what it refuses raises its exceptions.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.fx.proxy import Proxy
from torch.nn import _reduction as _Reduction
from torch.overrides import (  # type: ignore[attr-defined]
    _is_torch_function_mode_enabled,
    handle_torch_function,
    has_torch_function_unary,
    has_torch_function_variadic,
)

from softkern import _C, _dtensor

# A subclass with its own __torch_dispatch__ knows torch's ops, not softkern's. DTensors are taken apart.
_PLAIN = {Tensor, torch.nn.Parameter, torch.nn.Buffer, FakeTensor, FunctionalTensor}

# What F takes for a dim; and, beside floats, for a label_smoothing. torch too imports numpy, if there is one.
_INTEGERS: tuple[type, ...] = (int,)
_DOUBLES: tuple[type, ...] = (int,)
try:
    import numpy
except ImportError:
    pass
else:
    _INTEGERS += (numpy.integer,)
    _DOUBLES += (numpy.integer, numpy.floating, numpy.bool_)

_ops = torch.ops.softkern

# What torch computes instead. Held, not looked up: others may patch the names.
_torch_softmax = F.softmax
_torch_log_softmax = F.log_softmax
_torch_cross_entropy = F.cross_entropy


def softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    r"""Softmax along a dimension.

    .. math:: y_c = \exp(x_c - m) / d, \quad m = \max_k x_k, \quad d = \sum_k \exp(x_k - m)

    Equivalent to ``F.softmax(input, dim, dtype=dtype)``.

    Args:
        input: any shape, any strides; float32, float64, bfloat16 or float16 (16-bit types are computed in
            float32 and rounded once).
        dim: the dimension that sums to 1. None chooses as F does, with F's warning.
        dtype: converts the input first.

    Returns:
        A contiguous tensor of the shape of `input`. A row with a NaN or +inf, or of -inf alone, is NaN.

    Raises:
        IndexError: `dim` is out of range.
        RuntimeError: `input` is of a dtype that F.softmax refuses.

    Error: at most 6 ulp in float32 for finite logits of any range and offset, below 1 ulp in 16-bit types
    (``docs/accuracy.md``). The bits of a row depend on the row alone.

    Differs from torch: in nothing but the error.

    Source: Milakov and Gimelshein, arXiv 1805.02867 (m and d); ``csrc/cpu/rows/stats.h`` (how they
    keep their digits).
    """
    if _is_usual(dim, input, dtype):
        return _C.softmax(input, dim)
    return _softmax(softmax, _torch_softmax, _C.softmax, _ops.softmax, input, dim, _stacklevel, dtype)


def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    r"""Logarithm of the softmax along a dimension.

    .. math:: y_c = (x_c - m) - \log d, \quad m = \max_k x_k, \quad d = \sum_k \exp(x_k - m)

    Equivalent to ``F.log_softmax(input, dim, dtype=dtype)``.

    Args:
        input: any shape, any strides; float32, float64, bfloat16 or float16 (16-bit types are computed in
            float32 and rounded once).
        dim: the dimension whose exponentials sum to 1. None chooses as F does, with F's warning.
        dtype: converts the input first.

    Returns:
        A contiguous tensor of the shape of `input`. A row with a NaN or +inf, or of -inf alone, is NaN.

    Raises:
        IndexError: `dim` is out of range.
        RuntimeError: `input` is of a dtype that F.log_softmax refuses.

    Error: at most 6 ulp in float32 for finite logits of any range and offset, below 1 ulp in 16-bit types
    (``docs/accuracy.md``). The bits of a row depend on the row alone.

    Differs from torch: log-probabilities close to 0 keep their digits, where torch rounds them to 0; float16
    and bfloat16 sums are kept in float32, so 131,072 equal float16 logits give -11.78 (torch: -inf).

    Source: pytorch/pytorch issue 11752 (why the maximum is subtracted before the logarithm).
    """
    if _is_usual(dim, input, dtype):
        return _C.log_softmax(input, dim)
    return _softmax(
        log_softmax, _torch_log_softmax, _C.log_softmax, _ops.log_softmax, input, dim, _stacklevel, dtype
    )


def _is_for_a_class(*arguments: object) -> bool:
    """Whether a class's `__torch_function__` is asked, which knows torch's function and its options.

    Modes mostly call what they are handed, and torch.fx writes it down: both are handed softkern's.
    """
    return not _is_torch_function_mode_enabled() and not any(isinstance(x, Proxy) for x in arguments)


def _is_usual(dim: int | None, input: Tensor, dtype: torch.dtype | None) -> TypeGuard[int]:
    """Whether `_softmax` would go straight to the op: what it asks takes as long as a few rows do."""
    return (
        type(input) is Tensor
        and dtype is None
        and type(dim) is int
        and -64 <= dim < 64  # the dims a tensor has at most; others are refused in F's words
        and not has_torch_function_unary(input)  # a mode
        and not torch.compiler.is_dynamo_compiling()
    )


def _softmax(
    public: Callable[..., Tensor],
    fallback: Callable[..., Tensor],
    entry: Callable[[Tensor, int], Tensor],
    op: Callable[[Tensor, int], Tensor],
    input: Tensor,
    dim: int | None,
    stacklevel: int,
    dtype: torch.dtype | None,
) -> Tensor:
    if has_torch_function_unary(input):
        if _is_for_a_class(input):
            return _by_torch(fallback(input, dim, stacklevel, dtype))
        return handle_torch_function(public, (input,), input, dim, _stacklevel=stacklevel, dtype=dtype)
    if dim is None:
        if torch.compiler.is_dynamo_compiling():  # which can't trace the warning, but knows F's function
            return fallback(input, dtype=dtype)
        # One frame more than F has between the caller and the warning.
        dim = F._get_softmax_dim(public.__name__, input.dim(), stacklevel + 1)  # type: ignore[attr-defined]
    # torch takes Python's name of float64 too.
    to = torch.float64 if dtype is float else dtype  # type: ignore[comparison-overlap, redundant-expr]
    index = dim if _is_int64(dim) else _as_dim(dim)
    if index is not None and (to is None or isinstance(to, torch.dtype)):
        if type(input) in _PLAIN:
            compute = op if torch.compiler.is_dynamo_compiling() else entry
            return compute(input if to is None else input.to(to), index)
        if _dtensor.is_dtensor(input):
            result = _dtensor.softmax(op, input, index, to)
            if result is not None:
                return result
    return _by_torch(fallback(input, dim, dtype=dtype))


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    inplace_backward: bool = False,
) -> Tensor:
    r"""Cross-entropy of logits and targets, fused: one read for the loss, one write for the gradient.

    With :math:`m = \max_k x_k`, :math:`d = \sum_k \exp(x_k - m)`, :math:`a_c` the target mass of class c and
    :math:`A = \sum_c a_c`, a row has

    .. math:: \ell = \sum_c a_c\,((m - x_c) + \log d), \qquad
              \partial\ell/\partial x_c = A \exp(x_c - m)/d - a_c

    For class indices :math:`a_c = (1-s)\,w_y [c = y] + s\,w_c / C`, for class probabilities
    :math:`a_c = w_c ((1-s)\,t_c + s/C)`, with s the label smoothing. "mean" divides by the sum of
    :math:`w_y` over the rows that are not ignored, or for probabilities by the number of rows.

    Equivalent to ``F.cross_entropy`` with the same arguments.

    Args:
        input: logits, (C), (N, C) or (N, C, d1, ..., dk), any strides; float32, float64, bfloat16 or float16.
        target: class indices, (), (N) or (N, d1, ..., dk), int64, uint8 or int32; or class probabilities in
            shape and dtype of `input`.
        weight: (C), dtype of `input`.
        size_average, reduce: deprecated as in F.
        ignore_index: rows with this target contribute nothing.
        reduction: "none", "mean" or "sum".
        label_smoothing: in [0, 1].
        inplace_backward: allows the gradient to take the place of the logits, which saves a tensor of that
            size. Where `input` requires a gradient, its values are lost in the forward; where it does not,
            of a DTensor, and under torch.compile and torch.func's transforms, it stays as it is.

    Returns:
        The loss in the dtype of `input`: a scalar, or for "none" the shape of class-index targets.

    Raises:
        IndexError: a target is neither a class nor `ignore_index`.
        ValueError: `reduction` is unknown, or batch sizes differ.
        RuntimeError: `label_smoothing` is outside [0, 1], `ignore_index` is given with probabilities, or
            shapes, dtypes or devices don't go together. All as F raises them, before anything is written.
            With `inplace_backward`: `input` is a leaf that requires a gradient or a view of one, or its
            elements share memory, as for any in-place operation of torch; in backward, if an operation that
            had saved `input` needs it, or if `input` was modified after the loss.

    Error: a row's loss for a class index at most 6 ulp in float32, its gradient at most 8 ulp, for finite
    logits of any range and offset; both below 1 ulp in 16-bit types (``docs/accuracy.md``). The bits of a
    row's loss and gradient depend on the row alone.

    Memory: with a gradient wanted, one tensor of the size of `input`, which becomes the gradient; with
    `inplace_backward` none, unless the graph is retained.

    Differs from torch: ignored rows get exactly zero gradients whatever their logits (torch: NaN where the
    logits are NaN or all -inf); loss and gradient of confident rows keep their digits (torch: 0); sums over
    float16 and bfloat16 are kept in float32; int32 targets are taken. 16-bit gradients that are
    scaled in backward (upstream gradient not 1, float16 mean) are rounded a second time. The mean of a
    DTensor with sharded rows is the mean of all rows, pending a sum (torch: the average of the shards' means,
    which is another number if they differ in ignored rows or weights, and refused if they differ in size).

    Source: pytorch/pytorch issues 11752 (why m and d stay apart) and 11551 (ignored rows).
    """
    if has_torch_function_variadic(input, target, weight):
        if _is_for_a_class(input, target, weight):
            options = (weight, size_average, ignore_index, reduce, reduction, label_smoothing)
            # Asked about itself, a class that knows few functions would refuse.
            with torch._C.DisableTorchFunctionSubclass():
                narrow = _as_long(target, input) is not target
            return _by_torch(_torch_cross_entropy(input, target.long() if narrow else target, *options))
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
            inplace_backward=inplace_backward,
        )
    return _cross_entropy(
        input,
        target,
        weight,
        size_average,
        ignore_index,
        reduce,
        reduction,
        label_smoothing,
        inplace_backward,
    )


def _cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    size_average: bool | None,
    ignore_index: int,
    reduce: bool | None,
    reduction: str,
    label_smoothing: float,
    inplace_backward: bool = False,
) -> Tensor:
    """cross_entropy of arguments that don't override `__torch_function__`."""
    if size_average is not None or reduce is not None:
        reduction = _Reduction.legacy_get_string(size_average, reduce)
    mode = _Reduction.get_enum(reduction)
    plain = type(input) in _PLAIN and type(target) in _PLAIN and (weight is None or type(weight) in _PLAIN)
    ignored = ignore_index if _is_int64(ignore_index) else _as_index(ignore_index)
    smoothing: float | None = label_smoothing
    if type(label_smoothing) is not float and not _is_int64(label_smoothing):
        smoothing = _as_double(label_smoothing)
    if ignored is not None and smoothing is not None:
        if plain and torch.compiler.is_dynamo_compiling():
            traced: Tensor = _ops.cross_entropy(input, target, weight, mode, ignored, smoothing)
            return traced
        if plain:
            return _C.cross_entropy(input, target, weight, mode, ignored, smoothing, inplace_backward)
        if _dtensor.is_dtensor(input):
            loss = _dtensor.cross_entropy(input, target, weight, mode, ignored, smoothing)
            if loss is not None:
                return loss
    return _by_torch(_torch_loss(input, _as_long(target, input), weight, mode, ignore_index, label_smoothing))


def _as_long(target: Any, input: Any) -> Any:
    """Class indices in a dtype that torch's functions take everywhere.

    Targets of as many dims as the logits are no indices: what torch says of those names their dtype.
    """
    if not (isinstance(target, Tensor) and isinstance(input, Tensor)) or target.dim() == input.dim():
        return target
    return target.long() if target.dtype in (torch.int32, torch.uint8) else target


def _torch_loss(
    input: Tensor, target: Tensor, weight: Tensor | None, mode: int, ignore_index: int, label_smoothing: float
) -> Tensor:
    """What F.cross_entropy calls; that itself may have softkern behind it (softkern.install)."""
    loss: Tensor = torch._C._nn.cross_entropy_loss(
        input,
        target,
        weight,
        mode,  # type: ignore[arg-type]
        ignore_index,
        label_smoothing,
    )
    return loss


def _is_int64(value: object) -> TypeGuard[int]:
    """What pybind11 converts as F does."""
    return type(value) is int and -(2**63) <= value < 2**63


# Numbers that are not Python's own: what F makes of them; None for what is F's to trace, or to refuse in its
# own words. F takes more for an ignore_index, which may be a SymInt, than for a dim. To torch.compile numpy's
# numbers are tensors, and those F's.


def _as_dim(value: object) -> int | None:
    if not isinstance(value, _INTEGERS):
        value = _held_number(value)
    return _as_index(value) if isinstance(value, _INTEGERS) else None


def _as_index(value: object) -> int | None:
    value = _held_number(value)
    if isinstance(value, (bool, Tensor, torch.SymInt)):
        return None
    if torch.compiler.is_dynamo_compiling():
        return value if isinstance(value, int) else None
    try:
        index = operator.index(value)  # type: ignore[arg-type]
    except Exception:  # F asks again
        return None
    return index if _is_int64(index) else None


def _as_double(value: object) -> float | None:
    value = _held_number(value)
    if torch.compiler.is_dynamo_compiling():
        return value if isinstance(value, (int, float)) else None
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, _DOUBLES):
        try:
            return float(value)  # type: ignore[arg-type]
        except OverflowError:  # F asks again
            return None
    return None


def _held_number(value: object) -> object:
    """The number in a tensor that F would take for one; anything else as it is."""
    if type(value) is not Tensor or torch.compiler.is_dynamo_compiling() or torch._C._is_tracing():
        return value
    return value if value.dim() > 0 or value.requires_grad else value.item()


def _by_torch(result: Tensor) -> Tensor:
    """A backend that was named must not be replaced silently; bad arguments have raised by now."""
    if not torch.compiler.is_dynamo_compiling() and (named := _C.required()):
        raise RuntimeError(
            f"backend {named!r} was asked for and does not compute these arguments (tensor subclasses, "
            "symbolic numbers); where the choice is softkern's, torch does"
        )
    return result
