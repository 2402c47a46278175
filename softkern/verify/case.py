# SPDX-License-Identifier: Apache-2.0
"""One case of the matrix, and the tensors of its call."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from softkern.verify import inputs
from softkern.verify.bounds import DTYPES

SOFTMAXES = ("softmax", "log_softmax")
OPS = (*SOFTMAXES, "cross_entropy")  # those of F
ROW_OPS = ("selective_log_softmax", "entropy_from_logits")
LINEAR = "linear_cross_entropy"
NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}


@dataclass(frozen=True)
class Case:
    """One call and its backward pass; `str` gives the expression that makes the case.

    Attributes:
        group: the part of the matrix that it belongs to.
        op: one of `OPS` or `ROW_OPS`, or `LINEAR`.
        dtype: dtype of logits, weights and class probabilities, for example "float32".
        shape: shape of the logits.
        values: "normal", "special" (NaN and infinities), "masked" (-inf) or one of `inputs.HURTING`.
        layout: one of `inputs.LAYOUTS`, for the logits and the class probabilities.
        dim: dim of the softmaxes and of entropy_from_logits; the others use the dimension of their classes.
        reduction: reduction of cross-entropy; the options below are cross-entropy's, too.
        weight: whether classes are weighted.
        ignore: `ignore_index`; a third of the rows have it as target.
        smoothing: `label_smoothing`.
        probs: class probabilities instead of class indices.
        target: dtype of class indices.
        inplace: `inplace_backward`.
        upstream: one of `inputs.UPSTREAM`, the gradient that backward starts from.
        seed: seed of the logits.
        row_weight: dtype of `row_weight`; empty for none, as below.
        num_items: "number", or the dtype of a tensor.
        padding: how many classes `valid_classes` leaves out; they hold NaN.
        indices: class indices a row, with `target_probs` in cross-entropy; 0 for one index without.
        logit_scale, softcap, temperature, z_loss: as in softkern.cross_entropy.
        stats: names of statistics; for selective_log_softmax "entropy".
        still: outputs that backward does not start from.
        features: of the input of linear_cross_entropy; shape is that of its logits. The others are its, too.
        bias: whether it has a bias.
        plan, chunk: of its options; 0: the plan chooses the rows of a chunk.
    """

    group: str
    op: str
    dtype: str
    shape: tuple[int, ...]
    values: str = "normal"
    layout: str = "clone"
    dim: int = 1
    reduction: str = "none"
    weight: bool = False
    ignore: int | None = None
    smoothing: float = 0.0
    probs: bool = False
    target: str = "int64"
    inplace: bool = False
    upstream: str = "ones"
    seed: int = 0
    row_weight: str = ""
    num_items: str = ""
    padding: int = 0
    indices: int = 0
    logit_scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    z_loss: float = 0.0
    stats: tuple[str, ...] = ()
    still: tuple[str, ...] = ()
    features: int = 0
    bias: bool = False
    plan: str = "auto"
    chunk: int = 0

    def __str__(self) -> str:
        given = ((f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default)
        return f"Case({', '.join(f'{name}={value!r}' for name, value in given)})"

    @property
    def plain(self) -> bool:
        """Whether the documentation states its errors in ulp."""
        if self.values == "special" or self.beyond_f:
            return False
        optioned = self.weight or self.probs or self.smoothing or self.ignore is not None
        return self.op in SOFTMAXES or not (optioned or self.reduction != "none" or self.upstream != "ones")

    @property
    def beyond_f(self) -> bool:
        """Whether F has no such call."""
        options = (self.row_weight, self.num_items, self.padding, self.indices, self.softcap, self.z_loss)
        scaled = self.logit_scale != 1 or self.temperature != 1
        return self.op in (*ROW_OPS, LINEAR) or any(options) or scaled or bool(self.stats)


@dataclass(frozen=True)
class Problem:
    """The arguments of a case's call."""

    x: Tensor
    dim: int
    target: Tensor | None = None
    kwargs: dict[str, Any] | None = None


def build(case: Case, device: str = "cpu") -> Problem:
    """The tensors of a case; the same on every call."""
    dtype, place = NAMES[case.dtype], inputs.LAYOUTS[case.layout]
    if case.op == LINEAR:
        return _linear_problem(case, device)
    x = _logits(case, dtype)
    if case.op in SOFTMAXES:
        return Problem(place(x.to(device)), case.dim)
    if case.op in ROW_OPS:
        return _row_problem(case, place(x.to(device)))
    shape, dim = tuple(x.shape), min(1, x.dim() - 1)
    real = (*shape[:dim], shape[dim] - case.padding, *shape[dim + 1 :]) if case.padding else shape
    _, target, kwargs = inputs.problem(
        real, dtype, weight=case.weight, ignore=case.ignore, smoothing=case.smoothing, probs=case.probs
    )
    if case.beyond_f:
        x, target = _own_arguments(case, x, target, kwargs, real)
    kwargs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in kwargs.items()}
    if case.probs:
        return Problem(place(x.to(device)), dim, place(target.to(device)), kwargs)
    if case.values != "normal" and not case.indices:
        # Every other row is confident and right, as in a trained classifier.
        likely = (torch.arange(target.numel()).reshape(target.shape) % 2 == 0) & (target != case.ignore)
        target = torch.where(likely, x.narrow(dim, 0, real[dim]).argmax(dim), target)
    return Problem(place(x.to(device)), dim, target.to(device, getattr(torch, case.target)), kwargs)


