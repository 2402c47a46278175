# SPDX-License-Identifier: Apache-2.0
"""Checks of the arguments of `linear_cross_entropy` that describe its linear layer, its rows and its plan.

What F.linear_cross_entropy refuses raises F's error. Finding it out costs no work on N x C numbers: shapes
stand in for logits, and F itself is asked about one row at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from softkern._arguments import as_index, torch_loss
from softkern._row_arguments import check_row_numbers, described, same_sizes

# As a number of rows: all. No tensor has more.
_ALL_ROWS = 2**31 - 1


def check_layer(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor) -> None:
    """Types and shapes."""
    for name, x in (("input", input), ("linear_weight", linear_weight), ("target", target)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {described(x)}")
    if not (linear_bias is None or isinstance(linear_bias, Tensor)):
        raise TypeError(f"linear_bias must be a tensor or None, got {described(linear_bias)}")
    if input.dim() < 1:
        raise RuntimeError(f"expected input with dimensionality at least 1, got {input.dim()}")
    if linear_weight.dim() < 2:
        raise RuntimeError(
            f"expected linear_weight with dimensionality at least 2, got {linear_weight.dim()}"
        )
    in_features = linear_weight.shape[-1]
    if not same_sizes(input.shape[-1:], [in_features]):
        raise RuntimeError(
            "expected equal input and linear_weight last dimensions (in_features), got "
            f"{input.shape[-1]} and {in_features}, respectively"
        )
    of_bias = linear_weight.shape[:-1]
    if linear_bias is not None and not same_sizes(linear_bias.shape, of_bias):
        raise RuntimeError(f"expected linear_bias shape {tuple(of_bias)}, got {tuple(linear_bias.shape)}")
    if linear_weight.dim() > 2 and input.dim() != 2:
        unbatched = "unbatched " if input.dim() == 1 else ""
        raise RuntimeError(
            f"K-dimensional loss defined by linear_weight shape {tuple(linear_weight.shape)} requires "
            f"batched input, (N, {in_features}), got {unbatched}input with shape {tuple(input.shape)}"
        )


def check_ignore_index(
    ignore_index: object, target: Tensor, logits_shape: Sequence[int], target_probs: Tensor | None
) -> Any:
    """As F.cross_entropy takes it: -100 for None."""
    if ignore_index is None:
        return -100
    if target_probs is not None:
        raise RuntimeError("ignore_index cannot be specified with target_probs")
    if same_sizes(target.shape, logits_shape):
        raise RuntimeError("ignore_index cannot be specified when target contains probabilities")
    return ignore_index


def check_leading_dims(
    input: Tensor, classes: int, target: Tensor, target_probs: Tensor | None, logits: Tensor
) -> None:
    """Of an input (..., H) with more dims than F takes: its rows keep their dims, classes are the last."""
    lead = input.shape[:-1]
    many = target.dim() == input.dim()
    fits = same_sizes(target.shape[:-1] if many else target.shape, lead)
    if not fits or (target_probs is not None and not many):
        rows = ", ".join(str(size) for size in lead)
        shapes = f"({rows}), or for class probabilities ({rows}, {classes})"
        if target_probs is not None:
            shapes = f"({rows}, K), class indices that target_probs belongs to"
        raise ValueError(f"target must have the shape {shapes}; got {described(target)}")
    if target_probs is not None:
        check_row_numbers("target_probs", target_probs, target.shape, logits)


def check_layer_dtypes(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> None:
    """Also that the tensors are on one device."""
    layer = [linear_weight] if linear_bias is None else [linear_weight, linear_bias]
    if all(t.dtype == input.dtype and t.device == input.device for t in layer):
        return
    floats = all(t.is_floating_point() for t in (input, *layer))
    if floats and torch.is_autocast_enabled(input.device.type):  # it casts them
        return
    with torch.no_grad():
        rows = input if input.dim() == 1 else input.reshape(-1, input.shape[-1])[:0]
        F.linear(rows, linear_weight, linear_bias)
    for t in layer:
        if t.device != input.device:
            raise RuntimeError(
                "linear_weight and linear_bias must be on the device of input, "
                f"{input.device}; got {t.device}"
            )


def torch_loss_of_one_row(
    logits: Tensor, target: Any, weight: Tensor | None, mode: int, ignore_index: int, label_smoothing: float
) -> None:
    """Raises what F.cross_entropy raises for logits (C) or (N, C) of the shape and dtype of `logits`."""
    of_torch = (mode, ignore_index, label_smoothing)
    one = logits.new_zeros(logits.shape[-1:])
    if logits.dim() == 2:
        if target.dim() == 0 or target.shape[0] != logits.shape[0]:
            # Only this error has the number of rows in its text. F looks at no value before it.
            meta = logits.new_empty(logits.shape, device="meta")
            torch_loss(meta, target.to("meta"), None, *of_torch)
        rows = min(logits.shape[0], 1)
        one, target = one.expand(rows, -1), target[:rows]
    torch_loss(one, target, weight, *of_torch)


def chunk_rows_of_torch(options: Any, rows: int, features: int, classes: int) -> int:
    """The rows of a chunk that torch's own options ask for; 0 where they leave the choice open.

    torch's "auto" is a choice for torch's kernels, and takes pieces that are far too small for others.
    """
    size: int | None = options.batch_chunk_size
    method: str | None = options.chunking_method
    if method is None or (method == "auto" and size is not None):
        return _ALL_ROWS if size is None else size
    if method == "auto":
        return 0
    share = int(method.partition(":")[2] or 1)
    pieces = math.ceil(classes / features)
    wanted = int(-(-rows // pieces))  # a symbolic number of rows becomes one that the graph is made for
    chosen = min((1 << max(wanted - 1, 0).bit_length()) // share, int(rows))
    if size is not None and size != chosen:
        raise ValueError(
            f"batch_chunk_size (={size}) and chunking_method ({method!r}) give different chunk sizes "
            f"({size} vs {chosen}); pass only one."
        )
    return max(1, chosen)


def positive_int(name: str, value: object) -> int | None:
    """None stays None."""
    if value is None:
        return None
    number = as_index(value)
    if number is None:
        raise TypeError(f"{name} must be an int or None, got {described(value)}")
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number
