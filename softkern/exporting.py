# SPDX-License-Identifier: Apache-2.0
"""Exported programs that can be loaded without softkern."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from softkern import _C
from softkern._arguments import as_long
from softkern.options import CrossEntropyOptions, LinearOptions, RowOptions

_ops = torch.ops.softkern


def decompositions() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """softkern's ops as torch's ops, for `torch.export.ExportedProgram.run_decompositions`.

    A program with softkern's ops can be loaded only after softkern was imported. After decomposition it can
    be loaded everywhere, and torch computes it.

    Example:
        >>> class Model(torch.nn.Module):
        ...     def forward(self, x):
        ...         return softkern.softmax(x, 1)
        >>> program = torch.export.export(Model(), (torch.zeros(2, 3),))
        >>> program = program.run_decompositions(softkern.decompositions())
        >>> [node.target for node in program.graph.nodes if node.op == "call_function"]
        [<OpOverload(op='aten.softmax', overload='int')>]
    """
    return {
        _ops.softmax.default: torch.ops.aten.softmax.int,
        _ops.log_softmax.default: torch.ops.aten.log_softmax.int,
        _ops.cross_entropy.default: _cross_entropy,
        _ops.cross_entropy_.default: _cross_entropy,
        _ops.row_losses.default: _row_losses,
        _ops.row_losses_.default: _row_losses,
        _ops.linear_cross_entropy.default: _linear_cross_entropy,
    }


def _cross_entropy(
    self: Tensor, target: Tensor, weight: Tensor | None = None, *options: Any, **named: Any
) -> Tensor:
    return aten_cross_entropy(self, target, weight, CrossEntropyOptions(*options, **named))


def _row_losses(
    self: Tensor,
    target: Tensor | None = None,
    weight: Tensor | None = None,
    row_weight: Tensor | None = None,
    num_items: Tensor | None = None,
    target_probs: Tensor | None = None,
    *options: Any,
    **named: Any,
) -> tuple[Tensor, ...]:
    given = target, weight, row_weight, num_items, target_probs
    return _C.row_losses_in_aten(self, *given, *RowOptions(*options, **named))


def _linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None = None,
    target: Tensor | None = None,
    weight: Tensor | None = None,
    row_weight: Tensor | None = None,
    num_items: Tensor | None = None,
    target_probs: Tensor | None = None,
    *options: Any,
    **named: Any,
) -> tuple[Tensor, ...]:
    given = linear_bias, target, weight, row_weight, num_items, target_probs
    return _C.linear_cross_entropy_in_aten(input, linear_weight, *given, *LinearOptions(*options, **named))


def aten_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, options: CrossEntropyOptions
) -> Tensor:
    """torch's loss, of index dtypes that the kernels take and torch doesn't as well."""
    loss: Tensor = torch.ops.aten.cross_entropy_loss(
        logits, as_long(target, logits), weight, *options.of_torch
    )
    return loss
