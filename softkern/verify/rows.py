# SPDX-License-Identifier: Apache-2.0
"""Calls with softkern's own options, and statistics: their results, and what `row_oracle` expects."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from softkern.verify import inputs, row_oracle
from softkern.verify.case import NAMES, ROW_OPS, Case, Problem
from softkern.verify.row_oracle import Answer, Rows

STATISTICS = ("log_prob", "lse", "entropy", "argmax", "correct")
EXACT = {"argmax": torch.int64, "correct": torch.bool}


def quantities(case: Case) -> dict[str, str]:
    """The results of a case by the names of the report, and their names in `row_oracle`."""
    first = {"selective_log_softmax": "log_prob", "entropy_from_logits": "entropy"}.get(case.op, "loss")
    return {
        case.op: first,
        **{name: name for name in case.stats},
        f"{case.op} gradient": "gradient",
    }


def dtype_of(case: Case, quantity: str) -> torch.dtype:
    """The loss and the gradient have the logits' dtype, statistics that of the computation."""
    dtype = NAMES[case.dtype]
    if quantity in EXACT:
        return EXACT[quantity]
    statistic = quantity in STATISTICS or quantity in ROW_OPS
    return torch.float32 if statistic and dtype.itemsize == 2 else dtype


def results(
    functions: ModuleType, case: Case, problem: Problem, upstream: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The outputs and the gradient of the logits, copied to the CPU.

    Backward starts from `upstream`, by default from `upstream_of`.
    """
    leaf = problem.x.detach().requires_grad_()
    outputs = _outputs(functions, case, problem, leaf)
    given = upstream_of(case, outputs) if upstream is None else upstream
    pulled = [outputs[name] for name in given]
    (dx,) = torch.autograd.grad(pulled, leaf, [g.to(leaf.device) for g in given.values()])
    return {**{name: y.detach().cpu() for name, y in outputs.items()}, f"{case.op} gradient": dx.cpu()}


def _outputs(functions: ModuleType, case: Case, problem: Problem, leaf: Tensor) -> dict[str, Tensor]:
    f, kwargs = getattr(functions, case.op), dict(problem.kwargs or {})
    if case.op == "entropy_from_logits":
        return {case.op: f(leaf, problem.dim, **kwargs)}
    if case.op == "selective_log_softmax":
        if not case.stats:
            return {case.op: f(leaf, problem.target, **kwargs)}
        log_prob, entropy = f(leaf, problem.target, entropy=True, **kwargs)
        return {case.op: log_prob, "entropy": entropy}
    kwargs["reduction"] = case.reduction
    x = leaf
    if case.inplace:
        x, kwargs["inplace_backward"] = leaf.clone(), True
    if not case.stats:
        return {case.op: f(x, problem.target, **kwargs)}
    loss, stats = f(x, problem.target, stats=case.stats, **kwargs)
    return {case.op: loss, **{name: getattr(stats, name) for name in case.stats}}


def upstream_of(case: Case, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The upstream gradients by output; there are none of the outputs in `case.still`."""
    found = {}
    for name, y in outputs.items():
        if y.dtype.is_floating_point and name not in case.still and not name.endswith(" gradient"):
            kind = case.upstream if name == case.op else "random"
            found[name] = inputs.upstream(y.detach().cpu(), kind)
    return found


def expectations(case: Case, problem: Problem, ours: dict[str, Tensor]) -> dict[str, Answer]:
    """The float64 answers by quantity, on the CPU."""
    known = quantities(case)
    upstream = {known[name]: g for name, g in upstream_of(case, ours).items()}
    compute = torch.float64 if case.dtype == "float64" else torch.float32
    found = row_oracle.answers(rows_of_problem(case, problem), upstream, compute)
    gradient = Answer(*(_whole(t, problem) for t in (found["gradient"].value, found["gradient"].scale)))
    return {name: gradient if oracle == "gradient" else found[oracle] for name, oracle in known.items()}


def _whole(gradient: Tensor, problem: Problem) -> Tensor:
    """With the zeros of the classes that are padding, in the shape of the logits."""
    missing = problem.x.shape[problem.dim] - gradient.shape[-1]
    return F.pad(gradient, (0, missing)).movedim(-1, problem.dim)


def rows_of_problem(case: Case, problem: Problem) -> Rows:
    """The call in float64, on the CPU, with the classes last."""
    dim, kwargs = problem.dim, problem.kwargs or {}
    given = {k: v.detach().cpu().double() for k, v in kwargs.items() if isinstance(v, Tensor)}
    classes = problem.x.shape[dim] - case.padding
    x = problem.x.detach().cpu().double().movedim(dim, -1)[..., :classes]
    rows = x.shape[:-1]
    valid, index, shares = torch.ones(rows, dtype=torch.bool), None, torch.zeros_like(x)
    single = problem.target is not None and not (case.probs or case.indices)
    target = None if problem.target is None else problem.target.detach().cpu()
    if target is not None and case.probs:
        shares = target.double().movedim(dim, -1)[..., :classes]
    elif target is not None:
        if single and case.ignore is not None:
            valid = target != case.ignore
        index = target.long().unsqueeze(-1) if single else target.long().movedim(dim, -1)
        index = torch.where(valid.unsqueeze(-1), index, 0)
        probs = given.get("target_probs")
        mass = x.new_ones(index.shape) if probs is None else probs.movedim(dim, -1)
        shares = shares.scatter_add(-1, index, mass)
    weight = given.get("weight", x.new_ones(classes))[:classes]
    row_weight = given.get("row_weight", x.new_ones(rows))
    numbers = (case.smoothing, case.logit_scale, case.softcap, case.temperature, case.z_loss)
    call = Rows(x, shares, index, single, valid, weight, row_weight, None, *numbers)
    return replace(call, total=_total(case, call, kwargs))


def _total(case: Case, rows: Rows, kwargs: dict[str, Any]) -> Tensor | None:
    """What the sum of the rows' losses is divided by."""
    if case.reduction == "none":
        return None
    if case.reduction == "sum":
        return torch.ones((), dtype=torch.float64)
    if case.num_items:
        return torch.full((), float(kwargs["num_items"]), dtype=torch.float64)
    r = rows.row_weight * rows.target_weight if rows.single else rows.row_weight
    return torch.where(rows.valid, r, 0).sum()
