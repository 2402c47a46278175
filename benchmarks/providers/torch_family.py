# SPDX-License-Identifier: Apache-2.0
"""torch as users call it, and everything that is called in the same way: softkern, torch.compile."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks import ops, options
from benchmarks.cells import CREATE_GRAPH, HEAD_OP, Cell
from benchmarks.ops import end_to_end
from benchmarks.problems import Problem
from benchmarks.providers.base import LARGE, Absent, Prepared, Provider, peer_left_out


@dataclass
class Inputs:
    """A problem as tensors."""

    x: Any
    upstream: Any
    target: Any
    weight: Any


# The inputs of the last problem on a device. Cells with the same problem follow each other, and copying it
# to the device takes longer than timing a cell.
_on_device: dict[tuple[Any, ...], Inputs] = {}


def to_tensors(cell: Cell, problem: Problem) -> Inputs:
    if cell.device == "cpu":
        return _to_tensors(cell, problem)
    if cell.problem_key not in _on_device:
        _on_device.clear()
        _on_device[cell.problem_key] = _to_tensors(cell, problem)
    kept = _on_device[cell.problem_key]
    return Inputs(*(None if tensor is None else tensor.clone() for tensor in vars(kept).values()))


def _to_tensors(cell: Cell, problem: Problem) -> Inputs:
    import torch

    dtype = getattr(torch, cell.dtype)

    def tensor(array: np.ndarray | None) -> Any:
        if array is None:
            return None
        copy = torch.from_numpy(np.array(array))  # the file is mapped: the copy reads it into memory
        return copy.to(device=cell.device, dtype=dtype if copy.is_floating_point() else None)

    return Inputs(*(tensor(a) for a in (problem.x, problem.upstream, problem.target, problem.weight)))


def copies(first: Inputs, count: int) -> list[Inputs]:
    """The logits and their upstream gradient `count` times, so that calls find them in cache or memory."""
    own = [first]
    for _ in range(1, count):
        upstream = None if first.upstream is None else first.upstream.clone()
        own.append(Inputs(first.x.clone(), upstream, first.target, first.weight))
    return own


def named(output: Any) -> dict[str, Any]:
    """The tensors of a result: a tensor alone is the output; those of a NamedTuple keep their names."""
    if not isinstance(output, tuple):
        return {"output": output}
    if hasattr(output, "_asdict"):
        return dict(output._asdict())
    return {name: tensor for part in output for name, tensor in named(part).items()}


def to_arrays(output: Any, gradient: Any = None) -> dict[str, np.ndarray]:
    import torch

    def array(tensor: Any) -> np.ndarray:
        tensor = tensor.detach().cpu()
        return (tensor if tensor.dtype == torch.float64 else tensor.float()).numpy()

    found = {} if output is None else {name: array(tensor) for name, tensor in named(output).items()}
    if gradient is not None:
        found["gradient"] = array(gradient)
    return found


class TorchFamily(Provider):
    """A library that has torch's softmax, log_softmax and cross_entropy under these names."""

    devices = ("cpu", "cuda")
    regimes = ("default", "hugepages", "preallocated")

    def environment(self, regime: str) -> dict[str, str]:
        return {"THP_MEM_ALLOC_ENABLE": "1"} if regime == "hugepages" else {}

    def api(self, cell: Cell) -> Any:
        """The namespace with the three functions, for this cell."""
        raise NotImplementedError

    def start_torch(self, threads: int) -> str:
        try:
            import torch
        except ImportError as error:
            raise Absent(f"torch is not installed ({error})") from error
        torch.set_num_threads(threads)
        return torch.__version__

    def prepare(self, cell: Cell, problem: Problem | None, buffers: int) -> Prepared:
        api = self.api(cell)
        if problem is None:
            step, error = end_to_end.prepare(api, cell)
            return Prepared(step, lambda loss: {"loss": np.array([error(loss)])})
        op = ops.OPS[cell.op]
        if cell.op == HEAD_OP:
            from benchmarks.providers import head

            return head.prepare(cell, problem, buffers, api.linear_cross_entropy)
        inputs = copies(to_tensors(cell, problem), buffers)

        def forward(i: int) -> Any:
            own = inputs[i]
            return op.call(api, cell, own.x, own.target, own.weight)

        def summed_up(i: int, output: Any) -> Any:
            return op.summed_up(cell, output, inputs[i].weight)

        return STEPS[cell.pass_name](forward, summed_up, inputs)


Forward = Callable[[int], Any]
SummedUp = Callable[[int, Any], Any]  # from an output to the differentiated value


def no_grad(forward: Forward, _: SummedUp, inputs: list[Inputs]) -> Prepared:
    import torch

    def step(i: int) -> Any:
        with torch.no_grad():
            return forward(i)

    return Prepared(step, to_arrays)


def recorded_forward(forward: Forward, _: SummedUp, inputs: list[Inputs]) -> Prepared:
    require_gradients(inputs)
    return Prepared(forward, to_arrays)


def backward(forward: Forward, summed_up: SummedUp, inputs: list[Inputs]) -> Prepared:
    """The backward of a graph that is recorded once and kept."""
    import torch

    require_gradients(inputs)
    outputs = [summed_up(i, forward(i)) for i in range(len(inputs))]

    def step(i: int) -> Any:
        own = inputs[i]
        return torch.autograd.grad(outputs[i], own.x, own.upstream, retain_graph=True)[0]

    return Prepared(step, lambda gradient: to_arrays(None, gradient))


