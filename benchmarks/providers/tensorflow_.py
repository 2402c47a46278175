# SPDX-License-Identifier: Apache-2.0
"""TensorFlow on the CPU, as graphs."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.cells import Cell
from benchmarks.problems import Problem
from benchmarks.providers.base import Absent, Prepared, Provider, peer_left_out

OPS = ("softmax", "log_softmax", "cross_entropy")
DTYPES = ("float32", "bfloat16", "float16")
OPTIONS = ("", "probabilities")


class TensorFlow(Provider):
    """tf.nn's ops under tf.function. On a CPU a call returns when its graph has run."""

    name = "tensorflow"

    def left_out(self, cell: Cell, threads: int | None) -> str | None:
        reason = peer_left_out(cell, OPS, DTYPES)
        if reason is not None or cell.op != "cross_entropy":
            return reason
        if cell.option not in OPTIONS:
            return f"its fused loss has no {cell.option}"
        if cell.pass_name == "no-grad":
            return "its fused loss computes the gradient in every forward"
        if not cell.option and cell.dim not in (-1, len(cell.shape) - 1):
            return "its fused loss of class indices takes classes in the last dimension only"
        return None

    def environment(self, regime: str) -> dict[str, str]:
        # No GPU: these are CPU cells, also if the build of TensorFlow has CUDA.
        return {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}

    def load(self, threads: int) -> str:
        try:
            import tensorflow as tf
        except ImportError:
            raise Absent("tensorflow is not installed") from None
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
        return tf.__version__

    def prepare(self, cell: Cell, problem: Problem, buffers: int) -> Prepared:
        import tensorflow as tf

        def copy(array: np.ndarray | None) -> Any:
            if array is None:
                return None
            tensor = tf.constant(np.array(array))  # a copy: TensorFlow may keep the memory it gets
            return tensor if array.dtype == np.int64 else tf.cast(tensor, cell.dtype)

        def forward(x: Any, target: Any) -> Any:
            if cell.op == "softmax":
                return tf.nn.softmax(x, cell.dim)
            if cell.op == "log_softmax":
                return tf.nn.log_softmax(x, cell.dim)
            if cell.option == "probabilities":
                losses = tf.nn.softmax_cross_entropy_with_logits(target, x, cell.dim)
            else:
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(target, x)
            return tf.reduce_mean(losses)

        @tf.function
        def compute(x: Any, target: Any, upstream: Any) -> tuple[Any, ...]:
            if cell.pass_name == "no-grad":
                return (forward(x, target),)
            with tf.GradientTape() as tape:
                tape.watch(x)
                output = forward(x, target)
            return output, tape.gradient(output, x, output_gradients=upstream)

        inputs = [tuple(map(copy, (problem.x, problem.target, problem.upstream))) for _ in range(buffers)]

        def step(i: int) -> Any:
            return compute(*inputs[i])

        def results(value: Any) -> dict[str, np.ndarray]:
            as_numpy = (tensor.numpy().astype(np.float32) for tensor in value)
            return dict(zip(("output", "gradient"), as_numpy, strict=False))

        return Prepared(step, results)
