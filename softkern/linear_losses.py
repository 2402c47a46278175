# SPDX-License-Identifier: Apache-2.0
"""A linear layer and the loss of its outputs in one call, which never holds the N x C logits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import _reduction as _Reduction
from torch.overrides import handle_torch_function, has_torch_function_variadic

from softkern import _C, _dtensor, _dtensor_linear, functional
from softkern import _linear_arguments as _layer
from softkern import _row_arguments as _check
from softkern._arguments import PLAIN, by_torch, is_for_a_class
from softkern.options import OUTPUTS, PLANS, LinearOptions
from softkern.row_losses import Given, RowStats, repaired

_ops = torch.ops.softkern
_LOSS = OUTPUTS["loss"]
_NONE, _MEAN = (_Reduction.get_enum(name) for name in ("none", "mean"))

# None: this torch has no such function, or no such class.
_torch_linear_cross_entropy: Any = getattr(F, "linear_cross_entropy", None)
_TorchsOptions: Any = getattr(nn, "LinearCrossEntropyOptions", None)


@dataclass(frozen=True)
class LinearCrossEntropyOptions:
    """How `linear_cross_entropy` computes. All plans give the same loss and gradients, but for rounding.

    Args:
        plan: "auto", "fast", "lean" or "reference" (``docs/linear_cross_entropy.md``). One that can't serve a
            call leaves it to the next of them that can.
        max_bytes: the most memory that temporaries may take, beside inputs, results and gradients. None: no
            limit but the plan's own.
        chunk_rows: rows whose logits exist at a time. None: the plan chooses.

    Raises:
        ValueError: an unknown plan, or a number below 1.
        TypeError: a number that is no int.
    """

    plan: str = "auto"
    max_bytes: int | None = None
    chunk_rows: int | None = None

    def __post_init__(self) -> None:
        if self.plan not in PLANS:
            raise ValueError(f"unknown plan {self.plan!r}; choose from {', '.join(PLANS)}")
        _layer.positive_int("max_bytes", self.max_bytes)
        _layer.positive_int("chunk_rows", self.chunk_rows)


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
    options: LinearCrossEntropyOptions | None = None,
    row_weight: Tensor | None = None,
    num_items: float | Tensor | None = None,
    valid_classes: int | None = None,
    target_probs: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    z_loss: float = 0.0,
    stats: Iterable[str] = (),
) -> Any:
    r"""A linear layer and the cross-entropy of its outputs in one call, without the N x C logits.

    The logits of row n are

    .. math:: x_{nc} = \sum_h \mathrm{input}_{nh}\, \mathrm{linear\_weight}_{ch} + \mathrm{linear\_bias}_c

    and loss, statistics and their gradient :math:`\partial\ell/\partial x` are those of
    `softkern.cross_entropy`. The gradients of the layer are

    .. math:: \frac{\partial\ell}{\partial\,\mathrm{input}}
              = \frac{\partial\ell}{\partial x}\; \mathrm{linear\_weight}, \qquad
              \frac{\partial\ell}{\partial\,\mathrm{linear\_weight}}
              = \left(\frac{\partial\ell}{\partial x}\right)^{\!\top} \mathrm{input}, \qquad
              \frac{\partial\ell}{\partial\,\mathrm{linear\_bias}}
              = \sum_n \frac{\partial\ell}{\partial x_n}

    The logits of some rows, or of some classes, exist at a time.

    Equivalent to ``F.cross_entropy(F.linear(input, linear_weight, linear_bias), target, ...)``, and to
    ``F.linear_cross_entropy`` of torch 2.13 with the same arguments. It works with older torch too. The
    keywords behind `options` are those of `softkern.cross_entropy`.

    Args:
        input: (H), (N, H) or (..., H); float32, float64, bfloat16 or float16.
        linear_weight: (C, H), dtype of `input`; (C, d1, ..., dk, H) for a K-dimensional loss of an input
            (N, H).
        target: class indices in the shape of the rows, (), (N) or (...), int64, uint8 or int32; or class
            probabilities (C), (N, C) or (..., C), dtype of `input`. For a K-dimensional loss (N, d1, ..., dk)
            or (N, C, d1, ..., dk). A target of the shape of the logits is probabilities.
        linear_bias: (C) or (C, d1, ..., dk), dtype of `input`.
        weight: (C), dtype of `input`: multiplies the loss of a class.
        reduction: "none", "mean" or "sum".
        ignore_index: rows with this target contribute nothing; -100 for None. Not with probabilities.
        label_smoothing: in [0, 1].
        options: a `softkern.LinearCrossEntropyOptions`, or None for its defaults. Of torch's class of this
            name the rows of a chunk are used; a `chunking_method` of "auto" leaves them to softkern.
        row_weight: in the shape of the rows, dtype of `input` or float32: multiplies each row's loss.
        num_items: a number, or a tensor of one number on any device: "mean" divides by it instead.
        valid_classes: in [1, C]: the classes from here on are padding, and are not computed.
        target_probs: probabilities of K class indices a row; it and `target` are (N, K) or (..., K).
        logit_scale, softcap, temperature: transform the logits, in this order.
        z_loss: adds z_loss times the squared logarithm of the sum of exponentials to a row's loss.
        stats: names of statistics, "log_prob", "lse", "entropy", "argmax" and "correct".

    Returns:
        The loss in the dtype of `input`: a scalar, or for "none" one number for each row. With `stats`, a
        pair of the loss and a `softkern.RowStats` with one number for each row, as in
        `softkern.cross_entropy`.

    Raises:
        IndexError: a target is neither a class nor `ignore_index`.
        ValueError: `reduction` is unknown, batch sizes differ, a tensor of rows has a wrong shape, a number
            is out of its range, `stats` has an unknown name or one that needs other targets, or `max_bytes`
            is less than any plan needs; the text says how much that is.
        RuntimeError: shapes, dtypes or devices of the layer do not match, `ignore_index` is given with
            probabilities, or what `softkern.cross_entropy` refuses. In backward: `input` or `linear_weight`
            was modified after the loss.
        TypeError: an argument is of another type.

    Gradients: the kernels compute those of `input`, `linear_weight` and `linear_bias`, of those alone that
    need one. Second derivatives, forward mode, `torch.func` and the gradients of other tensors are computed
    by torch's operations, which have all logits.

    Error: logits, softmax and sums over classes are float32 for 16-bit inputs (float64 for float64), and the
    gradient of `linear_weight` is rounded once, however many chunks there are. The bits of a row's loss on
    the CPU depend neither on the order of rows nor on the plan's chunks (``docs/linear_cross_entropy.md``).

    Memory: beside results and gradients, the logits of a chunk of rows or of classes, and what the plan
    keeps; `max_bytes` limits it. ``docs/linear_cross_entropy.md`` has the formula.

    Differs from torch: ignored rows are left out before the first product, so NaN or inf there reach no
    gradient. 16-bit logits are never rounded to 16 bits. Options apply to probabilities, label smoothing,
    double backward and torch.compile as well, where torch ignores or refuses them. Any number of leading
    dimensions and int32 targets are accepted. DTensors differ as in `softkern.cross_entropy`.

    Source: linkedin/Liger-Kernel issues 968 (gradients of single rows), 1391 (one rounding of the weight's
    gradient), 1432 (logits in float32) and 802 (num_items); pytorch/pytorch issue 195829 (why no
    log-probability is lse - z).
    """
    tensors = (input, linear_weight, target, linear_bias, weight, row_weight, num_items, target_probs)
    own: dict[str, Any] = {
        "row_weight": row_weight,
        "num_items": num_items,
        "valid_classes": valid_classes,
        "target_probs": target_probs,
        "logit_scale": logit_scale,
        "softcap": softcap,
        "temperature": temperature,
        "z_loss": z_loss,
        "stats": stats if isinstance(stats, (str, tuple)) or stats is None else tuple(stats),
    }
    if has_torch_function_variadic(*tensors):
        of_torch: dict[str, Any] = {
            "linear_bias": linear_bias,
            "weight": weight,
            "reduction": reduction,
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
            "options": options,
        }
        if is_for_a_class(*tensors) and _is_torchs_call(input, options, own):
            return by_torch(_torch_linear_cross_entropy(input, linear_weight, target, **of_torch))
        return repaired(
            handle_torch_function(
                linear_cross_entropy, tensors, input, linear_weight, target, **of_torch, **own
            )
        )
    layer = (input, linear_weight, linear_bias)
    return _linear_cross_entropy(
        layer, target, weight, reduction, ignore_index, label_smoothing, options, own
    )


_OWN_DEFAULTS: dict[str, Any] = {
    "row_weight": None,
    "num_items": None,
    "valid_classes": None,
    "target_probs": None,
    "logit_scale": 1.0,
    "softcap": None,
    "temperature": 1.0,
    "z_loss": 0.0,
    "stats": (),
}


def _is_torchs_call(input: Tensor, options: object, own: dict[str, Any]) -> bool:
    """Whether torch has the function, and takes the same call. A class knows torch's function, if any."""
    if _torch_linear_cross_entropy is None or not (options is None or isinstance(options, _TorchsOptions)):
        return False
    # A class that knows few functions would refuse the calls that this check makes.
    with torch._C.DisableTorchFunctionSubclass():
        return input.dim() <= 2 and own == _OWN_DEFAULTS


