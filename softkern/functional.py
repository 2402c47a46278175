# SPDX-License-Identifier: Apache-2.0
"""The functions with the signatures of `torch.nn.functional`: they normalise arguments and call the ops.

`torch.nn.functional` itself computes what the kernels do not accept, and raises its exceptions: other dtypes,
devices without a backend, sparse and nested tensors, most subclasses, DTensors with pending sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeGuard, overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import _reduction as _Reduction
from torch.overrides import handle_torch_function, has_torch_function_unary, has_torch_function_variadic

from softkern import _C, _dtensor, row_losses
from softkern._arguments import (
    PLAIN,
    as_dim,
    as_double,
    as_index,
    as_long,
    by_torch,
    is_for_a_class,
    is_int64,
    torch_loss,
)
from softkern.options import CrossEntropyOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from softkern.options import RowKeywords
    from softkern.row_losses import RowStats

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

    Differs from torch: in the error. A DTensor may be sharded along `dim` over one mesh dimension: it stays
    so (torch gathers it), without second derivatives.

    Source: Milakov and Gimelshein, arXiv 1805.02867 (m and d); ``csrc/cpu/rows/stats.h`` (how they
    keep their precision).
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

    Differs from torch: log-probabilities close to 0 keep their digits; torch rounds them to 0. 16-bit sums
    are kept in float32: 131,072 equal float16 logits give -11.78 (torch: -inf). DTensors as in `softmax`.

    Source: pytorch/pytorch issue 11752 (why the maximum is subtracted before the logarithm).
    """
    if _is_usual(dim, input, dtype):
        return _C.log_softmax(input, dim)
    return _softmax(
        log_softmax, _torch_log_softmax, _C.log_softmax, _ops.log_softmax, input, dim, _stacklevel, dtype
    )


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
        if is_for_a_class(input):
            return by_torch(fallback(input, dim, stacklevel, dtype))
        return handle_torch_function(public, (input,), input, dim, _stacklevel=stacklevel, dtype=dtype)
    if dim is None:
        if torch.compiler.is_dynamo_compiling():  # it can't trace the warning, but knows F's function
            return fallback(input, dtype=dtype)
        # There is one frame more between the caller and the warning than in F.
        dim = F._get_softmax_dim(public.__name__, input.dim(), stacklevel + 1)  # type: ignore[attr-defined]
    # torch accepts Python's float as a name of float64.
    to = torch.float64 if dtype is float else dtype  # type: ignore[comparison-overlap, redundant-expr]
    index = dim if is_int64(dim) else as_dim(dim)
    if index is not None and (to is None or isinstance(to, torch.dtype)):
        if type(input) in PLAIN:
            compute = op if torch.compiler.is_dynamo_compiling() else entry
            return compute(input if to is None else input.to(to), index)
        if _dtensor.is_dtensor(input):
            result = _dtensor.softmax(op, input, index, to)
            if result is not None:
                return result
    return by_torch(fallback(input, dim, dtype=dtype))


