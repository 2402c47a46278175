# SPDX-License-Identifier: Apache-2.0
"""Calls of linear_cross_entropy: their results, and the float64 answers.

The answers are those of `row_oracle` for the logits that F.linear makes of the inputs in float64, and the
products of their gradient with the inputs: nothing is shared with softkern's plans. The scales, with s for
that of dz and e(n) for `bounds.of_a_sum`:

    z       R = e(H) max_c (sum_h |x_h w_ch| + |b_c|)
    dX      sum_c s_c |w_ch| + e(C) sum_c |dz_c w_ch|
    dW      sum_n s_n |x_nh| + e(N) sum_n |dz_n x_nh|
    db      sum_n s_n + e(N) sum_n |dz_n|

In 16 bits, dz is rounded to these before its products: `bounds.of_narrowing`.
"""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from softkern.verify import bounds, row_oracle, rows
from softkern.verify.case import LINEAR, NAMES, Case, Problem
from softkern.verify.row_oracle import Answer

PARTS = ("input", "linear_weight", "linear_bias")
GRADIENTS = {part: f"{LINEAR} {part.removeprefix('linear_')} gradient" for part in PARTS}
QUANTITIES = (LINEAR, *GRADIENTS.values())


def results(
    functions: ModuleType, case: Case, problem: Problem, upstream: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Loss, statistics and the gradients of input, weight and bias, copied to the CPU."""
    kwargs = dict(problem.kwargs or {})
    given = {"input": problem.x, **{part: kwargs.pop(part) for part in PARTS[1:] if part in kwargs}}
    leaves = {part: x.detach().requires_grad_() for part, x in given.items()}
    options = functions.LinearCrossEntropyOptions(plan=case.plan, chunk_rows=case.chunk or None)
    output = functions.linear_cross_entropy(
        **leaves, target=problem.target, reduction=case.reduction, options=options, stats=case.stats, **kwargs
    )
    loss, stats = output if case.stats else (output, None)
    outputs = {LINEAR: loss, **{name: getattr(stats, name) for name in case.stats}}
    pulled = rows.upstream_of(case, outputs) if upstream is None else upstream
    given_to = [g.to(loss.device) for g in pulled.values()]
    gradients = torch.autograd.grad([outputs[name] for name in pulled], list(leaves.values()), given_to)
    found = {GRADIENTS[part]: g.cpu() for part, g in zip(leaves, gradients, strict=True)}
    return {**{name: y.detach().cpu() for name, y in outputs.items()}, **found}


def expectations(case: Case, problem: Problem, ours: dict[str, Tensor]) -> dict[str, Answer]:
    """The float64 answers by quantity, on the CPU."""
    dtype = NAMES[case.dtype]
    compute = bounds.TABLE[dtype].compute
    kwargs = dict(problem.kwargs or {})
    weight, bias = (_wide(kwargs.pop(part, None)) for part in PARTS[1:])
    classes = case.shape[1] - case.padding
    assert weight is not None
    weight, bias = weight[:classes], None if bias is None else bias[:classes]
    x = _wide(problem.x)
    assert x is not None
    call = rows.rows_of_problem(case, replace(problem, x=_logits(case, x, weight, bias), kwargs=kwargs))
    x = torch.where(call.valid.unsqueeze(-1), x, 0)  # what an ignored row holds must not matter
    terms = F.linear(x.abs(), weight.abs(), None if bias is None else bias.abs())
    call = replace(call, product=bounds.of_a_sum(x.shape[-1], dtype) * terms.amax(-1, keepdim=True))
    upstream = {"loss" if name == LINEAR else name: g for name, g in rows.upstream_of(case, ours).items()}
    found = row_oracle.answers(call, upstream, compute)
    dz, of_dz = found["gradient"].value, found["gradient"].scale
    of_dz = of_dz + bounds.of_narrowing(dtype) * dz.abs()

    def product(a: Tensor, b: Tensor, scale: Tensor) -> Answer:
        """a b, of which `scale` is the scale of the part with dz."""
        return Answer(a @ b, scale + bounds.of_a_sum(a.shape[-1], dtype) * (a.abs() @ b.abs()))

    ones = dz.new_ones(len(x), 1)
    answers = {
        "input": product(dz, weight, of_dz @ weight.abs()),
        "linear_weight": product(dz.T, x, of_dz.T @ x.abs()),
        "linear_bias": product(dz.T, ones, of_dz.T @ ones),
    }
    quantities = {LINEAR: found["loss"], **{name: found[name] for name in case.stats}}
    for part, answer in answers.items():
        if GRADIENTS[part] in ours:
            quantities[GRADIENTS[part]] = _padded(case, part, answer)
    return quantities


def _wide(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach().cpu().double()


def _logits(case: Case, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """With columns for the classes that are padding, which `rows` leaves out."""
    return F.pad(F.linear(x, weight, bias), (0, case.padding))


def _padded(case: Case, part: str, answer: Answer) -> Answer:
    """As softkern returns it: with the zeros of the classes that are padding, a bias as (C)."""
    padding: Any = (0, 0, 0, case.padding if part != "input" else 0)
    value, scale = (F.pad(t, padding) for t in (answer.value, answer.scale))
    return Answer(value[:, 0], scale[:, 0]) if part == "linear_bias" else Answer(value, scale)
