# SPDX-License-Identifier: Apache-2.0
"""Exported programs that can be loaded without softkern."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from softkern.functional import _as_long

_ops = torch.ops.softkern


def decompositions() -> dict[torch._ops.OpOverload, Callable[..., Tensor]]:
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
    }


def _cross_entropy(
    self: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: int = 1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    loss: Tensor = torch.ops.aten.cross_entropy_loss(
        self, _as_long(target, self), weight, reduction, ignore_index, label_smoothing
    )
    return loss
