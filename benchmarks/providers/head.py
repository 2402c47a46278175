# SPDX-License-Identifier: Apache-2.0
"""The head of a language model: what its providers share, torch's chunked path, and softkern's plans."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.cells import HEAD_OP, Cell
from benchmarks.problems import Problem, sampled_classes, sampled_rows
from benchmarks.providers.base import Absent, Prepared
from benchmarks.providers.torch_family import Softkern, Torch, copies, to_arrays, to_tensors

NO_HEAD = "computes the head of a language model alone"


def prepare(cell: Cell, problem: Problem, buffers: int, loss: Callable[[Any, Any, Any], Any]) -> Prepared:
    """`loss`: of input, weight and target. Of the gradients, the sampled rows are checked: all of the
    weight's would take longer than the cell."""
    import torch

    inputs = copies(to_tensors(cell, problem), buffers)
    if cell.pass_name == "no-grad":

        def forward(i: int) -> Any:
            own = inputs[i]
            with torch.no_grad():
                return loss(own.x, own.weight, own.target)

        return Prepared(forward, to_arrays)
    assert problem.target is not None
    checked = [
        torch.from_numpy(rows).to(cell.device)
        for rows in (sampled_rows(cell), sampled_classes(cell, problem.target))
    ]
    for own in inputs:
        own.x.requires_grad_()
        own.weight.requires_grad_()

    def step(i: int) -> Any:
        own = inputs[i]
        output = loss(own.x, own.weight, own.target)
        output.backward()
        gradients = own.x.grad, own.weight.grad
        own.x.grad = own.weight.grad = None
        return output, *gradients

    def results(values: Any) -> dict[str, np.ndarray]:
        output, of_input, of_weight = values
        gradients = {"gradient": of_input[checked[0]], "weight gradient": of_weight[checked[1]]}
        return to_arrays(output) | {name: to_arrays(part)["output"] for name, part in gradients.items()}

    return Prepared(step, results)


class TorchChunked(Torch):
    """torch's linear_cross_entropy in chunks of rows, as its options choose them."""

    name = "torch:chunked"
    regimes = ("default",)
    peer = True
    # Bytes of logits: above it, a call of 16-bit numbers takes minutes on a CPU.
    LARGEST_16_BIT = 64 << 20

    def left_out(self, cell: Cell, threads: int | None) -> str | None:
        if cell.op != HEAD_OP:
            return NO_HEAD
        if cell.device == "cpu" and cell.item_size == 2 and cell.input_bytes > self.LARGEST_16_BIT:
            return f"takes minutes a call on a CPU: 16 bits up to {self.LARGEST_16_BIT >> 20} MiB of logits"
        return None

    def rounds(self, cell: Cell) -> int | None:
        """A call takes as long as all rounds of the others."""
        return 1 if cell.device == "cpu" else None

    def load(self, threads: int) -> str:
        version = super().load(threads)
        from torch import nn

        if not hasattr(nn, "LinearCrossEntropyOptions"):
            raise Absent(f"torch {version} has no linear_cross_entropy in chunks")
        return version

    def api(self, cell: Cell) -> Any:
        import torch
        import torch.nn.functional as F

        options = torch.nn.LinearCrossEntropyOptions()  # type: ignore[attr-defined]
        of_torch: Any = F.linear_cross_entropy  # type: ignore[attr-defined]
        return SimpleNamespace(
            linear_cross_entropy=lambda x, weight, target: of_torch(x, weight, target, options=options)
        )


class SoftkernPlan(Softkern):
    """softkern's linear_cross_entropy with a plan by name."""

    regimes = ("default",)

    def __init__(self, plan: str) -> None:
        self.plan = plan
        self.name = f"softkern:{plan}"

    def left_out(self, cell: Cell, threads: int | None) -> str | None:
        return None if cell.op == HEAD_OP else NO_HEAD

    def api(self, cell: Cell) -> Any:
        softkern = super().api(cell)
        options = softkern.LinearCrossEntropyOptions(plan=self.plan)
        return SimpleNamespace(
            linear_cross_entropy=lambda x, weight, target: softkern.linear_cross_entropy(
                x, weight, target, options=options
            )
        )


class SoftkernLogits(SoftkernPlan):
    """softkern's cross_entropy of all logits, which F.linear makes."""

    def __init__(self) -> None:
        super().__init__("logits")

    def api(self, cell: Cell) -> Any:
        import torch.nn.functional as F

        softkern = Softkern.api(self, cell)
        return SimpleNamespace(
            linear_cross_entropy=lambda x, weight, target: softkern.cross_entropy(F.linear(x, weight), target)
        )
