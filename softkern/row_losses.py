# SPDX-License-Identifier: Apache-2.0
"""Losses and statistics of rows with softkern's own options: all are results of one op, row_losses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import _reduction as _Reduction
from torch.overrides import handle_torch_function, has_torch_function_variadic

from softkern import _C, _dtensor
from softkern import _row_arguments as _check
from softkern._arguments import PLAIN, by_torch, is_traced
from softkern.options import OUTPUTS, RowOptions

_ops = torch.ops.softkern
_LOSS, _LOG_PROB, _ENTROPY = OUTPUTS["loss"], OUTPUTS["log_prob"], OUTPUTS["entropy"]
_REDUCTIONS = ("none", "mean", "sum")  # in the order of torch's enum
_NONE, _MEAN, _SUM = (_Reduction.get_enum(name) for name in _REDUCTIONS)
# No class index: selective_log_softmax ignores no row.
_NO_INDEX = -(2**63)


# The tensors of the op behind the logits: target, weight, row_weight, num_items, target_probs.
Given: TypeAlias = "tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]"


class RowStats(NamedTuple):
    """Statistics of the rows, one number for each; None for those that were not asked for.

    They are those of the transformed logits z (`cross_entropy`), over the first `valid_classes` classes. The
    first three are float32 (float64 for float64 logits) and differentiable. Ignored rows have 0, 0, 0, -1 and
    False.
    """

    log_prob: Tensor | None = None  # log-probability of the target class
    lse: Tensor | None = None  # logarithm of the sum of exponentials
    entropy: Tensor | None = None  # of the probabilities
    argmax: Tensor | None = None  # int64; the first class of the largest z
    correct: Tensor | None = None  # bool; whether argmax is the target


def cross_entropy(
    public: Callable[..., Any],
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    size_average: bool | None,
    ignore_index: int,
    reduce: bool | None,
    reduction: str,
    label_smoothing: float,
    inplace_backward: bool,
    /,
    *,
    row_weight: Tensor | None = None,
    num_items: float | Tensor | None = None,
    valid_classes: int | None = None,
    target_probs: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    z_loss: float = 0.0,
    stats: Iterable[str] = (),
) -> Tensor | tuple[Tensor, RowStats]:
    """`softkern.cross_entropy`, which is `public`, of calls that give some of these keywords."""
    tensors = (input, target, weight, row_weight, num_items, target_probs)
    if has_torch_function_variadic(*tensors):
        result: Tensor | tuple[Tensor, RowStats] = handle_torch_function(
            public,
            tensors,
            input,
            target,
            weight=weight,
            size_average=size_average,
            ignore_index=ignore_index,
            reduce=reduce,
            reduction=reduction,
            label_smoothing=label_smoothing,
            inplace_backward=inplace_backward,
            row_weight=row_weight,
            num_items=num_items,
            valid_classes=valid_classes,
            target_probs=target_probs,
            logit_scale=logit_scale,
            softcap=softcap,
            temperature=temperature,
            z_loss=z_loss,
            stats=stats,
        )
        return repaired(result)
    if size_average is not None or reduce is not None:
        reduction = _Reduction.legacy_get_string(size_average, reduce)
    mode = _Reduction.get_enum(reduction)
    scale, cap, heat = _check.logit_numbers(logit_scale, softcap, temperature)
    zeta = _check.finite("z_loss", z_loss)
    wanted = _check.output_bits(stats)
    if (
        row_weight is None
        and num_items is None
        and valid_classes is None
        and target_probs is None
        and scale == heat == 1
        and cap == zeta == wanted == 0
    ):
        plain: Tensor = public(
            input,
            target,
            weight,
            ignore_index=ignore_index,
            reduction=_REDUCTIONS[mode],
            label_smoothing=label_smoothing,
            inplace_backward=inplace_backward,
        )
        return plain
    kind, y, ignored, smoothing = _check.check_as_torch(
        input, target, weight, target_probs, mode, ignore_index, label_smoothing
    )
    _check.check_one_index(wanted, kind)
    if row_weight is not None:
        _check.check_row_numbers("row_weight", row_weight, _check.row_sizes(input), input)
    items = None if num_items is None else _check.divisor(num_items, input)
    options = RowOptions(
        mode,
        ignored,
        smoothing,
        _check.class_count(valid_classes, input),
        scale,
        cap,
        heat,
        zeta,
        _LOSS | wanted,
    )
    given = (y, weight, row_weight, items if mode == _MEAN else None, target_probs)
    loss, *statistics = _row_losses(input, given, options, inplace_backward)
    if not wanted:
        return loss
    return loss, RowStats(
        *(x if wanted & OUTPUTS[name] else None for name, x in zip(RowStats._fields, statistics, strict=True))
    )


def repaired(result: Tensor | tuple[Tensor, RowStats]) -> Tensor | tuple[Tensor, RowStats]:
    """The result of `__torch_function__`. torch's own gives a named tuple one iterator for all its fields."""
    if isinstance(result, tuple):
        loss, stats = result
        fields: Any = stats.log_prob
        if isinstance(fields, Iterator):
            return loss, RowStats(*fields)
    return result


