# SPDX-License-Identifier: Apache-2.0
"""The answers to a cell's problem, in float64."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks import options
from benchmarks.cells import HEAD_OP, Cell
from benchmarks.problems import (
    BLOCK,
    IGNORE_INDEX,
    LABEL_SMOOTHING,
    MOST_THREADS,
    Answers,
    Problem,
    by_row,
    in_threads,
    sampled_classes,
    sampled_rows,
    without_option,
)


def answers(cell: Cell, problem: Problem) -> Answers:
    """Float64 "output" and "gradient" of the sampled rows; output of a mean loss is one number. Statistics
    have their own names. For an option of softkern's own, "plain output" and "plain gradient" belong to the
    call without it.

    Errors of a row are relative to "output scale" and "gradient scale": the largest term in the sums of its
    entries. The entries themselves can cancel to nothing (p - 1 of a confident row). Masked classes are no
    terms of the other entries, and their size must not hide errors there: rows with them have a scale for
    each entry.
    """
    if cell.op == HEAD_OP:
        return _head(cell, problem)
    if cell.op == "selective_log_softmax":
        return _selective(cell, problem)
    if cell.op == "cross_entropy":
        found = _cross_entropy(cell, problem)
        if cell.option in options.OWN:
            plain = _cross_entropy(*without_option(cell, problem))
            found |= {f"plain {name}": array for name, array in plain.items()}
        return found
    rows = sampled_rows(cell)
    x = by_row(problem.x, cell.dim)[rows].astype(np.float64)
    dy = _upstream_rows(cell, problem, rows)
    log_p, p = _log_softmax(x)
    if cell.op == "softmax":
        output, dot = p, (p * dy).sum(-1, keepdims=True)
        gradient, terms = p * (dy - dot), p * (np.abs(dy) + np.abs(dot))
    else:
        output, total = log_p, dy.sum(-1, keepdims=True)
        gradient, terms = dy - p * total, np.abs(dy) + p * np.abs(total)
    return {
        "output": output,
        "output scale": _output_scale(output, p),
        "gradient": gradient,
        "gradient scale": terms.max(-1),
    }


def _upstream_rows(cell: Cell, problem: Problem, rows: np.ndarray) -> np.ndarray:
    """The gradient of the output of these rows."""
    if problem.upstream is not None:
        return by_row(problem.upstream, cell.dim)[rows].astype(np.float64)
    dy = {"sum": 1.0, "mean": 1 / cell.elements}.get(cell.option)
    if dy is None:
        dy = _present(problem.weight).reshape(-1)[rows, None].astype(np.float64)
    return np.broadcast_to(dy, (len(rows), cell.classes))


def _output_scale(output: np.ndarray, p: np.ndarray) -> np.ndarray:
    """The scale: (rows,), or (rows, C) if classes are masked."""
    size = np.abs(output)
    row = size.max(-1, where=p > 0, initial=0.0)
    return row if p.all() else np.maximum(size, row[:, None])


def _log_softmax(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shifted = x - x.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return log_p, np.exp(log_p)


def _blocks(rows: np.ndarray, classes: int) -> Iterator[np.ndarray]:
    step = max(1, BLOCK // classes)
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def _cross_entropy(cell: Cell, problem: Problem) -> Answers:
    x = by_row(problem.x, cell.dim)
    losses = np.empty(cell.rows)
    mass = np.ones(cell.rows)  # weight of the row in the mean
    sampled = sampled_rows(cell)

    def block(rows: np.ndarray) -> Answers:
        """Gradient, its scale and the statistics, for the sampled rows."""
        wanted = np.isin(rows, sampled)
        z, slope = _transformed(cell, x[rows].astype(np.float64))
        log_p, p = _log_softmax(z)
        target = _target_rows(cell, problem, rows)
        losses[rows] = -np.multiply(target, log_p, where=target != 0, out=np.zeros_like(p)).sum(-1)
        pull = target.sum(-1)  # the gradient of z is pull * p - target
        if cell.option == "weight+ignore_index":
            mass[rows] = pull
        elif cell.option == "z_loss":
            lse = z.max(-1) - log_p.max(-1)
            losses[rows] += options.Z_LOSS * lse**2
            pull += 2 * options.Z_LOSS * lse
        elif cell.option == "row_weight":
            mass[rows] = weight = _present(problem.weight)[rows].astype(np.float64)
            losses[rows] *= weight
            pull *= weight
            target *= weight[:, None]
        terms, target, slope = pull[wanted, None] * p[wanted], target[wanted], slope[wanted]
        found = {
            "gradient": (terms - target) * slope,
            "gradient scale": ((terms + target) * slope).max(-1),
        }
        if cell.option == "stats":
            index = _present(problem.target)[rows[wanted]]
            found |= _statistics(z[wanted], log_p[wanted], p[wanted], index)
        return found

    blocks = in_threads(block, _blocks(np.arange(cell.rows), cell.classes))
    found = {name: np.concatenate([part[name] for part in blocks]) for name in blocks[0]}
    if cell.option == "none":
        upstream = _present(problem.upstream).reshape(-1)[sampled].astype(np.float64)
        loss = losses[sampled]
        return {
            "output": loss,
            "output scale": np.maximum(loss, 1.0),  # of log d: a confident row's loss is a small difference
            "gradient": found["gradient"] * upstream[:, None],
            "gradient scale": found["gradient scale"] * np.abs(upstream),
        }
    total = mass.sum() if cell.option != "num_items" else float(_present(problem.weight))
    loss = np.array([losses.sum() / total])
    found["gradient"] /= total
    found["gradient scale"] /= total
    return {"output": loss, "output scale": np.abs(loss), **found}


def _transformed(cell: Cell, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The logits z of which the loss is taken, and dz/dx. Classes of padding are masked."""
    if cell.option == "softcap":
        tanh = np.tanh(x / options.SOFTCAP)
        return options.SOFTCAP * tanh, 1 - tanh**2
    scales = {"logit_scale": options.LOGIT_SCALE, "temperature": 1 / options.TEMPERATURE}
    scale = scales.get(cell.option, 1.0)
    z = scale * x
    z[:, options.valid_classes(cell) :] = -np.inf
    return z, np.broadcast_to(scale, z.shape)


