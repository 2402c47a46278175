# SPDX-License-Identifier: Apache-2.0
"""softkern's cross_entropy with the gradient written over the logits."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

from benchmarks import ops
from benchmarks.cells import Cell
from benchmarks.problems import Problem
from benchmarks.providers.base import Prepared
from benchmarks.providers.torch_family import Softkern, copies, to_arrays, to_tensors


class SoftkernInPlace(Softkern):
    """As in training, the logits are the result of another operation; this one costs no time.

    The first call computes the loss of the inputs, and is checked. Later calls compute the loss of the last
    gradient, which has overwritten the logits: that is the same amount of work.
    """

    name = "softkern:inplace"

    def left_out(self, cell: Cell, threads: int | None) -> str | None:
        if cell.op != "cross_entropy" or cell.pass_name != "forward+backward":
            return "writes the gradient of cross_entropy over its logits: forward+backward alone"
        return None

    def api(self, cell: Cell) -> Any:
        import softkern

        return SimpleNamespace(cross_entropy=partial(softkern.cross_entropy, inplace_backward=True))

    def prepare(self, cell: Cell, problem: Problem | None, buffers: int) -> Prepared:
        import torch

        class Source(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, leaf: Any, memory: Any) -> Any:
                ctx.mark_dirty(memory)
                return memory

            @staticmethod
            def backward(ctx: Any, gradient: Any) -> tuple[None, None]:
                return None, None

        assert problem is not None, "end-to-end jobs are left out"
        api, op = self.api(cell), ops.OPS[cell.op]
        inputs = copies(to_tensors(cell, problem), buffers)
        leaf = torch.empty(0, requires_grad=True)

        def step(i: int) -> Any:
            own = inputs[i]
            output = op.call(api, cell, Source.apply(leaf, own.x.detach()), own.target, own.weight)
            op.summed_up(cell, output, own.weight).backward(own.upstream)
            return output, own.x

        return Prepared(step, lambda both: to_arrays(*both))
