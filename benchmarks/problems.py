# SPDX-License-Identifier: Apache-2.0
"""The inputs of a cell, the same for every provider, and the check of results against its answers, which
`benchmarks.answers` computes in float64.

The conductor makes them once and writes them to files, which the workers map. Answers are kept for all rows
of small cells, and for up to SAMPLED_ROWS rows of large ones, including the first and the last row. A mean
loss always covers all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import inputs, options
from benchmarks.cells import HEAD_OP, Cell
from benchmarks.machine import cpus

IGNORE_INDEX = -100
LABEL_SMOOTHING = 0.1
SAMPLED_ROWS, SAMPLED_ELEMENTS, FEWEST_ROWS = 256, 1 << 22, 16
ALL_ROWS_BELOW = 1 << 20  # elements
SAMPLED_CLASSES = 256  # of a head
BLOCK = 1 << 22  # elements in float64 at a time: 32 MiB
MOST_THREADS = 16  # each uses several such blocks
EPS = {"float32": 2.0**-23, "float64": 2.0**-52, "bfloat16": 2.0**-7, "float16": 2.0**-10}
# Relative to the scale of the row. Wide enough for careful arithmetic in the dtype (16-bit peers round every
# intermediate result), but too narrow for a wrong formula, option or row, whose errors are whole percents.
BOUND = {"float32": 1e-4, "float64": 1e-11, "bfloat16": 0.1, "float16": 0.02}


@dataclass
class Problem:
    """The inputs of the ops.

    x            logits, cell.shape; float32 for 16-bit cells, holding numbers of the 16-bit dtype exactly.
                 Of a head, the input (N, H)
    upstream     gradient of the output, same shape and dtype as the output; None if the differentiated value
                 is one number (a mean loss, or a softmax with a sum as option), whose gradient is 1
    target       cross_entropy: int64 class indices, or probabilities with option "probabilities";
                 selective_log_softmax: int64 class indices
    weight       cross_entropy with option "weight+ignore_index": (C,), and of softkern's own options, the
                 operand of "row_weight": (N,), "num_items": a number, and "target_probs:K": (N, K); softmax
                 and log_softmax with option "row-weights": one weight per row; selective_log_softmax: (2,
                 ...), the upstream gradients of the log-probabilities and of the entropies; a head's (V, H);
                 otherwise None
    """

    x: np.ndarray
    upstream: np.ndarray | None
    target: np.ndarray | None
    weight: np.ndarray | None


def in_threads(work: Callable[..., Any], *arguments: Iterable[Any]) -> list[Any]:
    """Like map, in threads: NumPy lets other threads run while it computes."""
    with ThreadPoolExecutor(min(cpus(), MOST_THREADS)) as pool:
        return list(pool.map(work, *arguments))


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Nearest numbers of the dtype; 16-bit ones are returned as float32, which holds them exactly."""
    if dtype == "float16":
        return values.astype(np.float16).astype(np.float32)
    if dtype == "bfloat16":
        bits = values.astype(np.float32).view(np.uint32)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
        return bits.view(np.float32)
    return values.astype(dtype, copy=False)