# input, linear_weight, linear_bias
_Layer: TypeAlias = "tuple[Tensor, Tensor, Tensor | None]"


def _linear_cross_entropy(
    layer: _Layer,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int | None,
    label_smoothing: float,
    options: object,
    own: dict[str, Any],
) -> Any:
    """linear_cross_entropy of arguments that don't override `__torch_function__`."""
    _layer.check_layer(*layer, target)
    input, linear_weight, _ = layer
    lead, classes = input.shape[:-1], linear_weight.shape[0]
    row_weight, target_probs = own["row_weight"], own["target_probs"]
    ignored = _layer.check_ignore_index(
        ignore_index, target, (*lead, *linear_weight.shape[:-1]), target_probs
    )
    plan = _plan_of(options, input, classes)
    mode = _Reduction.get_enum(reduction)
    numbers = _check.logit_numbers(own["logit_scale"], own["softcap"], own["temperature"])
    zeta = _check.finite("z_loss", own["z_loss"])
    wanted = _check.output_bits(own["stats"])

    def with_logits() -> Any:
        of_f = {"ignore_index": ignored, "reduction": reduction, "label_smoothing": label_smoothing}
        return _with_logits(layer, target, weight, **of_f, **own)

    if linear_weight.dim() > 2 or not all(x is None or _is_dense(x) for x in layer):
        return with_logits()
    # In place of the logits, in the layout of F.cross_entropy: shape, dtype and device without memory.
    number = torch.empty((), dtype=input.dtype, device=input.device)
    logits = number.expand(*lead[:1], classes, *lead[1:])
    if len(lead) > 1:
        _layer.check_leading_dims(input, classes, target, target_probs, logits)
    placed = any(map(_dtensor.is_dtensor, layer))
    if placed:
        many = target.dim() == input.dim() > 2
        y, probs = (t.movedim(-1, 1) if many and t is not None else t for t in (target, target_probs))
        kind, index, smoothing, fits = _check.fit_as_torch(logits, y, weight, probs, ignored, label_smoothing)
        if not fits:
            return with_logits()
    else:
        _layer.check_layer_dtypes(*layer)
        flat, (y, probs) = logits, (target, target_probs)
        if len(lead) > 1:
            flat = number.expand(lead.numel(), classes)
            y, probs = (_flat(t, target.dim() == input.dim()) for t in (y, probs))
        kind, y, index, smoothing = _check.check_as_torch(
            flat, y, weight, probs, mode, ignored, label_smoothing, _layer.torch_loss_of_one_row
        )
        if not lead:
            target = y  # F takes an index of shape (1)
    _check.check_one_index(wanted, kind)
    if row_weight is not None:
        _check.check_row_numbers("row_weight", row_weight, lead, logits)
    items = None if own["num_items"] is None else _check.divisor(own["num_items"], input)
    classes = _check.class_count(own["valid_classes"], logits)
    given = (target, weight, row_weight, items if mode == _MEAN else None, target_probs)
    chosen = LinearOptions(mode, index, smoothing, classes, *numbers, zeta, _LOSS | wanted, *plan)
    if placed:
        results = _dtensor_linear.linear_cross_entropy(_of_rows, layer, given, chosen)
        if results is None:
            return with_logits()
    else:
        results = _of_rows(layer, given, chosen)
    loss, *statistics = results
    if not wanted:
        return loss
    return loss, RowStats(
        *(x if wanted & OUTPUTS[name] else None for name, x in zip(RowStats._fields, statistics, strict=True))
    )


