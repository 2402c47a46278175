# SPDX-License-Identifier: Apache-2.0
"""One case: the results of a set of functions, the expected results, and the distance between them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from softkern import reference
from softkern.verify import bounds, inputs, linear, oracle
from softkern.verify import rows as row_calls
from softkern.verify.case import LINEAR, NAMES, SOFTMAXES, Case, Problem

GRADIENT_SCALES = {
    "softmax": oracle.softmax_gradient_scale,
    "log_softmax": oracle.log_softmax_gradient_scale,
}
VALUE_SCALES = {"softmax": oracle.softmax_scale, "log_softmax": oracle.log_softmax_scale}


@dataclass(frozen=True)
class Measure:
    """A result against its bounds.

    Attributes:
        quantity: the op's name, the name with " gradient", or the name of a statistic.
        share: the largest error divided by its bound; infinite if NaN, infinities, dtype or shape are wrong,
            None if no distance was measured.
        error: error in ulp of the answer, if the documentation states a bound in ulp.
        stated: that bound.
        torch_error: torch's error in the same unit, NaN if torch's result is not finite.
        why: what is wrong; empty if the result keeps its bounds.
        detail: the worst element.
    """

    quantity: str
    share: float | None = 0.0
    error: float | None = None
    stated: float | None = None
    torch_error: float | None = None
    why: str = ""
    detail: str = ""


def results(
    functions: ModuleType, case: Case, problem: Problem, upstream: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Values and gradient of the logits, from softkern or from torch.nn.functional; copied to the CPU.

    Backward starts from `upstream`, gradients by output, by default from those of the case.
    """
    if case.op == LINEAR:
        return linear.results(functions, case, problem, upstream)
    if case.beyond_f:
        return row_calls.results(functions, case, problem, upstream)
    f = getattr(functions, case.op)
    leaf = problem.x.detach().requires_grad_()
    if case.op in SOFTMAXES:
        y = f(leaf, dim=problem.dim)
    else:
        assert problem.target is not None and problem.kwargs is not None
        x, kwargs = leaf, dict(problem.kwargs)
        target = problem.target
        if functions is F:
            target = target if target.is_floating_point() else target.long()
        elif case.inplace:
            x, kwargs = leaf.clone(), {**kwargs, "inplace_backward": True}
        y = f(x, target, reduction=case.reduction, **kwargs)
    given = upstream_of(case, {case.op: y}) if upstream is None else upstream
    (dx,) = torch.autograd.grad(y, leaf, given[case.op].to(y.device))
    return {case.op: y.detach().cpu(), f"{case.op} gradient": dx.cpu()}