def make(cell: Cell) -> Problem:
    """Logits N(0, 3): rows have a few likely classes, as from a network in training. Other kinds of logits
    are made from these."""
    rng = np.random.default_rng(0)

    def normal(shape: tuple[int, ...], scale: float) -> np.ndarray:
        values = np.empty(shape, np.float64 if cell.dtype == "float64" else np.float32)
        parts = np.array_split(values.reshape(-1), -(-values.size // BLOCK))

        def fill(part: np.ndarray, generator: np.random.Generator) -> None:
            drawn = generator.standard_normal(part.shape, dtype=np.float32)
            part[:] = rounded(np.multiply(drawn, np.float32(scale), out=drawn), cell.dtype)

        in_threads(fill, parts, rng.spawn(len(parts)))
        return values

    if cell.op == HEAD_OP:  # its logits are those of the other cells
        rows, features, classes = cell.shape
        x, weight = normal((rows, features), 1.0), normal((classes, features), 3.0 / features**0.5)
        return Problem(x, None, rng.integers(0, classes, rows), weight)
    x = normal(cell.shape, 3.0)
    positions = tuple(np.delete(cell.shape, cell.dim))
    allowed = None
    if cell.inputs:
        by_class = np.moveaxis(x, cell.dim, -1)  # a view
        allowed = inputs.change(cell.inputs, by_class, cell.dtype, rng)
        x = rounded(x, cell.dtype)
    if cell.op in ("softmax", "log_softmax"):
        if cell.option == "row-weights":
            return Problem(x, None, None, normal(positions, 1.0))
        return Problem(x, None if cell.option else normal(cell.shape, 1.0), None, None)
    valid = options.valid_classes(cell)
    np.moveaxis(x, cell.dim, -1)[..., valid:] = options.PADDED  # a loss that has them in its sums is wrong
    target = rng.integers(0, valid, positions) if allowed is None else inputs.targets(allowed, rng)
    weight = None
    if cell.op == "selective_log_softmax":
        weight = normal((2, *positions), 1.0)
    elif cell.option == "probabilities":
        scores = normal(cell.shape, 1.0)
        if cell.dtype == "float16":  # torch sums the losses in float16, whose largest number is 65504
            scores += 2 * x
        target = rounded(_softmax(scores, cell.dim), cell.dtype)
    elif cell.option == "weight+ignore_index":
        target[rng.random(positions) < 0.1] = IGNORE_INDEX
        weight = rounded(rng.random(cell.classes, dtype=np.float32) + 0.5, cell.dtype)
    elif cell.option in options.TARGETS:
        several = (cell.rows, options.TARGETS[cell.option])
        target = rng.integers(0, cell.classes, several)
        weight = rounded(_softmax(normal(several, 1.0), -1), cell.dtype)
    elif cell.option == "row_weight":
        weight = rounded(rng.random(positions, dtype=np.float32) + 0.5, cell.dtype)
    elif cell.option == "num_items":
        weight = np.array(options.ACCUMULATED * cell.rows)
    upstream = normal(positions, 1.0) if cell.option == "none" else None
    return Problem(x, upstream, target, weight)


def without_option(cell: Cell, problem: Problem) -> tuple[Cell, Problem]:
    """The plain call on the same logits: of several targets a row, it has the first."""
    target = problem.target
    if cell.option in options.TARGETS and target is not None:
        target = np.ascontiguousarray(target[:, 0])
    return replace(cell, option=""), Problem(problem.x, None, target, None)


def _softmax(x: np.ndarray, dim: int) -> np.ndarray:
    e = np.exp(x - x.max(axis=dim, keepdims=True))
    return e / e.sum(axis=dim, keepdims=True)


def save(problem: Problem, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in vars(problem).items():
        if array is not None:
            np.save(folder / f"{name}.npy", array)


def load(folder: Path) -> Problem:
    def array(name: str) -> np.ndarray | None:
        path = folder / f"{name}.npy"
        return np.load(path, mmap_mode="r") if path.exists() else None

    x = array("x")
    assert x is not None, folder
    return Problem(x, array("upstream"), array("target"), array("weight"))


def by_row(array: np.ndarray, dim: int) -> np.ndarray:
    """(rows, C) with the class dimension last."""
    moved = np.moveaxis(array, dim, -1)
    return moved.reshape(-1, moved.shape[-1])


def sampled_rows(cell: Cell) -> np.ndarray:
    rows = min(SAMPLED_ROWS, max(FEWEST_ROWS, SAMPLED_ELEMENTS // cell.classes))
    if cell.elements <= ALL_ROWS_BELOW or cell.rows <= rows:
        return np.arange(cell.rows)
    return np.unique(np.linspace(0, cell.rows - 1, rows).astype(np.int64))


def sampled_classes(cell: Cell, target: np.ndarray) -> np.ndarray:
    """The rows of a head's weight whose gradients are checked: some that are targets, and some at equal
    distances, few of which are."""
    chosen = target[np.linspace(0, cell.rows - 1, SAMPLED_CLASSES // 2).astype(np.int64)]
    spread = np.linspace(0, cell.classes - 1, SAMPLED_CLASSES // 2).astype(np.int64)
    return np.unique(np.concatenate([chosen, spread]))


Answers = dict[str, np.ndarray]


def errors(cell: Cell, got: dict[str, np.ndarray], expected: Answers) -> dict[str, float]:
    """Largest |got - answer| / (eps * scale of the row) of each array; inf for NaN. An array has the cell's
    shape, or (rows, C) with only the sampled rows, as a head's gradients have."""
    rows = sampled_rows(cell)
    found = {}
    for name, array in got.items():
        answer, scale = expected[name], expected[f"{name} scale"]
        array = np.asarray(array)
        if answer.ndim == 2:
            if array.shape == cell.shape:
                array = by_row(array, cell.dim)[rows]
            if array.shape != answer.shape:
                raise ValueError(f"{name} has shape {array.shape}, expected {cell.shape}")
        else:
            array = array.reshape(-1) if answer.size == 1 else array.reshape(-1)[rows]
        # Infinities have to be equal; an ignored row has scale 0 and must be exact.
        with np.errstate(invalid="ignore", divide="ignore"):
            difference = np.where(array == answer, 0.0, np.abs(array.astype(np.float64) - answer))
            if difference.ndim > scale.ndim:
                difference = difference.max(-1)
            relative = np.where(difference == 0, 0.0, difference / scale) / EPS[cell.dtype]
        worst = float(relative.max())
        found[name] = worst if np.isfinite(worst) else float("inf")
    return found


def verdict(cell: Cell, found: dict[str, float]) -> str | None:
    """The reason to refuse a provider, or None."""
    for name, error in found.items():
        off = error * EPS[cell.dtype]
        if not off <= BOUND[cell.dtype]:
            return f"wrong {name}: off by {off:.2g} of the row's scale (accepted: {BOUND[cell.dtype]:g})"
    return None


def save_answers(found: Answers, folder: Path) -> None:
    np.savez(folder / "answers.npz", **found)


def load_answers(folder: Path) -> Answers:
    with np.load(folder / "answers.npz") as file:
        return dict(file)