@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    **options: Unpack[RowKeywords],
) -> Tensor: ...
@overload
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
    stats: tuple[str, Unpack[tuple[str, ...]]],
    **options: Unpack[RowKeywords],
) -> tuple[Tensor, RowStats]: ...
@overload
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
    stats: Iterable[str],
    **options: Unpack[RowKeywords],
) -> Tensor | tuple[Tensor, RowStats]: ...
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
    **options: Any,  # those of row_losses.cross_entropy; named here, each of them would cost every call time
) -> Tensor | tuple[Tensor, RowStats]:
    r"""Cross-entropy of logits and targets, fused: one read for the loss, one write for the gradient.

    With :math:`m = \max_k z_k`, :math:`d = \sum_k \exp(z_k - m)`, :math:`a_c` the target mass of class c and
    :math:`A = \sum_c a_c`, a row has

    .. math:: \ell = \sum_c a_c\,((m - z_c) + \log d), \qquad
              \partial\ell/\partial z_c = A \exp(z_c - m)/d - a_c

    For class indices :math:`a_c = (1-s)\,w_y [c = y] + s\,w_c / C`, for class probabilities
    :math:`a_c = w_c ((1-s)\,t_c + s/C)`, with s the label smoothing. "mean" divides by the sum of
    :math:`w_y` over the rows that are not ignored, or for probabilities by the number of rows.

    The transformed logits z are the logits x, unless options change them:

    .. math:: z_c = \frac{\mathrm{softcap}}{\mathrm{temperature}}
              \tanh\left(\frac{\mathrm{logit\_scale}\; x_c}{\mathrm{softcap}}\right)
              \quad \text{or, without a softcap,} \quad
              z_c = \frac{\mathrm{logit\_scale}}{\mathrm{temperature}}\; x_c

    Equivalent to ``F.cross_entropy`` with the same arguments. The keywords behind `inplace_backward` are
    softkern's own. They are computed in the same passes over memory.

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
            `input` requires a gradient, its values are lost in the forward, or in backward if `stats` or
            float16 logits with other options of softkern need them until then. `input` stays unchanged if it
            does not require a gradient, if it is a DTensor, and under torch.compile and torch.func's
            transforms.
        row_weight: (N, d1, ..., dk), dtype of `input` or float32: multiplies each row's loss. "mean" then
            divides by the sum of row_weight times :math:`w_y` over the rows that are not ignored, or for
            probabilities by the sum of row_weight.
        num_items: a number, or a tensor of one number on any device: "mean" divides by it instead. The host
            does not wait for it. Other reductions do not use it.
        valid_classes: in [1, C]: the classes from here on are padding. They are not in the sums, their
            gradient is exactly 0, a target there is out of bounds, and probabilities and weights there are
            not read. Label smoothing spreads over the valid classes.
        target_probs: probabilities of K class indices a row: `target` and `target_probs` are (N, K, d1, ...,
            dk), dtype of `input` or float32. They count as class probabilities that are 0 elsewhere; an index
            may be repeated. (MixUp and CutMix have K = 2, teachers K largest probabilities.)
        logit_scale: multiplies the logits first.
        softcap: None, or a positive bound of the scaled logits. A logit of -inf stays -inf.
        temperature: positive; divides the logits last.
        z_loss: adds z_loss times the squared logarithm of the sum of exponentials to a row's loss, weighted
            by row_weight and :math:`w_y` (1 for probabilities) and reduced with the loss.
        stats: names of statistics, "log_prob", "lse", "entropy", "argmax" and "correct", of the transformed
            logits. "log_prob" and "correct" need one class index a row.

    Returns:
        The loss in the dtype of `input`: a scalar, or for "none" one number for each row. With `stats`, a
        pair of the loss and a `softkern.RowStats` with one number for each row; log_prob, lse and entropy are
        float32 (float64 for float64 logits) and differentiable together with the loss. Ignored rows have
        log_prob, lse and entropy 0, argmax -1, correct False.

    Raises:
        IndexError: a target is neither a class nor `ignore_index`.
        ValueError: `reduction` is unknown, or batch sizes differ. `row_weight`, `num_items` or `target_probs`
            has a wrong shape, `target` does not have the K indices that `target_probs` needs, a number is out
            of its range, or `stats` has an unknown name or one that needs other targets.
        RuntimeError: `label_smoothing` is outside [0, 1], `ignore_index` is given with probabilities, or
            shapes, dtypes or devices do not match. F raises the same errors for its own arguments. All of
            them come before anything is written.
            With `inplace_backward`: `input` is a leaf that requires a gradient, a view of such a leaf, or its
            elements share memory, as for any in-place operation of torch. In backward: another operation had
            saved `input` and needs it, or `input` was modified after the loss.
        TypeError: an argument is of another type.

    Gradients: the kernels compute that of `input`. Those of `target` (class probabilities), `weight`,
    `row_weight`, `target_probs` and `num_items` are computed by torch's operations; with class indices, F and
    softkern without its own options refuse a `weight` that requires a gradient.

    Error: a row's loss for a class index at most 6 ulp in float32, its gradient at most 8 ulp, for finite
    logits of any range and offset; both below 1 ulp in 16-bit types (``docs/accuracy.md``, which states the
    bounds of softkern's own options too). The bits of a row's loss and gradient depend only on that row.

    Memory: if a gradient is needed, one tensor of the size of `input`, which becomes the gradient; with
    `inplace_backward` none, unless the graph is retained. A gradient of `stats` is computed in backward, from
    the logits.

    Differs from torch: ignored rows get exactly zero gradients for any logits (torch: NaN if the logits are
    NaN or all -inf). Loss and gradient of confident rows keep their digits (torch: 0). Sums of float16 and
    bfloat16 are kept in float32. int32 targets are accepted. 16-bit gradients that are scaled in backward
    (upstream gradient not 1, float16 mean) are rounded twice. The mean of a DTensor with sharded rows is the
    mean of all rows, pending a sum (torch: the average of the shards' means, which is a different number if
    the shards differ in ignored rows or weights, and an error if they differ in size). Classes of a DTensor
    may be sharded as in `softmax`.

    Source: pytorch/pytorch issues 11752 (why m and d stay apart), 11551 (ignored rows) and 195829 (why no
    log-probability is lse - z); linkedin/Liger-Kernel issues 802 (num_items), 968 (gradients of single rows)
    and 551 (statistics); huggingface/trl issue 7244 (log-probability and entropy in one pass);
    unslothai/unsloth issue 10616 (padding behind a softcap).
    """
    if options:
        return row_losses.cross_entropy(
            cross_entropy,
            input,
            target,
            weight,
            size_average,
            ignore_index,
            reduce,
            reduction,
            label_smoothing,
            inplace_backward,
            **options,
        )
    if has_torch_function_variadic(input, target, weight):
        if is_for_a_class(input, target, weight):
            of_torch = (weight, size_average, ignore_index, reduce, reduction, label_smoothing)
            # A class that knows few functions would refuse the calls that this check makes.
            with torch._C.DisableTorchFunctionSubclass():
                narrow = as_long(target, input) is not target
            return by_torch(_torch_cross_entropy(input, target.long() if narrow else target, *of_torch))
        result: Tensor = handle_torch_function(
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
        return result
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


# What help and inspect show.
cross_entropy.__signature__ = row_losses.with_keywords(cross_entropy)  # type: ignore[attr-defined]


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
    plain = type(input) in PLAIN and type(target) in PLAIN and (weight is None or type(weight) in PLAIN)
    ignored = ignore_index if is_int64(ignore_index) else as_index(ignore_index)
    smoothing: float | None = label_smoothing
    if type(label_smoothing) is not float and not is_int64(label_smoothing):
        smoothing = as_double(label_smoothing)
    if ignored is not None and smoothing is not None:
        if plain and torch.compiler.is_dynamo_compiling():
            traced: Tensor = _ops.cross_entropy(input, target, weight, mode, ignored, smoothing)
            return traced
        if plain:
            return _C.cross_entropy(input, target, weight, mode, ignored, smoothing, inplace_backward)
        if _dtensor.is_dtensor(input):
            options = CrossEntropyOptions(mode, ignored, smoothing)
            loss = _dtensor.cross_entropy(input, target, weight, options)
            if loss is not None:
                return loss
    return by_torch(torch_loss(input, as_long(target, input), weight, mode, ignore_index, label_smoothing))
