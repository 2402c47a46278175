# SPDX-License-Identifier: Apache-2.0
"""Whole training jobs: an epoch of the classifiers under examples/, and a step of a language-model head."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cells import Cell
from benchmarks.providers.base import Absent

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
BATCH = 1200  # as in the published Fashion-MNIST runs
HEAD = "language-model head"
HIDDEN, VOCABULARY, TOKENS = 768, 50257, 2048  # GPT-2 small


@dataclass
class Job:
    """A model, its data and its optimiser; they are the same in every run."""

    model: Any
    parameters: list[Any]
    batches: list[tuple[Any, Any]]
    learn: bool = True

    def run(self, loss_of: Callable[[Any, Any], Any], optimizer: Any) -> float:
        """One pass over the batches; returns the loss of the first."""
        first = None
        for x, y in self.batches:
            loss = loss_of(x, y)
            for parameter in self.parameters:
                parameter.grad = None
            loss.backward()
            if self.learn:
                optimizer.step()
            first = loss if first is None else first
        return float(first.detach())


def cells(device: str) -> list[Cell]:
    head = Cell(HEAD, "step", "float32", (TOKENS, VOCABULARY), 1, device=device, main=True)
    if device != "cpu":
        return [head]
    epochs = ("zoo", "fashion-mnist small", "fashion-mnist deep")
    return [*(Cell(name, "epoch", "float32", main=True) for name in epochs), head]


def job(cell: Cell) -> Job:
    """Raises Absent if data or packages of the examples are missing; downloads nothing."""
    import torch

    torch.manual_seed(0)
    if cell.op == HEAD:
        tokens, vocabulary = cell.shape
        model = torch.nn.Linear(HIDDEN, vocabulary, bias=False, device=cell.device)
        x = torch.randn(tokens, HIDDEN, device=cell.device)
        y = torch.randint(0, vocabulary, (tokens,), device=cell.device)
        return Job(model, list(model.parameters()), [(x, y)], learn=False)
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    try:
        model, batches = classifier(cell.op)
    except (ImportError, SystemExit) as error:  # the examples end with a message on how to get the data
        raise Absent(str(error).splitlines()[0]) from error
    return Job(model, list(model.parameters()), batches)


def classifier(name: str) -> tuple[Any, list[tuple[Any, Any]]]:
    import torch

    if name == "zoo":
        import zoo

        return torch.nn.Linear(16, 7), [zoo.load()]
    import fashion_data
    import fashion_mnist

    x, y = fashion_data.load(None, download=False)[:2]
    batches = zip(x.split(BATCH), y.split(BATCH), strict=True)
    return fashion_mnist.build(name.split()[1]), list(batches)


def prepare(api: Any, cell: Cell) -> tuple[Callable[[int], float], Callable[[float], float]]:
    """The step, and the relative error of the first loss of a job against float64. A head is one call of
    linear_cross_entropy."""
    import torch

    work = job(cell)
    optimizer = torch.optim.Adam(work.parameters, lr=1e-3)
    with torch.no_grad():
        x, y = work.batches[0]
        answer = float(torch.nn.functional.cross_entropy(work.model(x).double(), y))

    def loss_of(x: Any, y: Any) -> Any:
        if cell.op == HEAD:
            return api.linear_cross_entropy(x, work.model.weight, y)
        return api.cross_entropy(work.model(x), y)

    def step(_: int) -> float:
        return work.run(loss_of, optimizer)

    return step, lambda first: abs(first - answer) / abs(answer)
