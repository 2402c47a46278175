# SPDX-License-Identifier: Apache-2.0
"""The functions with the signatures of `torch.nn.functional`: they normalise arguments and call the ops.

`torch.nn.functional` itself computes what the kernels do not accept: other dtypes, devices without a
backend, sparse or nested tensors, tensor subclasses with their own `__torch_dispatch__`, DTensors with
sharded classes. Arguments that it refuses raise its exceptions.
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

# A subclass with its own __torch_dispatch__ knows torch's ops, not softkern's. DTensors have a file of their
# own, _dtensor.py.
_PLAIN = {Tensor, torch.nn.Parameter, torch.nn.Buffer, FakeTensor, FunctionalTensor}

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

_ops = torch.ops.softkern

# torch's own functions. They are stored here, because other code may patch their names.
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
        dim: the dimension that sums to 1. For None, F's rule chooses it, with F's warning.
        dtype: if given, the input is converted to it first.

    Returns:
        A contiguous tensor of the shape of `input`. A row that contains NaN or +inf, or only -inf, is NaN.

    Raises:
        IndexError: `dim` is out of range.
        RuntimeError: F.softmax refuses the dtype of `input`.

    Error: at most 6 ulp in float32 for finite logits of any range and offset, below 1 ulp in 16-bit types
    (``docs/accuracy.md``). The bits of a row depend only on that row.

    Differs from torch: only in the error.

    Source: Milakov and Gimelshein, arXiv 1805.02867 (m and d); ``csrc/cpu/kernels/row_stats.h`` (how they
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
        dim: the dimension whose exponentials sum to 1. For None, F's rule chooses it, with F's warning.
        dtype: if given, the input is converted to it first.

    Returns:
        A contiguous tensor of the shape of `input`. A row that contains NaN or +inf, or only -inf, is NaN.

    Raises:
        IndexError: `dim` is out of range.
        RuntimeError: F.log_softmax refuses the dtype of `input`.

    Error: at most 6 ulp in float32 for finite logits of any range and offset, below 1 ulp in 16-bit types
    (``docs/accuracy.md``). The bits of a row depend only on that row.

    Differs from torch: log-probabilities close to 0 keep their digits; torch rounds them to 0. Sums of
    float16 and bfloat16 are kept in float32, so 131,072 equal float16 logits give -11.78 (torch: -inf).

    Source: pytorch/pytorch issue 11752 (why the maximum is subtracted before the logarithm).
    """
    if _is_usual(dim, input, dtype):
        return _C.log_softmax(input, dim)
    return _softmax(
        log_softmax, _torch_log_softmax, _C.log_softmax, _ops.log_softmax, input, dim, _stacklevel, dtype
    )


def _is_for_a_class(*arguments: object) -> bool:
    """Whether to pass torch's function, not softkern's, to `__torch_function__`.

    A tensor class knows torch's function and its options. A mode usually calls the function that it gets, and
    torch.fx records it, so these two get softkern's function.
    """
    return not _is_torch_function_mode_enabled() and not any(isinstance(x, Proxy) for x in arguments)