def upstream_of(case: Case, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The upstream gradients by output, on the CPU."""
    if case.beyond_f:
        return row_calls.upstream_of(case, outputs)
    return {case.op: inputs.upstream(outputs[case.op].detach().cpu(), case.upstream)}


@dataclass(frozen=True)
class Expected:
    answer: Tensor  # float64, or integers and truth values
    scale: Tensor
    roundings: int | None = None
    dtype: torch.dtype | None = None  # of the result, if it is not that of the logits


def expectations(case: Case, problem: Problem, ours: dict[str, Tensor]) -> dict[str, Expected]:
    """The float64 answers, on the CPU.

    A softmax's backward uses the rounded output of its forward instead of the logits, and with 16 bits this
    makes a large difference. So its answer starts from softkern's own output; the values are checked apart.
    """
    if case.beyond_f:
        calls = linear if case.op == LINEAR else row_calls
        return {
            name: Expected(answer.value, answer.scale, _roundings(name), row_calls.dtype_of(case, name))
            for name, answer in calls.expectations(case, problem, ours).items()
        }
    x, dim = problem.x.detach().cpu().double(), problem.dim
    y = ours[case.op]
    g = upstream_of(case, ours)[case.op].double()
    if case.op in SOFTMAXES:
        answer = getattr(reference, case.op)(x, dim)
        scale = VALUE_SCALES[case.op](x, answer, dim)
        if case.plain:
            rows = x.movedim(dim, -1)
            flat = rows.reshape(-1, x.shape[dim])
            exact = oracle.answers(flat, flat.new_zeros(len(flat), dtype=torch.long))[case.op]
            answer = exact.reshape(rows.shape).movedim(-1, dim)
        gradient = getattr(reference, f"{case.op}_backward")(g, y.double(), dim)
        gradient_scale = GRADIENT_SCALES[case.op](g, y.double(), dim)
        return {case.op: Expected(answer, scale), f"{case.op} gradient": Expected(gradient, gradient_scale)}
    assert problem.target is not None and problem.kwargs is not None
    on_cpu = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in problem.kwargs.items()}
    args, kwargs = oracle.in_float64(x, problem.target.cpu(), on_cpu)
    loss = reference.cross_entropy(*args, reduction=case.reduction, **kwargs)
    gradient = reference.cross_entropy_backward(g, *args, reduction=case.reduction, **kwargs)
    if case.plain:
        rows = x.movedim(dim, -1)
        by_name = oracle.answers(rows.reshape(-1, x.shape[dim]), args[1].reshape(-1))
        loss = by_name["cross_entropy"].reshape(loss.shape)
        gradient = by_name["cross_entropy gradient"].reshape(rows.shape).movedim(-1, dim)
    return {
        case.op: Expected(loss, oracle.loss_scale(*args, kwargs, case.reduction)),
        f"{case.op} gradient": Expected(
            gradient,
            oracle.loss_gradient_scale(*args, kwargs, case.reduction, g),
            _roundings(f"{case.op} gradient"),
        ),
    }


def _roundings(quantity: str) -> int | None:
    """16 bits: the gradient of the forward is rounded, and so is its product with the upstream gradient."""
    return 2 if quantity.endswith(" gradient") else None


def measure(
    case: Case, quantity: str, got: object, expected: Expected, torch_result: Tensor | None
) -> Measure:
    """The error of one result, and whether it keeps its bounds."""
    dtype, answer = expected.dtype or NAMES[case.dtype], expected.answer
    if not isinstance(got, Tensor) or got.dtype != dtype or got.shape != answer.shape:
        found = f"{got.dtype} {tuple(got.shape)}" if isinstance(got, Tensor) else type(got).__name__
        return Measure(quantity, math.inf, why=f"expected {dtype} {tuple(answer.shape)}, got {found}")
    if not dtype.is_floating_point:
        wrong = got != answer
        why = "other than the answer" if bool(wrong.any()) else ""
        return Measure(quantity, None, why=why, detail=_detail(wrong.double(), got, answer) if why else "")
    wide = got.double()
    for why, bad in _wrong_in_kind(case, wide, answer, dtype, torch_result):
        if bool(bad.any()):
            return Measure(quantity, math.inf, why=why, detail=_detail(bad.double(), got, answer))
    finite = wide.isfinite() & answer.isfinite()
    rounding, terms = bounds.allowed(answer, dtype, expected.scale, torch_result, expected.roundings)
    allowed = rounding + terms
    stated = bounds.stated(quantity, dtype) if case.plain else None
    unit = bounds.ulp(answer.nan_to_num(0, 0, 0), dtype)
    if stated is not None:
        allowed = torch.minimum(allowed, stated * unit)
    error = torch.where(finite, (wide - answer).abs(), 0)
    shares = error / torch.where(finite, allowed, 1)
    share = float(shares.max()) if shares.numel() else 0.0
    worst, theirs = None, None
    if stated is not None:
        worst = float((error / unit).max())
        theirs = None if torch_result is None else bounds.ulp_error(torch_result, answer)
    why = "" if share <= 1 else "too far from the float64 answer"
    return Measure(quantity, share, worst, stated, theirs, why, _detail(shares, got, answer) if why else "")


def _wrong_in_kind(
    case: Case, got: Tensor, answer: Tensor, dtype: torch.dtype, torch_result: Tensor | None
) -> Iterator[tuple[str, Tensor]]:
    """Wrong places of NaN and infinities; an answer that overflows the dtype is infinite after rounding."""
    rounded = answer.to(dtype).double()
    yield "NaN in other places than in the answer", got.isnan() != answer.isnan()
    yield "other infinities than in the answer", (got.isinf() | rounded.isinf()) & (got != rounded)
    # 16 bits: torch's sums overflow where softkern's do not. Ignored rows: softkern's gradients are zeros.
    if torch_result is not None and dtype.itemsize > 2 and case.ignore is None:
        yield "NaN in other places than torch", got.isnan() != torch_result.isnan()


def _detail(badness: Tensor, got: Tensor, answer: Tensor) -> str:
    """The worst element: its place, its value, the expected value, and their distance in ulp."""
    if badness.numel() == 0:
        return ""
    worst = int(badness.nan_to_num(math.inf).argmax())
    where = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), badness.shape))
    a, e = got.reshape(-1)[worst].item(), answer.reshape(-1)[worst].item()
    text = f"at {where}: expected {e!r}, got {a!r}"
    if got.is_floating_point() and math.isfinite(a) and math.isfinite(e):
        unit = float(bounds.ulp(torch.tensor(e, dtype=torch.float64), got.dtype))
        text += f", {abs(a - e) / unit:.4g} ulp apart"
    return text
