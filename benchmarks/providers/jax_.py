# SPDX-License-Identifier: Apache-2.0
"""JAX on the CPU, jitted."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.cells import Cell
from benchmarks.problems import LABEL_SMOOTHING, Problem
from benchmarks.providers.base import Absent, Prepared, Provider, peer_left_out

OPS = ("softmax", "log_softmax", "cross_entropy")
DTYPES = ("float32", "bfloat16", "float16")
OPTIONS = ("", "label_smoothing", "probabilities", "none")


class Jax(Provider):
    """jax.nn.softmax, jax.nn.log_softmax, and a loss made from the latter: JAX itself has no cross-entropy.

    A cell is one jitted function, forward and backward together, so XLA may fuse across them.
    """

    name = "jax"

    def left_out(self, cell: Cell, threads: int | None) -> str | None:
        reason = peer_left_out(cell, OPS, DTYPES)
        if reason is None and cell.option not in OPTIONS:
            return f"not measured with {cell.option}"
        return reason

    def environment(self, regime: str) -> dict[str, str]:
        return {"JAX_PLATFORMS": "cpu"}

    def load(self, threads: int) -> str:
        os.environ["NPROC"] = str(threads)  # XLA has no other setting for the size of its thread pool
        try:
            import jax
        except ImportError:
            raise Absent("jax is not installed") from None
        return jax.__version__

    def prepare(self, cell: Cell, problem: Problem, buffers: int) -> Prepared:
        import jax
        import jax.numpy as jnp

        def copy(array: np.ndarray) -> jax.Array:
            return jnp.array(array, None if array.dtype == np.int64 else cell.dtype)  # indices become int32

        forward = forward_of(cell)
        arrays = [problem.x] if problem.target is None else [problem.x, problem.target]
        if cell.pass_name == "no-grad":
            compute = jax.jit(lambda *args: (forward(*args),))
        elif problem.upstream is None:
            compute = jax.jit(jax.value_and_grad(forward))
        else:
            compute = jax.jit(partial(with_upstream, forward))
            arrays.append(problem.upstream)
        inputs = [[copy(array) for array in arrays] for _ in range(buffers)]

        def step(i: int) -> Any:
            return jax.block_until_ready(compute(*inputs[i]))

        def results(value: Any) -> dict[str, np.ndarray]:
            as_numpy = (np.asarray(array, np.float32) for array in value)
            return dict(zip(("output", "gradient"), as_numpy, strict=False))

        return Prepared(step, results)


def forward_of(cell: Cell) -> Callable[..., Any]:
    """The op as a function of the logits and, in cross_entropy, the target."""
    import jax

    if cell.op == "cross_entropy":
        return partial(cross_entropy, axis=cell.dim, option=cell.option)
    return partial(getattr(jax.nn, cell.op), axis=cell.dim)


def cross_entropy(x: Any, target: Any, axis: int, option: str) -> Any:
    import jax
    import jax.numpy as jnp

    log_p = jax.nn.log_softmax(x, axis)
    if option == "probabilities":
        losses = -(target * log_p).sum(axis)
    else:
        losses = -jnp.take_along_axis(log_p, jnp.expand_dims(target, axis), axis).squeeze(axis)
    if option == "label_smoothing":
        losses = (1 - LABEL_SMOOTHING) * losses - LABEL_SMOOTHING * log_p.mean(axis)
    return losses if option == "none" else losses.mean()


def with_upstream(forward: Callable[..., Any], x: Any, *rest: Any) -> tuple[Any, Any]:
    """Output and gradient; the last argument is the gradient of the output."""
    import jax

    *target, upstream = rest
    output, pull_back = jax.vjp(lambda x: forward(x, *target), x)
    return output, *pull_back(upstream)
