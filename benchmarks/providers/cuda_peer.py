# SPDX-License-Identifier: Apache-2.0
"""Shared by the CUDA libraries on top of torch: torch's tensors and autograd around their functions."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

from benchmarks.cells import HEAD_OP, Cell
from benchmarks.problems import Problem
from benchmarks.providers import head
from benchmarks.providers.base import Absent, Prepared, Provider, peer_left_out
from benchmarks.providers.torch_family import to_tensors


class CudaPeer(Provider):
    """A subclass names its distribution and its ops; its `functions` call them."""

    devices = ("cuda",)
    distribution: str
    ops: tuple[str, ...]
    # Whether the gradient overwrites the logits.
    overwrites_logits = False

    def functions(self) -> dict[str, Callable[..., Any]]:
        """Import the library: op -> function of the logits and, in cross_entropy, the class indices; a head's
        is of input, weight and class indices."""
        raise NotImplementedError

    def left_out(self, cell: Cell, threads: int | None) -> str | None:
        reason = peer_left_out(cell, self.ops, ("float32", "bfloat16", "float16"))
        if reason is not None:
            return reason
        if len(cell.logits_shape) != 2 or cell.dim not in (-1, 1):
            return "takes two dimensions, classes last"
        if cell.option:
            return f"not measured with {cell.option}"
        return None

    def load(self, threads: int) -> str:
        try:
            import torch

            # First, because some of these libraries do not import without a GPU.
            if not torch.cuda.is_available():
                raise Absent("torch sees no CUDA device")
            self.calls = self.functions()
            return version(self.distribution)
        except ImportError as error:
            raise Absent(f"cannot import {self.distribution}: {' '.join(str(error).split())}") from None

    def prepare(self, cell: Cell, problem: Problem, buffers: int) -> Prepared:
        import torch

        function = self.calls[cell.op]
        if cell.op == HEAD_OP:
            return head.prepare(cell, problem, buffers, function)
        backward = cell.pass_name == "forward+backward"

        def copies() -> tuple[list[Any], Any]:
            """Arguments of the function and the gradient of its output; None stands for 1."""
            own = to_tensors(cell, problem)
            arguments = [own.x.requires_grad_(backward)]
            return arguments + ([] if own.target is None else [own.target]), own.upstream

        def run(arguments: list[Any], upstream: Any) -> tuple[Any, ...]:
            with torch.set_grad_enabled(backward):
                output = function(*arguments)
                values = (output,)
                if backward:
                    values += torch.autograd.grad(output, arguments[0], upstream)
            return values

        inputs = [copies() for _ in range(buffers)]

        def step(i: int) -> tuple[Any, ...]:
            return run(*inputs[i])

        def results(values: tuple[Any, ...]) -> dict[str, np.ndarray]:
            if self.overwrites_logits:
                # From the second time on, a step uses the last gradient as its logits. Its time is the same,
                # but its result can't be checked. So this does the same work on the problem itself.
                values = run(*copies())
            as_numpy = (tensor.detach().float().cpu().numpy() for tensor in values)
            return dict(zip(("output", "gradient"), as_numpy, strict=False))

        return Prepared(step, results)