def _is_usual(dim: int | None, input: Tensor, dtype: torch.dtype | None) -> TypeGuard[int]:
    """Whether `_softmax` would call the op directly: its checks cost as much as several rows."""
    return (
        type(input) is Tensor
        and dtype is None
        and type(dim) is int
        and -64 <= dim < 64  # a tensor has at most 64 dims; F refuses others with its own message
        and not has_torch_function_unary(input)  # true under a TorchFunctionMode
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
        if torch.compiler.is_dynamo_compiling():  # it can't trace the warning, but knows F's function
            return fallback(input, dtype=dtype)
        # There is one frame more between the caller and the warning than in F.
        dim = F._get_softmax_dim(public.__name__, input.dim(), stacklevel + 1)  # type: ignore[attr-defined]
    # torch accepts Python's float as a name of float64.
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
        inplace_backward: lets the gradient overwrite the logits, which saves a tensor of their size. If
            `input` requires a gradient, its values are lost in the forward. `input` stays unchanged if it
            does not require a gradient, if it is a DTensor, and under torch.compile and torch.func's
            transforms.

    Returns:
        The loss in the dtype of `input`: a scalar, or for "none" one number for each row.

    Raises:
        IndexError: a target is neither a class nor `ignore_index`.
        ValueError: `reduction` is unknown, or batch sizes differ.
        RuntimeError: `label_smoothing` is outside [0, 1], `ignore_index` is given with probabilities, or
            shapes, dtypes or devices do not match. F raises the same errors, before anything is written.
            With `inplace_backward`: `input` is a leaf that requires a gradient, a view of such a leaf, or its
            elements share memory, as for any in-place operation of torch. In backward: another operation had
            saved `input` and needs it, or `input` was modified after the loss.

    Error: a row's loss for a class index at most 6 ulp in float32, its gradient at most 8 ulp, for finite
    logits of any range and offset; both below 1 ulp in 16-bit types (``docs/accuracy.md``). The bits of a
    row's loss and gradient depend only on that row.

    Memory: if a gradient is needed, one tensor of the size of `input`, which becomes the gradient; with
    `inplace_backward` none, unless the graph is retained.

    Differs from torch: ignored rows get exactly zero gradients for any logits (torch: NaN if the logits are
    NaN or all -inf). Loss and gradient of confident rows keep their digits (torch: 0). Sums of float16 and
    bfloat16 are kept in float32. int32 targets are accepted. 16-bit gradients that are scaled in backward
    (upstream gradient not 1, float16 mean) are rounded twice. The mean of a DTensor with sharded rows is the
    mean of all rows, pending a sum (torch: the average of the shards' means, which is a different number if
    the shards differ in ignored rows or weights, and an error if they differ in size).

    Source: pytorch/pytorch issues 11752 (why m and d stay apart) and 11551 (ignored rows).
    """
    if has_torch_function_variadic(input, target, weight):
        if _is_for_a_class(input, target, weight):
            options = (weight, size_average, ignore_index, reduce, reduction, label_smoothing)
            # A class that knows few functions would refuse the calls that this check makes.
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
    """Class indices in a dtype that all of torch's functions accept.

    A target with as many dims as the logits holds no indices. It stays as it is, because torch's error
    message names its dtype.
    """
    if not (isinstance(target, Tensor) and isinstance(input, Tensor)) or target.dim() == input.dim():
        return target
    return target.long() if target.dtype in (torch.int32, torch.uint8) else target


def _torch_loss(
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


def _is_int64(value: object) -> TypeGuard[int]:
    """Whether pybind11 converts the value in the same way as F."""
    return type(value) is int and -(2**63) <= value < 2**63


# Numbers of other types than Python's are converted as F converts them. None means that F has to trace the
# value, or to refuse it with its own message. F accepts more types for an ignore_index (a SymInt, for
# example) than for a dim. torch.compile sees numpy's numbers as tensors, and leaves these to F.


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
    except Exception:  # F converts it again, and raises
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
        except OverflowError:  # F converts it again, and raises
            return None
    return None


def _held_number(value: object) -> object:
    """The number in a tensor that F accepts as a number; any other value unchanged."""
    if type(value) is not Tensor or torch.compiler.is_dynamo_compiling() or torch._C._is_tracing():
        return value
    return value if value.dim() > 0 or value.requires_grad else value.item()


def _by_torch(result: Tensor) -> Tensor:
    """Raises if a backend was named: torch must not replace it silently. Bad arguments raised before."""
    if not torch.compiler.is_dynamo_compiling() and (named := _C.required()):
        raise RuntimeError(
            f"backend {named!r} was asked for and does not compute these arguments (tensor subclasses, "
            "symbolic numbers); where the choice is softkern's, torch does"
        )
    return result