def _target_rows(cell: Cell, problem: Problem, rows: np.ndarray) -> np.ndarray:
    """Targets of these rows as (weighted) probabilities in float64; ignored rows are all zero."""
    target = _present(problem.target)
    if cell.option == "probabilities":
        return by_row(target, cell.dim)[rows].astype(np.float64)
    dense = np.zeros((len(rows), cell.classes))
    if cell.option in options.TARGETS:
        each = np.arange(len(rows))[:, None]
        np.add.at(dense, (each, target[rows]), _present(problem.weight)[rows])  # equal indices add up
        return dense
    index = target.reshape(-1)[rows]
    kept = np.flatnonzero(index != IGNORE_INDEX)
    dense[kept, index[kept]] = 1.0
    if cell.option == "label_smoothing":
        dense = dense * (1 - LABEL_SMOOTHING) + LABEL_SMOOTHING / cell.classes
    if cell.option == "weight+ignore_index":
        dense *= _present(problem.weight).astype(np.float64)
    return dense


def _statistics(z: np.ndarray, log_p: np.ndarray, p: np.ndarray, target: np.ndarray) -> Answers:
    """Of rows. Scales are at least 1: near 0, the values are small differences."""
    argmax = z.argmax(-1)
    found = {
        "log_prob": np.take_along_axis(log_p, target[:, None], -1)[:, 0],
        "lse": z.max(-1) - log_p.max(-1),
        "entropy": -(p * log_p).sum(-1),
        "argmax": argmax,
        "correct": argmax == target,
    }
    ones = np.ones(len(z))
    exact = {"argmax scale": ones, "correct scale": ones}
    scales = {
        f"{name} scale": np.maximum(np.abs(found[name]), 1.0) for name in ("log_prob", "lse", "entropy")
    }
    return found | scales | exact


def _selective(cell: Cell, problem: Problem) -> Answers:
    """log_softmax at an index, and the entropy; their upstream gradients are the two weights."""
    rows = sampled_rows(cell)
    x = by_row(problem.x, cell.dim)[rows].astype(np.float64)
    index = _present(problem.target).reshape(-1)[rows]
    log_p, p = _log_softmax(x)
    statistics = _statistics(x, log_p, p, index)
    of_log_prob, of_entropy = _present(problem.weight).reshape(2, -1, 1)[:, rows].astype(np.float64)
    one_hot = np.arange(cell.classes) == index[:, None]
    below = log_p + statistics["entropy"][:, None]
    terms = np.abs(of_log_prob) * (one_hot + p) + np.abs(of_entropy) * p * np.abs(below)
    return {
        **{name: array for name, array in statistics.items() if name.split()[0] in ("log_prob", "entropy")},
        "gradient": of_log_prob * (one_hot - p) - of_entropy * p * below,
        "gradient scale": terms.max(-1),
    }


def _head(cell: Cell, problem: Problem) -> Answers:
    """The loss of all rows, the gradient of the input for the sampled rows, and that of the weight for the
    sampled classes. The scale of a gradient's row is its largest entry: of the terms, N or V make one entry,
    and they cancel.

    Products of 16-bit numbers are exact in float32, and what their sums lose is far below 16 bits: in half
    the time."""
    product = np.float64 if cell.item_size > 2 else np.float32
    x, weight = problem.x.astype(product), _present(problem.weight).astype(product)
    target = _present(problem.target)
    rows, classes = sampled_rows(cell), sampled_classes(cell, target)
    losses = np.empty(cell.rows)
    of_input, of_classes = [], np.empty((cell.rows, len(classes)))

    def logarithms(z: np.ndarray) -> np.ndarray:
        return _log_softmax(z.astype(np.float64))[0]

    for block in _blocks(np.arange(cell.rows), cell.classes):
        parts = np.array_split(x[block] @ weight.T, min(MOST_THREADS, len(block)))
        log_p = np.concatenate(in_threads(logarithms, parts))
        losses[block] = -np.take_along_axis(log_p, target[block, None], -1)[:, 0]
        of_classes[block] = np.exp(log_p[:, classes]) - (classes == target[block, None])
        wanted = np.isin(block, rows)
        gradient = np.exp(log_p[wanted])
        gradient[np.arange(len(gradient)), target[block[wanted]]] -= 1
        of_input.append(gradient.astype(product) @ weight)
    output = np.array([losses.mean()])
    gradients = {
        "gradient": np.concatenate(of_input) / cell.rows,
        "weight gradient": of_classes.T @ problem.x.astype(np.float64) / cell.rows,
    }
    scales = {f"{name} scale": np.abs(array).max(-1) for name, array in gradients.items()}
    return {"output": output, "output scale": np.abs(output), **gradients, **scales}


def _present(array: np.ndarray | None) -> np.ndarray:
    assert array is not None
    return array
