# SPDX-License-Identifier: Apache-2.0
"""Compares the declared bytes of the benchmarks with toy kernels on arrays that count moved bytes.

The toys keep one row at a time, as registers and caches do, and are checked to compute the op.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from counted_memory import Memory

from benchmarks import problems
from benchmarks.answers import answers
from benchmarks.cells import CREATE_GRAPH, ITEM_SIZE, PASSES, Cell
from benchmarks.inputs import KINDS
from benchmarks.ops import bytes_moved, cross_entropy
from benchmarks.ops import softmax as softmax_op

ROWS, CLASSES = 6, 5
GRADIENT = ("backward", "forward+backward", CREATE_GRAPH)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


NORMALISERS = {
    "softmax": (softmax, lambda y, dy: y * (dy - (y * dy).sum())),
    "log_softmax": (lambda x: np.log(softmax(x)), lambda y, dy: dy - np.exp(y) * dy.sum()),
}


def run_normaliser(cell: Cell, problem: problems.Problem) -> dict[str, np.ndarray]:
    forward, backward = NORMALISERS[cell.op]
    x = Memory(problem.x.astype(float), cell.item_size)
    upstream, weight = (
        None if array is None else Memory(array.astype(float), cell.item_size)
        for array in (problem.upstream, problem.weight)
    )
    y, dx = (Memory(np.empty(cell.shape), cell.item_size) for _ in range(2))
    if cell.pass_name == "backward":
        y.values = np.stack([forward(row) for row in x.values])
    else:
        for i in range(ROWS):
            y.store(i, forward(x.load(i)))
            if weight:  # of the number that the output is summed up to
                weight.load(i)
    if "backward" in cell.pass_name:
        constant = 1.0 if cell.option == "sum" else 1 / problem.x.size
        for i in range(ROWS):
            dy = upstream.load(i) if upstream else np.full(CLASSES, weight.load(i) if weight else constant)
            dx.store(i, backward(y.load(i), dy))
    return {"output": y.values, "gradient": dx.values}


def run_loss(cell: Cell, problem: problems.Problem) -> dict[str, np.ndarray]:
    x = Memory(problem.x.astype(float), cell.item_size)
    dx = Memory(np.empty(cell.shape), cell.item_size)
    loss = Memory(np.empty(ROWS), cell.item_size)
    upstream = Memory(np.ones(ROWS) if problem.upstream is None else problem.upstream, cell.item_size)
    weight = np.ones(CLASSES)
    if problem.weight is not None:
        weight = Memory(problem.weight[None].astype(float), cell.item_size).load(0)
    target = Memory(problem.target, cell.item_size if cell.option == "probabilities" else 8)
    dense = np.stack([as_probabilities(target.load(i), cell.option) * weight for i in range(ROWS)])
    total = 1 if cell.option == "none" else dense.sum() if problem.weight is not None else ROWS
    losses = np.empty(ROWS)
    for i, t in enumerate(dense):
        row = x.load(i)
        losses[i] = -(t * np.log(softmax(row))).sum()
        if cell.option == "none" and cell.pass_name != "backward":
            loss.store(i, losses[i])
        if cell.pass_name in GRADIENT:
            g = upstream.load(i) if cell.option == "none" else 1
            dx.store(i, (softmax(row) * t.sum() - t) * g / total)
    return {"output": losses if cell.option == "none" else losses.sum() / total, "gradient": dx.values}


def as_probabilities(target: np.ndarray, option: str) -> np.ndarray:
    if option == "probabilities":
        return target.astype(float)
    one_hot = (np.arange(CLASSES) == target).astype(float)
    return one_hot * 0.9 + 0.1 / CLASSES if option == "label_smoothing" else one_hot


def by_torch(cell: Cell, problem: problems.Problem) -> dict[str, torch.Tensor]:
    x = torch.from_numpy(problem.x).double().requires_grad_()
    weight = None if problem.weight is None else torch.from_numpy(problem.weight).double()
    if cell.op != "cross_entropy":
        y = getattr(F, cell.op)(x, 1)
    else:
        target = torch.from_numpy(problem.target)
        target = target.double() if cell.option == "probabilities" else target
        y = cross_entropy.call(F, cell, x, target, weight)
    upstream = None if problem.upstream is None else torch.from_numpy(problem.upstream).double()
    softmax_op.summed_up(cell, y, weight).backward(upstream)
    return {"output": y.detach(), "gradient": x.grad}


CELLS = [
    *(Cell(op, p, d, (ROWS, CLASSES)) for op in NORMALISERS for p in PASSES for d in ("float32", "bfloat16")),
    *(
        Cell("cross_entropy", p, "float32", (ROWS, CLASSES), 1, option)
        for p in (*PASSES, CREATE_GRAPH)
        for option in ("", *cross_entropy.OPTIONS)
    ),
    *(
        Cell(op, p, "float32", (ROWS, CLASSES), option=option)
        for op in NORMALISERS
        for p in softmax_op.BACKWARD
        for option in softmax_op.OPTIONS
    ),
]
MASKED = [
    Cell(op, "forward+backward", dtype, shape, 1, inputs=kind)
    for kind in KINDS
    for op, dtype, shape in (
        ("softmax", "float32", (2, 7, 7)),
        ("log_softmax", "float32", (2, 7, 7)),
        ("cross_entropy", "float32", (ROWS, CLASSES)),
        ("cross_entropy", "float64", (2, 7, 7)),
    )
    if kind != "causal" or len(shape) == 3
]


@pytest.mark.parametrize("cell", CELLS, ids=lambda c: c.name)
def test_declared_bytes_are_what_a_toy_kernel_moves(cell):
    problem = problems.make(cell)
    Memory.moved = 0
    got = (run_loss if cell.op == "cross_entropy" else run_normaliser)(cell, problem)
    assert bytes_moved(cell) == Memory.moved
    expected = by_torch(cell, problem)
    for name in got if cell.pass_name in GRADIENT else ["output"]:
        np.testing.assert_allclose(got[name], expected[name].numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cell", [c for c in CELLS if c.dtype == "float32"] + MASKED, ids=lambda c: c.name)
def test_answers_are_those_of_torch_in_float64(cell):
    """The oracle of the benchmarks is written in NumPy; torch is the second opinion."""
    problem = problems.make(cell)
    got, expected = answers(cell, problem), by_torch(cell, problem)
    for name in ("output", "gradient"):
        wanted = expected[name].numpy()
        wanted = problems.by_row(wanted, cell.dim) if wanted.shape == cell.shape else wanted.reshape(-1)
        np.testing.assert_allclose(got[name], wanted, rtol=1e-9, atol=1e-12)


def test_large_problems_are_checked_in_their_first_and_last_rows():
    cell = Cell("softmax", "no-grad", "float32", (5000, 300))
    rows = problems.sampled_rows(cell)
    assert rows[0] == 0 and rows[-1] == 4999 and len(rows) == problems.SAMPLED_ROWS
    problem = problems.make(cell)
    expected = answers(cell, problem)
    y = torch.from_numpy(problem.x).softmax(1).numpy()
    assert problems.verdict(cell, problems.errors(cell, {"output": y}, expected)) is None
    y[-1] *= 1.001
    assert "wrong output" in problems.verdict(cell, problems.errors(cell, {"output": y}, expected))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_inputs_are_numbers_of_the_dtype(dtype):
    values = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
    ours = torch.from_numpy(problems.rounded(values, dtype))
    assert torch.equal(ours, torch.from_numpy(values).to(getattr(torch, dtype)).float())
    assert ITEM_SIZE[dtype] == 2
