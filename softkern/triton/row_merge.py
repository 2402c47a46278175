# SPDX-License-Identifier: Apache-2.0
"""The step merge_rows on tensors, as csrc/ops/cross_entropy/call.h defines it."""

from __future__ import annotations

from itertools import islice
from typing import Any, NamedTuple

from torch import Tensor

from softkern import _C
from softkern.options import RowOptions
from softkern.triton.formulas import mass_numbers
from softkern.triton.launch import launch_options, on_device_of, triton_dtype
from softkern.triton.plan import power_of_two
from softkern.triton.row_losses import zeta_of
from softkern.triton.row_losses_blocks import INDEX, INDICES, NONE
from softkern.triton.row_merge_kernels import row_merge_kernel

# The parts that a thread merges at most, all of which it holds in registers, and those of float64. More are
# merged in several launches, along the same tree: these are powers of two.
MOST_MERGED, MOST_MERGED_DOUBLE = 8, 4
# The warps of a program: a few thousand rows should occupy every multiprocessor.
WARPS = 2


class Results(NamedTuple):
    """One number a row, K of them in `log_prob` with K indices; None if not wanted."""

    loss: Tensor | None
    log_prob: Tensor | None
    lse: Tensor | None
    entropy: Tensor | None
    merged: Tensor | None  # (7, rows)


def merge_rows(
    parts: Tensor,
    hot_z: Tensor | None,
    indices: Tensor | None,
    target_probs: Tensor | None,
    weight: Tensor | None,
    row_weight: Tensor | None,
    *given: Any,
) -> None:
    """Merges `parts`, (7, parts, rows), and writes the results that are given. `given`: the options, the
    results."""
    rest = iter(given)
    options = RowOptions(*islice(rest, len(RowOptions._fields)))
    results = Results(*rest)
    if parts.shape[2] == 0:
        return
    targets = (hot_z, indices, target_probs, weight, row_weight)
    with on_device_of(parts):
        while (nodes := parts.shape[1]) > (most := _most_merged(parts)):
            groups = parts.new_empty(parts.shape[0], -(-nodes // most), parts.shape[2])
            _launch(parts, groups, (None,) * 5, (None,) * 4, options)
            parts = groups
        merged = None if results.merged is None else results.merged.unsqueeze(1)
        _launch(parts, merged, targets, results[:4], options)
    _C.set_last("triton", "parts of a row")


def _most_merged(parts: Tensor) -> int:
    return MOST_MERGED_DOUBLE if parts.itemsize == 8 else MOST_MERGED


def _launch(
    parts: Tensor,
    merged: Tensor | None,
    targets: tuple[Tensor | None, ...],
    results: tuple[Tensor | None, ...],
    options: RowOptions,
) -> None:
    hot_z, indices, target_probs, weight, row_weight = targets
    _, nodes, rows = parts.shape
    if indices is not None and indices.shape[1:] == (1,) and target_probs is None:
        indices = indices.view(-1)  # the z of the only index is a number of the row
    kind = NONE
    if indices is not None:
        kind = INDICES if indices.dim() == 2 else INDEX
    per_row = indices.shape[1] if kind is INDICES and indices is not None else 0
    block_p = min(power_of_two(nodes), _most_merged(parts))
    block_r = 32 * WARPS
    row_merge_kernel[(-(-rows // block_r), -(-nodes // block_p))](
        parts, hot_z, indices, target_probs, weight, row_weight, *results, merged, rows, nodes,
        parts.stride(0), parts.stride(1), *((0, 0) if merged is None else merged.stride()[:2]), per_row,
        options.valid_classes, options.ignore_index, mass_numbers(options, options.valid_classes)[0],
        zeta_of(options), DTYPE=triton_dtype(parts.dtype), KIND=kind.value, LEVELS=block_p.bit_length() - 1,
        BLOCK_R=block_r, **launch_options(parts.device, WARPS),
    )  # fmt: skip
