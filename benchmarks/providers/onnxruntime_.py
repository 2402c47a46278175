# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime's CPU provider, on models of one node."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.cells import Cell
from benchmarks.problems import Problem
from benchmarks.providers.base import Absent, Prepared, Provider, peer_left_out

OPS = {"softmax": "Softmax", "log_softmax": "LogSoftmax", "cross_entropy": "SoftmaxCrossEntropyLoss"}
OPSET, IR_VERSION = 17, 8  # IR 8 is the oldest with that opset, so that old runtimes can read the models


class OnnxRuntime(Provider):
    """Softmax and LogSoftmax are kernels; the loss becomes LogSoftmax, a gather and a mean.

    Outputs are bound once, and every step overwrites them. Only float32 is measured: there is no bfloat16,
    and float16 becomes casts and float32 steps.
    """

    name = "onnxruntime"
    regimes = ("preallocated",)

    def left_out(self, cell: Cell, threads: int | None) -> str | None:
        reason = peer_left_out(cell, tuple(OPS), ("float32",))
        if reason is not None:
            return reason
        if cell.pass_name != "no-grad":
            return "inference only"
        if cell.option:
            return f"not measured with {cell.option}"
        if cell.op == "cross_entropy" and cell.dim % len(cell.shape) != 1:
            return "its loss takes classes in dimension 1 only"
        return None

    def load(self, threads: int) -> str:
        try:
            import onnxruntime
        except ImportError:
            raise Absent("onnxruntime is not installed") from None
        try:
            import onnx  # noqa: F401  (prepare makes the models with it)
        except ImportError:
            raise Absent("onnx is not installed") from None
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = threads
        return onnxruntime.__version__

    def prepare(self, cell: Cell, problem: Problem, buffers: int) -> Prepared:
        import onnxruntime

        session = onnxruntime.InferenceSession(model(cell), self.options, providers=["CPUExecutionProvider"])
        wrap = onnxruntime.OrtValue.ortvalue_from_numpy

        def bound() -> tuple[Any, dict[str, Any]]:
            """A binding and its values. They stay referenced: a binding does not keep their memory."""
            values = {"x": wrap(np.array(problem.x))}
            if problem.target is not None:
                values["target"] = wrap(np.array(problem.target))
            binding = session.io_binding()
            for name, value in values.items():
                binding.bind_ortvalue_input(name, value)
            values["output"] = wrap(np.zeros(output_shape(cell), np.float32))
            binding.bind_ortvalue_output("output", values["output"])
            return binding, values

        bindings = [bound() for _ in range(buffers)]

        def step(i: int) -> Any:
            binding, values = bindings[i]
            session.run_with_iobinding(binding)
            return values["output"]

        return Prepared(step, lambda output: {"output": output.numpy()})


def output_shape(cell: Cell) -> tuple[int, ...]:
    return () if cell.op == "cross_entropy" else cell.shape


def model(cell: Cell) -> bytes:
    """The op as a serialized model from x (and target) to output."""
    from onnx import TensorProto, helper

    def value(name: str, shape: tuple[int, ...], dtype: int = TensorProto.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, dtype, shape)

    inputs = [value("x", cell.shape)]
    attributes: dict[str, Any] = {"axis": cell.dim}
    if cell.op == "cross_entropy":
        inputs.append(value("target", cell.shape[:1] + cell.shape[2:], TensorProto.INT64))
        attributes = {"reduction": "mean"}
    names = [each.name for each in inputs]
    node = helper.make_node(OPS[cell.op], names, ["output"], **attributes)
    graph = helper.make_graph([node], cell.op, inputs, [value("output", output_shape(cell))])
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()