def all_keywords(given: Mapping[str, Any], function: str) -> dict[str, Any]:
    """The keywords of `StatsKeywords` in their order: those that are given to `function`, and defaults."""
    own = inspect.signature(cross_entropy).parameters.values()
    defaults = {p.name: p.default for p in own if p.kind is p.KEYWORD_ONLY}
    for name in given:
        if name not in defaults:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
    keywords = {**defaults, **given}
    if isinstance(keywords["stats"], Iterator):  # it would be read twice
        keywords["stats"] = tuple(keywords["stats"])
    return keywords


def numbers_of(own: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """The numbers among `all_keywords` as the op takes them, in the order of its options."""
    scale, cap, heat = _check.logit_numbers(own["logit_scale"], own["softcap"], own["temperature"])
    return scale, cap, heat, _check.finite("z_loss", own["z_loss"])


def with_keywords(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of `function`, whose further keywords are those of `cross_entropy`, with all of them."""
    own = inspect.signature(function)
    named = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    passed = [p for p in inspect.signature(cross_entropy).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return own.replace(parameters=[*named, *passed])


def selective_log_softmax(
    logits: Tensor,
    index: Tensor,
    *,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Log-probabilities of chosen classes, without the log-probabilities of all classes.

    With :math:`z_c` the transformed logits of `cross_entropy`, :math:`m = \max_k z_k` and
    :math:`d = \sum_k \exp(z_k - m)`, a class y has

    .. math:: \log p_y = -((m - z_y) + \log d), \qquad
              H = \log d + \sum_c \frac{\exp(z_c - m)}{d}\,(m - z_c)

    Equivalent to ``(logits * logit_scale / temperature).log_softmax(-1).gather(-1, index)`` for K indices a
    row and no softcap.

    Args:
        logits: (..., C), any strides; float32, float64, bfloat16 or float16.
        index: class indices, int64, uint8 or int32: one a row, (...), or K of them, (..., K).
        logit_scale, softcap, temperature: as in `cross_entropy`.
        entropy: whether to return the entropy of the rows as well.

    Returns:
        The log-probabilities in the shape of `index`; with `entropy`, a pair of them and of the entropies in
        the shape (...). Both are float32 (float64 for float64 logits), and differentiable together: the
        logits get their gradient in one pass.

    Raises:
        IndexError: an index is no class.
        ValueError: the shape of `index` does not fit, or `softcap`, `temperature` or `logit_scale` is out of
            its range.
        RuntimeError: dtypes or devices do not match.
        TypeError: an argument is of another type.

    Error: ``docs/accuracy.md`` states it. Log-probabilities and entropies close to 0 keep their digits. The
    bits of a row depend only on that row.

    Memory: the forward writes only its results. The gradient is one tensor of the size of `logits`, which is
    computed in backward.

    Differs from torch: torch needs the log-probabilities of all classes, in the dtype of the logits.

    Source: huggingface/trl issue 7244 (the name; both results in one pass), pytorch/pytorch issue 195829 (why
    m and log d stay apart).
    """
    if has_torch_function_variadic(logits, index):
        result: Tensor | tuple[Tensor, Tensor] = handle_torch_function(
            selective_log_softmax,
            (logits, index),
            logits,
            index,
            logit_scale=logit_scale,
            softcap=softcap,
            temperature=temperature,
            entropy=entropy,
        )
        return result
    numbers = _check.logit_numbers(logit_scale, softcap, temperature)
    _check.check_logits(logits)
    _check.check_index(index, logits)
    log_prob, h = _of_rows(logits, logits.dim() - 1, index, numbers, _LOG_PROB | (_ENTROPY if entropy else 0))
    return (log_prob, h) if entropy else log_prob


def entropy_from_logits(
    logits: Tensor,
    dim: int = -1,
    *,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> Tensor:
    r"""Entropy of the softmax along a dimension, without the probabilities.

    With :math:`z_c` the transformed logits of `cross_entropy`, :math:`m = \max_k z_k` and
    :math:`d = \sum_k \exp(z_k - m)`:

    .. math:: H = \log d + \sum_c \frac{\exp(z_c - m)}{d}\,(m - z_c)

    Equivalent to ``torch.distributions.Categorical(logits=logits).entropy()`` for the last dimension.

    Args:
        logits: any shape with a dimension, any strides; float32, float64, bfloat16 or float16.
        dim: the dimension of the classes.
        logit_scale, softcap, temperature: as in `cross_entropy`.

    Returns:
        The entropies in nats in the shape of `logits` without `dim`; float32 (float64 for float64 logits). A
        class with a logit of -inf adds nothing.

    Raises:
        IndexError: `dim` is out of range.
        ValueError: `softcap`, `temperature` or `logit_scale` is out of its range, or `logits` has no
            dimension.
        RuntimeError: `logits` are not dense floating-point numbers.
        TypeError: an argument is of another type.

    Error: ``docs/accuracy.md`` states it. All terms are at least 0, so nothing cancels: entropies close to 0
    keep their digits. The bits of a row depend only on that row.

    Memory: the forward writes only its result. The gradient is one tensor of the size of `logits`, which is
    computed in backward.

    Differs from torch: logits of -inf give no NaN.

    Source: huggingface/trl issue 7244 (the name; the formula in one pass).
    """
    if has_torch_function_variadic(logits):
        result: Tensor = handle_torch_function(
            entropy_from_logits,
            (logits,),
            logits,
            dim,
            logit_scale=logit_scale,
            softcap=softcap,
            temperature=temperature,
        )
        return result
    numbers = _check.logit_numbers(logit_scale, softcap, temperature)
    _check.check_logits(logits)
    class_dim = _check.class_dim_of(logits, dim)
    return _of_rows(logits, class_dim, None, numbers, _ENTROPY)[1]


def _of_rows(
    logits: Tensor, dim: int, index: Tensor | None, numbers: tuple[float, float, float], outputs: int
) -> tuple[Tensor, Tensor]:
    """(log_prob, entropy), each of them empty if `outputs` lacks it. K indices are in the last dimension."""
    scale, cap, heat = numbers
    options = RowOptions(_NONE, _NO_INDEX, logit_scale=scale, softcap=cap, temperature=heat, outputs=outputs)
    if _dtensor.is_dtensor(logits):
        placed = _dtensor.of_rows(
            lambda x, y: _of_rows(x, dim, y, numbers, outputs), logits, dim, index, options
        )
        if placed is not None:
            return placed
    x, moved = _with_rows(logits, dim)
    y, many = index, index is not None and index.dim() == logits.dim() > 1
    if y is not None and y.dim() > 1:
        y = y.movedim(-1, 1) if moved and many else y if moved else y.flatten(0, -2) if many else y.flatten()
    _, log_prob, _, entropy, _, _ = _row_losses(x, (y, None, None, None, None), options)
    if index is not None:
        log_prob = log_prob.movedim(1, -1).contiguous() if moved and many else log_prob.reshape(index.shape)
    if outputs & _ENTROPY:
        entropy = entropy.reshape([size for i, size in enumerate(logits.shape) if i != dim])
    return log_prob, entropy


def _with_rows(x: Tensor, dim: int) -> tuple[Tensor, bool]:
    """The logits with their classes in dimension 1, as the op takes them, and whether that one was moved.

    (C) stays (C). Otherwise the dims before and after the classes become one each, if that needs no copy. If
    it does and the logits need a gradient, they are copied, so that rows and gradient are contiguous.
    """
    if x.dim() == 1 or (x.dim() == 2 and dim == 1):
        return x, False
    needs_grad = torch.is_grad_enabled() and x.requires_grad
    if not (needs_grad or is_traced() or (_is_one_dim(x, 0, dim) and _is_one_dim(x, dim + 1, x.dim()))):
        return x.movedim(dim, 1), True
    if dim + 1 < x.dim():
        x = x.flatten(dim + 1)
    return (x.flatten(0, dim - 1) if dim > 0 else x.unsqueeze(0)), False


def _is_one_dim(x: Tensor, begin: int, end: int) -> bool:
    """Whether one stride walks all elements of these dims."""
    expected = None
    for size, stride in zip(reversed(x.shape[begin:end]), reversed(x.stride()[begin:end]), strict=True):
        if size != 1:
            if expected not in (None, stride):
                return False
            expected = stride * size
    return True


def _row_losses(
    input: Tensor, given: Given, options: RowOptions, inplace_backward: bool = False
) -> tuple[Tensor, ...]:
    """The six results of the op. `given`: its tensors behind the logits."""
    if _dtensor.is_dtensor(input):
        placed = _dtensor.row_losses(input, given, options)
        if placed is not None:
            return placed
    if torch.compiler.is_dynamo_compiling():
        traced: tuple[Tensor, ...] = _ops.row_losses(input, *given, *options)
        return traced
    if all(x is None or type(x) in PLAIN for x in (input, *given)):
        if any(isinstance(n, torch.SymInt) for n in (options.valid_classes, options.ignore_index)):
            symbolic: tuple[Tensor, ...] = _ops.row_losses(input, *given, *options)
            return symbolic
        return _C.row_losses(input, *given, *options, inplace_backward)
    return by_torch(_C.row_losses_in_aten(input, *given, *options))