def _own_arguments(
    case: Case, x: Tensor, target: Tensor, kwargs: dict[str, Any], real: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Logits and target of a call that F does not have; its keyword arguments come into `kwargs`."""
    dtype, dim = x.dtype, min(1, x.dim() - 1)
    rows = real[:dim] + real[dim + 1 :]
    kwargs |= _transformation(case)
    if case.z_loss:
        kwargs["z_loss"] = case.z_loss
    if case.indices:
        target, shares = inputs.several(real, case.indices)
        kwargs["target_probs"] = shares.to(dtype)
    if case.row_weight:
        kwargs["row_weight"] = inputs.row_weights(rows, NAMES[case.row_weight])
    if case.num_items:
        integer = case.num_items.startswith("int")
        kwargs["num_items"] = 6.5
        if case.num_items != "number":
            kwargs["num_items"] = torch.tensor(7 if integer else 6.5, dtype=getattr(torch, case.num_items))
    if case.ignore is not None and case.layout != "expanded":  # which repeats the first row, with its NaN
        x = torch.where((target == case.ignore).unsqueeze(dim), math.nan, x)
    if case.padding:
        kwargs["valid_classes"] = real[dim]
        x = inputs.padded_with_nan(x.narrow(dim, 0, real[dim]), case.padding, dim)
        if case.weight:
            kwargs["weight"] = inputs.padded_with_nan(kwargs["weight"], case.padding, 0)
        if case.probs:
            target = inputs.padded_with_nan(target, case.padding, dim)
    return x, target


def _row_problem(case: Case, x: Tensor) -> Problem:
    """The functions of log-probabilities and entropies have the classes last."""
    if case.op == "entropy_from_logits":
        return Problem(x, case.dim, None, _transformation(case))
    index = inputs.indices((x.shape[:-1].numel(), x.shape[-1])).reshape(x.shape[:-1])
    if case.indices:
        index, _ = inputs.several((x.shape[:-1].numel(), x.shape[-1]), case.indices)
        index = index.reshape(*x.shape[:-1], case.indices)
    return Problem(x, x.dim() - 1, index.to(x.device, getattr(torch, case.target)), _transformation(case))


def _linear_problem(case: Case, device: str) -> Problem:
    """The logits have the spread of the other cases. The input is positive: for most classes, the terms of
    the weight's gradient have one sign, so digits that their sum loses can't hide."""
    dtype, place = NAMES[case.dtype], inputs.LAYOUTS[case.layout]
    n, c = case.shape
    classes = c - case.padding
    x = (inputs.logits(n, case.features, dtype=torch.float64, seed=1).abs() / 3).to(dtype)
    given = {"linear_weight": inputs.logits(classes, case.features, dtype=torch.float64, seed=2)}
    given["linear_weight"] /= case.features**0.5
    if case.bias:
        given["linear_bias"] = inputs.logits(classes, dtype=torch.float64, seed=4)
    _, target, kwargs = inputs.problem(
        (n, classes),
        dtype,
        weight=case.weight,
        ignore=case.ignore,
        smoothing=case.smoothing,
        probs=case.probs,
    )
    x, target = _own_arguments(replace(case, padding=0), x, target, kwargs, (n, classes))
    kwargs |= {name: t.to(dtype) for name, t in given.items()}
    if case.padding:
        kwargs["valid_classes"] = classes
        named = [name for name in ("linear_weight", "linear_bias", "weight") if name in kwargs]
        kwargs |= {name: inputs.padded_with_nan(kwargs[name], case.padding, 0) for name in named}
        if case.probs:
            target = inputs.padded_with_nan(target, case.padding, 1)
    kwargs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in kwargs.items()}
    kwargs["linear_weight"] = place(kwargs["linear_weight"])
    return Problem(place(x.to(device)), 1, target.to(device), kwargs)


def _transformation(case: Case) -> dict[str, Any]:
    given = {"logit_scale": case.logit_scale, "softcap": case.softcap, "temperature": case.temperature}
    return {name: value for name, value in given.items() if value not in (None, 1.0)}


def _logits(case: Case, dtype: torch.dtype) -> Tensor:
    if case.values == "normal":
        return inputs.logits(*case.shape, dtype=dtype, seed=case.seed)
    if case.values == "special":
        return inputs.special_rows(case.shape[1], dtype)
    if case.values == "masked":
        return inputs.masked(*case.shape, dtype=dtype)
    rows, classes = case.shape
    return next(f for f in inputs.HURTING if f.__name__ == case.values)(rows, classes, dtype)


def rows_of(classes: int) -> int:
    """A number of rows that no number of lanes divides; smaller for long rows."""
    return 133 if classes <= 100 else 37 if classes <= 1000 else 3