def forward_and_backward(forward: Forward, summed_up: SummedUp, inputs: list[Inputs]) -> Prepared:
    """As in a training step: .backward() into the .grad of a leaf without gradient."""
    require_gradients(inputs)

    def step(i: int) -> Any:
        own = inputs[i]
        output = forward(i)
        summed_up(i, output).backward(own.upstream)
        gradient, own.x.grad = own.x.grad, None
        return output, gradient

    return Prepared(step, lambda both: to_arrays(*both))


def create_graph(forward: Forward, summed_up: SummedUp, inputs: list[Inputs]) -> Prepared:
    """The gradient with a graph for a second derivative, which is not computed."""
    import torch

    require_gradients(inputs)

    def step(i: int) -> Any:
        own = inputs[i]
        output = forward(i)
        end = summed_up(i, output)
        return output, torch.autograd.grad(end, own.x, own.upstream, create_graph=True)[0]

    return Prepared(step, lambda both: to_arrays(*both))


def require_gradients(inputs: list[Inputs]) -> None:
    for own in inputs:
        own.x.requires_grad_()


STEPS = {
    "no-grad": no_grad,
    "forward": recorded_forward,
    "backward": backward,
    "forward+backward": forward_and_backward,
    CREATE_GRAPH: create_graph,
}


class Torch(TorchFamily):
    """torch.nn.functional, as users call it. What it lacks is written out as its users do."""

    name = "torch"
    peer = False

    def left_out(self, cell: Cell, threads: int | None) -> str | None:
        return None

    def load(self, threads: int) -> str:
        return self.start_torch(threads)

    def api(self, cell: Cell) -> Any:
        if options.is_own(cell) or cell.op in (HEAD_OP, end_to_end.HEAD):
            from benchmarks.providers import torch_formulas

            return torch_formulas.api(cell)
        import torch.nn.functional

        return torch.nn.functional


class TorchCompile(Torch):
    """The same under torch.compile, static shapes."""

    name = "torch-compile"
    regimes = ("default",)
    peer = True

    def left_out(self, cell: Cell, threads: int | None) -> str | None:
        if not cell.compiled:
            return "compiles for seconds a cell: measured in few"
        if threads is not None:
            return "compiles anew for each number of threads: measured with all of them"
        if options.is_own(cell) or cell.op == HEAD_OP:
            return None
        return peer_left_out(cell, tuple(ops.OPS), ("float32", "bfloat16"))

    def load(self, threads: int) -> str:
        version = self.start_torch(threads)
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            raise Absent(f"torch.compile needs a C++ compiler; no {compiler} on this machine")
        return version

    def api(self, cell: Cell) -> Any:
        import torch

        torch._dynamo.reset()
        function = getattr(super().api(cell), cell.op)
        return SimpleNamespace(**{cell.op: torch.compile(function, dynamic=False)})


class Softkern(TorchFamily):
    """softkern, as users call it."""

    name = "softkern"
    peer = False

    def left_out(self, cell: Cell, threads: int | None) -> str | None:
        if cell.op == "cross_entropy" and cell.pass_name in ("forward", "backward"):
            return "makes the gradient in its forward: see forward+backward"
        return None

    def load(self, threads: int) -> str:
        self.start_torch(threads)
        try:
            import softkern
        except ImportError as error:
            raise Absent(f"softkern is not installed ({error})") from error
        return softkern.__version__

    def api(self, cell: Cell) -> Any:
        import softkern

        there = [b for b in softkern.backends() if b.device == cell.device]
        if not any(b.active for b in there):  # otherwise torch would be timed under this name
            raise Absent("; ".join(f"{b.name}: {b.reason}" for b in there))
        return softkern


class SoftkernBackend(Softkern):
    """softkern on a backend that it does not choose itself."""

    regimes = ("default",)
    peer = True

    def __init__(self, backend: str, device: str = "cpu") -> None:
        self.backend = backend
        self.name = f"softkern:{backend}"
        self.devices = (device,)

    def left_out(self, cell: Cell, threads: int | None) -> str | None:
        if cell.device == "cpu" and cell.input_bytes > LARGE:
            return f"instruction sets are compared in cells of up to {LARGE >> 20} MiB"
        if cell.device == "cpu" and cell.op == HEAD_OP:
            return "its products are torch's, whatever the instruction set"
        dtypes = ("float32",) if cell.device == "cpu" else ("float32", "bfloat16")
        return super().left_out(cell, threads) or peer_left_out(cell, tuple(ops.OPS), dtypes)

    def environment(self, regime: str) -> dict[str, str]:
        variable = "SOFTKERN_CPU_ISA" if self.devices == ("cpu",) else "SOFTKERN_BACKEND"
        return {**super().environment(regime), variable: self.backend}

    def load(self, threads: int) -> str:
        try:
            version = super().load(threads)
        except (RuntimeError, ValueError) as error:  # the import refuses the backend, and says why
            raise Absent(str(error)) from error
        import softkern

        there = (b.name for b in softkern.backends() if b.usable and b.device in self.devices)
        if next(there) == self.backend:
            raise Absent(f"{self.backend} is what softkern runs on here without being asked")
        return version