def _plan_of(options: object, input: Tensor, classes: int) -> tuple[int, int, int]:
    """plan, max_bytes and chunk_rows as the op takes them."""
    if options is None:
        return 0, -1, 0
    if isinstance(options, LinearCrossEntropyOptions):
        return PLANS.index(options.plan), options.max_bytes or -1, options.chunk_rows or 0
    if _TorchsOptions is not None and isinstance(options, _TorchsOptions):
        features = input.shape[-1]
        return 0, -1, _layer.chunk_rows_of_torch(options, input.shape[:-1].numel(), features, classes)
    raise TypeError(
        "options must be a softkern.LinearCrossEntropyOptions, a torch.nn.LinearCrossEntropyOptions or None, "
        f"got {_check.described(options)}"
    )


def _is_dense(x: Tensor) -> bool:
    return x.layout == torch.strided and not x.is_nested


def _flat(x: Any, with_classes: bool) -> Any:
    """Numbers of rows, of (...) or (..., K), in one dim of rows."""
    if x is None:
        return None
    end = x.dim() - with_classes
    return x.unsqueeze(0) if end == 0 else x.flatten(0, end - 1) if end > 1 else x


def _of_rows(layer: _Layer, given: Given, options: LinearOptions) -> tuple[Tensor, ...]:
    """The six results of the op, those of rows in the shape of the rows."""
    input, linear_weight, linear_bias = layer
    target, weight, row_weight, num_items, target_probs = given
    lead = input.shape[:-1]
    many = target is not None and target.dim() == input.dim()
    flat = (_flat(target, many), weight, _flat(row_weight, False), num_items, _flat(target_probs, True))
    loss, *statistics = _call(_flat(input, True), linear_weight, linear_bias, *flat, options=options)
    if len(lead) != 1:
        if options.reduction == _NONE:
            loss = loss.reshape(lead)
        bits = tuple(OUTPUTS.values())[1:]
        statistics = [
            x.reshape(lead) if options.outputs & bit else x for bit, x in zip(bits, statistics, strict=True)
        ]
    return loss, *statistics


