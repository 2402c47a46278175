# SPDX-License-Identifier: Apache-2.0
"""torch with preallocated results: `out=` where it is public, otherwise ATen's out variants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import options
from benchmarks.cells import CREATE_GRAPH, Cell
from benchmarks.problems import Problem
from benchmarks.providers.base import Prepared
from benchmarks.providers.torch_family import Inputs, Torch, copies, to_arrays, to_tensors

MEAN = 1  # ATen's number for this reduction
IGNORE_NONE = -100


class TorchOut(Torch):
    """torch's kernels without its allocations: forward and backward are called one after the other."""

    name = "torch-out"
    regimes = ("preallocated",)
    peer = True

    def left_out(self, cell: Cell, threads: int | None) -> str | None:
        if options.is_own(cell):
            return "what F lacks has no out variant"
        if cell.op not in CALLS:
            return "training goes through autograd, which refuses out="
        if cell.pass_name in ("forward", CREATE_GRAPH):
            return "autograd refuses out="
        if cell.op != "cross_entropy" and cell.option:
            return "is given the gradient of the output"
        if cell.op == "cross_entropy" and (cell.option or len(cell.shape) != 2):
            return "has out variants for plain cross-entropy of (N, C) logits only"
        if cell.op == "cross_entropy" and cell.pass_name == "backward":
            return "measured whole: its forward leaves what its backward reads"
        return None

    def prepare(self, cell: Cell, problem: Problem | None, buffers: int) -> Prepared:
        import torch

        assert problem is not None
        calls = [CALLS[cell.op](cell, own) for own in copies(to_tensors(cell, problem), buffers)]

        def step(i: int) -> Any:
            with torch.no_grad():
                return calls[i](cell.pass_name)

        return Prepared(step, lambda both: to_arrays(*both))


Call = Callable[[str], tuple[Any, Any]]  # pass name -> (output or None, gradient or None)


def softmax(cell: Cell, own: Inputs) -> Call:
    import torch

    return _normaliser(cell, own, torch.softmax, torch.ops.aten._softmax_backward_data.out, "grad_input")


def log_softmax(cell: Cell, own: Inputs) -> Call:
    import torch

    return _normaliser(cell, own, torch.log_softmax, torch.ops.aten._log_softmax_backward_data.out, "out")


def _normaliser(cell: Cell, own: Inputs, forward: Any, backward: Any, out: str) -> Call:
    y, dx = forward(own.x, cell.dim), own.x.clone()

    def call(pass_name: str) -> tuple[Any, Any]:
        if pass_name != "backward":
            forward(own.x, cell.dim, out=y)
        if pass_name != "no-grad":
            backward(own.upstream, y, cell.dim, own.x.dtype, **{out: dx})
        return (None if pass_name == "backward" else y), (None if pass_name == "no-grad" else dx)

    return call


def cross_entropy(cell: Cell, own: Inputs) -> Call:
    import torch

    aten = torch.ops.aten
    log_p, d_log_p, dx = (torch.empty_like(own.x) for _ in range(3))
    loss, total, one = own.x.new_empty(()), own.x.new_empty(()), own.x.new_ones(())
    mean = (None, MEAN, IGNORE_NONE)  # no weight

    def call(pass_name: str) -> tuple[Any, Any]:
        torch.log_softmax(own.x, 1, out=log_p)
        aten.nll_loss_forward.output(log_p, own.target, *mean, output=loss, total_weight=total)
        if pass_name == "no-grad":
            return loss, None
        aten.nll_loss_backward.grad_input(one, log_p, own.target, *mean, total, grad_input=d_log_p)
        aten._log_softmax_backward_data.out(d_log_p, log_p, 1, own.x.dtype, out=dx)
        return loss, dx

    return call


CALLS = {"softmax": softmax, "log_softmax": log_softmax, "cross_entropy": cross_entropy}
