# SPDX-License-Identifier: Apache-2.0
"""The textbook formulas in NumPy, which runs them on one thread: the cost of the simplest code."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.cells import Cell
from benchmarks.problems import Problem
from benchmarks.providers.base import Prepared, Provider, peer_left_out


class NumPy(Provider):
    """Max-shifted, one array operation at a time."""

    name = "numpy"

    def left_out(self, cell: Cell, threads: int | None) -> str | None:
        reason = peer_left_out(cell, tuple(PASSES), ("float32", "float64"))
        if reason is None and cell.option:
            return f"written out for plain {cell.op}, not for {cell.option}"
        return reason

    def load(self, threads: int) -> str:
        return np.__version__

    def prepare(self, cell: Cell, problem: Problem, buffers: int) -> Prepared:
        # take_along_axis needs indices with as many dimensions as the logits.
        extra = problem.upstream if problem.target is None else np.expand_dims(problem.target, cell.dim)
        inputs = [(np.array(problem.x), np.array(extra)) for _ in range(buffers)]
        compute = PASSES[cell.op][cell.pass_name]

        def step(i: int) -> tuple[Any, ...]:
            return compute(*inputs[i], cell.dim)

        def results(value: tuple[Any, ...]) -> dict[str, np.ndarray]:
            return dict(zip(("output", "gradient"), map(np.asarray, value), strict=False))

        return Prepared(step, results)


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    """e^x of a row over its sum."""
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def log_softmax(x: np.ndarray, axis: int) -> np.ndarray:
    """x of a row less the logarithm of its sum of e^x."""
    shifted = x - x.max(axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))


def cross_entropy(log_p: np.ndarray, target: np.ndarray, axis: int) -> np.ndarray:
    """Mean over all rows of -log p[target]."""
    return -np.take_along_axis(log_p, target, axis).mean()


def softmax_both(x: np.ndarray, dy: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    p = softmax(x, axis)
    return p, p * (dy - (p * dy).sum(axis, keepdims=True))


def log_softmax_both(x: np.ndarray, dy: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    log_p = log_softmax(x, axis)
    return log_p, dy - np.exp(log_p) * dy.sum(axis, keepdims=True)


def cross_entropy_both(x: np.ndarray, target: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The gradient is (p - 1 at the target) / rows."""
    log_p = log_softmax(x, axis)
    gradient = np.exp(log_p)
    np.put_along_axis(gradient, target, np.take_along_axis(gradient, target, axis) - 1, axis)
    gradient /= target.size
    return cross_entropy(log_p, target, axis), gradient


# (x, upstream gradient or target, axis) -> (output,) or (output, gradient)
PASSES = {
    "softmax": {
        "no-grad": lambda x, _, axis: (softmax(x, axis),),
        "forward+backward": softmax_both,
    },
    "log_softmax": {
        "no-grad": lambda x, _, axis: (log_softmax(x, axis),),
        "forward+backward": log_softmax_both,
    },
    "cross_entropy": {
        "no-grad": lambda x, target, axis: (cross_entropy(log_softmax(x, axis), target, axis),),
        "forward+backward": cross_entropy_both,
    },
}