def _call(*tensors: Any, options: LinearOptions) -> tuple[Tensor, ...]:
    if torch.compiler.is_dynamo_compiling():
        traced: tuple[Tensor, ...] = _ops.linear_cross_entropy(*tensors, *options)
        return traced
    if all(x is None or type(x) in PLAIN for x in tensors):
        if any(isinstance(n, torch.SymInt) for n in (options.valid_classes, options.ignore_index)):
            symbolic: tuple[Tensor, ...] = _ops.linear_cross_entropy(*tensors, *options)
            return symbolic
        return _C.linear_cross_entropy(*tensors, *options)
    return by_torch(_C.linear_cross_entropy_in_aten(*tensors, *options))


def _with_logits(
    layer: _Layer, target: Tensor, weight: Tensor | None, *, target_probs: Tensor | None, **options: Any
) -> Any:
    """Of all logits, for what the op does not take."""
    input, linear_weight, linear_bias = layer
    *of_logits, features = linear_weight.shape
    if len(of_logits) > 1:
        linear_weight = linear_weight.reshape(math.prod(of_logits), features)
        linear_bias = linear_bias if linear_bias is None else linear_bias.reshape(-1)
    logits = F.linear(input, linear_weight, linear_bias)
    if len(of_logits) > 1:
        logits = logits.reshape(*input.shape[:-1], *of_logits)
    elif input.dim() > 2:  # classes in dim 1
        if target.dim() == input.dim():
            target = target.movedim(-1, 1)
            target_probs = target_probs if target_probs is None else target_probs.movedim(-1, 1)
        logits = logits.movedim(-1, 1)
    return functional.cross_entropy(logits, target, weight, target_probs=target_probs, **options)
