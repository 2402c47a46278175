# SPDX-License-Identifier: Apache-2.0
"""`linear_cross_entropy` of plain tensors in a process group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from softkern import _linear_arguments as _layer
from softkern.linear_losses import LinearCrossEntropyOptions
from softkern.options import PLANS, LinearOptions, RowOptions, StatsKeywords
from softkern.parallel._agreement import tell_failure
from softkern.parallel._call import Call, compute
from softkern.parallel._linear import InputGradient, by_row, linear_row_losses
from softkern.parallel._rows import Shard
from softkern.row_losses import Given, RowStats, all_keywords, with_keywords

if TYPE_CHECKING:
    from typing_extensions import Unpack


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    group: Any = None,
    *,
    linear_bias: Tensor | None = None,
    classes: int | Sequence[int] | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    options: LinearCrossEntropyOptions | None = None,
    reduce_input_grad: bool = True,
    sequence_parallel: bool = False,
    row_group: Any = None,
    tiles: int | None = None,
    exchange: str = "auto",
    **own: Unpack[StatsKeywords],
) -> Tensor | tuple[Tensor, RowStats]:
    r"""A linear layer whose classes are spread over the ranks of a group, and its loss, without the logits.

    Rank r has the rows :math:`W_r` of the layer's weight, those of its classes. With :math:`Z_r = X W_r^T +
    b_r`:

    .. math:: \ell = \mathrm{cross\_entropy}([Z_0, Z_1, \ldots], y)

    Equivalent to ``softkern.parallel.cross_entropy(F.linear(input, linear_weight, linear_bias), target,
    ...)``. A rank has the logits of some rows or of some of its classes at a time, and computes them again in
    backward, as the plan "lean" of `softkern.linear_cross_entropy`. Ranks exchange what `cross_entropy`
    exchanges, and the gradient of `input`, once.

    Args:
        input: (H) or (..., H), the same on all ranks.
        linear_weight: (C', H), of this rank's C' >= 0 classes.
        target: class indices of whole rows in the leading shape of `input`, the same on all ranks; K of them,
            (..., K), with `target_probs`; or probabilities of this rank's classes, (..., C').
        linear_bias: (C'), of this rank's classes.
        options: `max_bytes` and `chunk_rows` of a `softkern.LinearCrossEntropyOptions` are used.
        reduce_input_grad: whether the gradient of `input` is that of the loss: the sum over the ranks, which
            is an all-reduce in the dtype that is computed in. False: each rank gets its part of the sum, for
            callers that reduce it themselves.
        sequence_parallel: `input` has only this rank's rows, (N / P, H), all ranks equally many, in the order
            of the ranks; `target` and the other tensors of rows have all N. The rows are gathered, and their
            gradient is reduced and scattered.
        group, classes, weight, ignore_index, reduction, label_smoothing, row_group, tiles, exchange, own: as
            in `softkern.parallel.cross_entropy`.

    Returns:
        As `softkern.parallel.cross_entropy`, in the leading shape of `input`.

    Raises:
        As `softkern.parallel.cross_entropy`. RuntimeError: `input`, `linear_weight` and `linear_bias` do not
        fit together.

    Error: that of `softkern.linear_cross_entropy` (``docs/accuracy.md``). The gradient of `input` is summed
    over the ranks before it is rounded to its dtype.

    Bits: loss and statistics have the same bits for every number of ranks that have whole tiles, if the
    products give the logits the same bits. Those depend on torch's library of products, and may change with
    the number of columns. The gradient of `input` is a sum over the ranks, in the order of the group's
    all-reduce.

    Memory: beside gradients, the logits of a chunk of rows or of a tile of classes
    (``docs/linear_cross_entropy.md``, plan "lean"), and the gradient of `input` in the dtype that is computed
    in.

    Differs from torch: torch has no such function.

    Source: apple/ml-cross-entropy issue 42 and pytorch/torchtitan issue 3412 (the input's gradient must be
    reduced, and not labelled so before it is).
    """
    import torch.distributed as dist

    group = dist.group.WORLD if group is None else group
    keywords = all_keywords(own, "linear_cross_entropy")
    row_weight, target_probs = keywords["row_weight"], keywords["target_probs"]
    several = target_probs is not None or _is_floating(target)
    try:
        layer = _checked(input, linear_weight, linear_bias, target)
        of_rows = [
            by_row(t, many) for t, many in ((target, several), (row_weight, False), (target_probs, True))
        ]
    except Exception as error:
        if not torch.compiler.is_compiling():
            tell_failure(group, error)
        raise
    x = layer[0].reshape(-1, input.shape[-1])
    rows = x.shape[0] * (dist.get_world_size(group) if sequence_parallel else 1)
    # In place of the logits: shape, dtype and device without memory.
    logits = x.detach().new_empty(()).expand(rows, linear_weight.shape[0])
    lead = input.shape[:-1]
    if sequence_parallel:  # the targets have all rows
        lead = target.shape[:-1] if several else target.shape

    target, keywords["row_weight"], keywords["target_probs"] = of_rows
    call = Call(
        target,
        weight,
        ignore_index,
        reduction,
        label_smoothing,
        row_group,
        keywords,
        tiles,
        exchange,
        1,
    )
    how = InputGradient(reduce_input_grad, sequence_parallel)
    most = options.max_bytes or -1 if options is not None else -1
    chunk = options.chunk_rows or 0 if options is not None else 0

    def losses(_: Tensor, __: int, given: Given, own: RowOptions, shard: Shard) -> tuple[Tensor, ...]:
        of_layer = LinearOptions(*own, PLANS.index("lean"), most, chunk)
        return linear_row_losses((x, *layer[1:]), given, of_layer, shard, how)

    result = compute(logits, group, classes, call, losses)
    if not isinstance(result, tuple):
        return result.reshape(lead) if reduction == "none" else result
    loss, found = result
    shaped = (None if t is None else t.reshape(*lead, *t.shape[1:]) for t in found)
    return loss.reshape(lead) if reduction == "none" else loss, RowStats(*shaped)


linear_cross_entropy.__signature__ = with_keywords(linear_cross_entropy)  # type: ignore[attr-defined]


def _checked(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    _layer.check_layer(input, linear_weight, linear_bias, target)
    if linear_weight.dim() != 2:
        raise RuntimeError(f"linear_weight must have 2 dims, got {tuple(linear_weight.shape)}")
    layer = _as_autocast(input, linear_weight, linear_bias)
    _layer.check_layer_dtypes(*layer)
    return layer


def _is_floating(t: Any) -> bool:
    return isinstance(t, Tensor) and t.is_floating_point()


def _as_autocast(*layer: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """In autocast's dtype where it is on, as F.linear."""
    input, linear_weight, linear_bias = layer
    assert input is not None and linear_weight is not None
    device = input.device.type
    if not torch.is_autocast_enabled(device) or input.dtype == torch.float64:
        return input, linear_weight, linear_bias
    dtype = torch.get_autocast_dtype(device)
    return (
        input.to(dtype),
        linear_weight.to(dtype),
        None if linear_bias is None else linear_bias.to(dtype),
    )
