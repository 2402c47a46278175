# SPDX-License-Identifier: Apache-2.0
"""Faults that softkern.verify has to find, each as a function in the place of softkern's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import softkern
from softkern.verify.linear_cases import GROUP as HEAD

SOFTMAX, CROSS_ENTROPY = softkern.softmax, softkern.cross_entropy
SELECTIVE = softkern.selective_log_softmax
LINEAR_LOSS = softkern.linear_cross_entropy
ISAS = [name for name, _, reason in softkern._C.isas() if not reason]


def nudged(y: Tensor, ulps: int = 1, row: int = -1) -> Tensor:
    """The last number of a row, some ulp up; differentiable."""
    if y.dim() < 2 or y.numel() == 0:
        return y
    up = y.detach().clone()
    for _ in range(ulps):
        up[row, -1] = torch.nextafter(up[row, -1], torch.full_like(up[row, -1], 1e4))
    return y + (up - y.detach())


def gradient_of_one_class(x: Tensor, *args, **kwargs) -> Tensor:
    """0.1 % too much for class 2."""
    if x.dim() < 2 or x.shape[1] < 3 or not x.requires_grad:
        return CROSS_ENTROPY(x, *args, **kwargs)
    factor = torch.ones(x.shape[1], dtype=torch.float64)
    factor[2] = 1.001
    z = x.clone()
    shape = [-1] + [1] * (x.dim() - 2)
    z.register_hook(lambda g: (g * factor.reshape(shape)).to(g.dtype))
    return CROSS_ENTROPY(z.view_as(z), *args, **kwargs)


def without_nan(x: Tensor, dim: int) -> Tensor:
    return SOFTMAX(x, dim).nan_to_num(0.0)


def other_bits_on_one_isa(x: Tensor, dim: int) -> Tensor:
    """float32 alone: in 16 bits one ulp is outside the bounds."""
    y = SOFTMAX(x, dim)
    return nudged(y) if x.dtype == torch.float32 and softkern._C.active_isa() == "portable" else y


def other_bits_with_threads(x: Tensor, dim: int) -> Tensor:
    y = SOFTMAX(x, dim)
    return nudged(y) if torch.get_num_threads() > 1 else y


def other_bits_in_a_batch(x: Tensor, dim: int) -> Tensor:
    y = SOFTMAX(x, dim)
    return nudged(y) if len(x) > 1 else y


def reads_past_the_row(x: Tensor, dim: int) -> Tensor:
    """As if every layout were contiguous."""
    if x.is_contiguous() or x.dim() == 0:
        return SOFTMAX(x, dim)
    return SOFTMAX(torch.as_strided(x, x.shape, torch.empty(x.shape).stride()), dim)


def without_smoothing(*args, label_smoothing: float = 0.0, **kwargs) -> Tensor:
    return CROSS_ENTROPY(*args, **kwargs)


def without_ignoring(*args, **kwargs) -> Tensor:
    """torch's own: NaN gradients in ignored rows that are not finite."""
    return F.cross_entropy(*args, **{k: v for k, v in kwargs.items() if k != "inplace_backward"})


def sum_in_16_bits(x: Tensor, target: Tensor, **kwargs) -> Tensor:
    if kwargs.get("reduction") != "mean":
        return CROSS_ENTROPY(x, target, **kwargs)
    rows = CROSS_ENTROPY(x, target, **{**kwargs, "reduction": "none"})
    return rows.sum(dtype=x.dtype) / len(rows)


def halved_in_place(*args, inplace_backward: bool = False, **kwargs) -> Tensor:
    loss = CROSS_ENTROPY(*args, inplace_backward=inplace_backward, **kwargs)
    return loss / 2 if inplace_backward else loss


def target_clamped(x: Tensor, target: Tensor, **kwargs) -> Tensor:
    if not target.is_floating_point() and x.numel() and x.dim():
        target = target.clamp(0, x.shape[min(1, x.dim() - 1)] - 1)
    return CROSS_ENTROPY(x, target, **kwargs)


def written_before_the_error(x: Tensor, target: Tensor, **kwargs) -> Tensor:
    try:
        return CROSS_ENTROPY(x, target, **kwargs)
    except IndexError:
        x.data.view(-1)[0] = 0.0
        raise


def other_words(x: Tensor, target: Tensor, **kwargs) -> Tensor:
    try:
        return CROSS_ENTROPY(x, target, **kwargs)
    except IndexError:
        raise IndexError("no such class") from None


def nothing_empty(x: Tensor, dim: int) -> Tensor:
    if x.numel() == 0:
        raise RuntimeError("expected logits")
    return SOFTMAX(x, dim)


def changed(**replaced) -> Callable[..., Any]:
    """cross_entropy that takes other values for some options."""

    def loss(*args, **kwargs) -> Any:
        given = {name: value for name, value in replaced.items() if name in kwargs}
        return CROSS_ENTROPY(*args, **{**kwargs, **given})

    return loss


def with_statistic(name: str, of: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """cross_entropy with one statistic changed."""

    def loss(*args, **kwargs) -> Any:
        result = CROSS_ENTROPY(*args, **kwargs)
        if name not in kwargs.get("stats", ()):
            return result
        return result[0], result[1]._replace(**{name: of(getattr(result[1], name))})

    return loss


def z_loss_without_weight(x: Tensor, target: Tensor, **kwargs) -> Any:
    """Liger's: z_loss is not multiplied by the weights of classes."""
    if not kwargs.get("z_loss") or "weight" not in kwargs or kwargs.get("stats"):
        return CROSS_ENTROPY(x, target, **kwargs)
    one = torch.ones_like(kwargs["weight"])
    of_z = CROSS_ENTROPY(x, target, **{**kwargs, "weight": one})
    of_z = of_z - CROSS_ENTROPY(x, target, **{**kwargs, "weight": one, "z_loss": 0.0})
    return CROSS_ENTROPY(x, target, **{**kwargs, "z_loss": 0.0}) + of_z


def padding_behind_a_cap(x: Tensor, target: Tensor, **kwargs) -> Any:
    """unsloth's: a logit of -inf becomes -softcap."""
    if kwargs.get("softcap"):
        x = x.clamp_min(torch.finfo(x.dtype).min)
    return CROSS_ENTROPY(x, target, **kwargs)


def cap_not_checked(*args, softcap: float | None = None, **kwargs) -> Any:
    return CROSS_ENTROPY(*args, softcap=softcap if softcap and softcap > 0 else None, **kwargs)


def behind_a_sum(*args, **kwargs) -> Any:
    """log p loses the digits that lse - z loses."""
    result = SELECTIVE(*args, **kwargs)
    return (result[0] + 8 - 8, result[1]) if kwargs.get("entropy") else result


def logits_in_16_bits(input: Tensor, linear_weight: Tensor, target: Tensor, **kwargs) -> Any:
    """Before the softmax, as in many losses of a head."""
    if not kwargs["stats"]:
        return LINEAR_LOSS(input, linear_weight, target=target, **kwargs)
    kwargs.pop("options")
    logits = F.linear(input, linear_weight, kwargs.pop("linear_bias", None))
    return CROSS_ENTROPY(logits.bfloat16().to(input.dtype), target, **kwargs)


class RoundedSum(torch.autograd.Function):
    """A product whose gradient of the weight is rounded to 16 bits after each chunk of rows."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x.float(), weight.float())

    @staticmethod
    def backward(ctx, dz: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        total = torch.zeros_like(weight)
        for rows, of_rows in zip(x.split(2), dz.split(2), strict=True):
            total = (total + of_rows.T @ rows.float()).to(weight.dtype)
        return (dz @ weight.float()).to(x.dtype), total


def rounded_after_each_chunk(input: Tensor, linear_weight: Tensor, target: Tensor, **kwargs) -> Any:
    if input.dtype != torch.bfloat16 or set(kwargs) - {"linear_bias", "reduction", "options", "stats"}:
        return LINEAR_LOSS(input, linear_weight, target=target, **kwargs)
    logits = RoundedSum.apply(input, linear_weight) + kwargs["linear_bias"].float()
    return CROSS_ENTROPY(logits, target, reduction=kwargs["reduction"]).to(input.dtype)


def ignored_rows_in_the_product(input: Tensor, linear_weight: Tensor, target: Tensor, **kwargs) -> Any:
    """A gradient of 0 times a NaN."""
    kwargs.pop("options")
    return CROSS_ENTROPY(F.linear(input, linear_weight, kwargs.pop("linear_bias", None)), target, **kwargs)


def bias_without_gradient(*args, linear_bias: Tensor | None = None, **kwargs) -> Any:
    if linear_bias is None:
        return LINEAR_LOSS(*args, **kwargs)
    shifted = linear_bias.detach() + 0.0 * linear_bias.sum()
    return LINEAR_LOSS(*args, linear_bias=shifted, **kwargs)


def wrong_in_one_plan(*args, options: Any = None, **kwargs) -> Any:
    """A loss that is a little too small."""
    result = LINEAR_LOSS(*args, options=options, **kwargs)
    return result * 0.999 if options.plan == "lean" and isinstance(result, Tensor) else result


# fault: (function, by what it is replaced, group that sees it, quantity, words of the line that says why)
FAULTS = {
    "16 ulp off": (
        "softmax",
        lambda x, dim: nudged(SOFTMAX(x, dim), 16),
        "class counts",
        "softmax",
        "ulp apart",
    ),
    "two classes of a few": (
        "softmax",
        lambda x, dim: nudged(SOFTMAX(x, dim), 16) if x.shape[-1] == 3 else SOFTMAX(x, dim),
        "class counts",
        "softmax",
        "shape=(133, 3)",
    ),
    "another dtype": (
        "softmax",
        lambda x, dim: SOFTMAX(x, dim).double(),
        "class counts",
        "softmax",
        "float64",
    ),
    "gradient of one class": (
        "cross_entropy",
        gradient_of_one_class,
        "class counts",
        "cross_entropy gradient",
        ", 2): expected",
    ),
    "NaN made 0": ("softmax", without_nan, "NaN and infinities", "softmax", "NaN in other places"),
    "strides taken for granted": ("softmax", reads_past_the_row, "layouts", "softmax", "layout='padded'"),
    "an option forgotten": ("cross_entropy", without_smoothing, "options", "cross_entropy", "smoothing=0."),
    "ignored rows": (
        "cross_entropy",
        without_ignoring,
        "NaN and infinities",
        "cross_entropy gradient",
        "expected 0.0, got nan",
    ),
    "sums in 16 bits": ("cross_entropy", sum_in_16_bits, "16-bit sums", "cross_entropy", "got inf"),
    "the gradient in place": (
        "cross_entropy",
        halved_in_place,
        "inplace_backward",
        "cross_entropy gradient",
        "inplace=True",
    ),
    "a wrong target taken": (
        "cross_entropy",
        target_clamped,
        "targets out of range",
        "cross_entropy",
        "got a loss",
    ),
    "a wrong target, too late": (
        "cross_entropy",
        written_before_the_error,
        "targets out of range",
        "cross_entropy",
        "written to before",
    ),
    "other words": ("cross_entropy", other_words, "targets out of range", "cross_entropy", "no such class"),
    "nothing refused": ("softmax", nothing_empty, "empty and 0-d", "softmax", "raised RuntimeError"),
    "threads": (
        "softmax",
        other_bits_with_threads,
        "threads",
        "softmax",
        "bits other than those of one thread",
    ),
    "a weight of z_loss": (
        "cross_entropy",
        z_loss_without_weight,
        "own options",
        "cross_entropy",
        "z_loss=0.25",
    ),
    "num_items forgotten": (
        "cross_entropy",
        changed(num_items=None),
        "own options",
        "cross_entropy",
        "num_items=",
    ),
    "padding read": (
        "cross_entropy",
        changed(valid_classes=None),
        "own options",
        "cross_entropy",
        "padding=",
    ),
    "masks behind a cap": (
        "cross_entropy",
        padding_behind_a_cap,
        "statistics of hard values",
        "cross_entropy",
        "masked",
    ),
    "an entropy without its gradient": (
        "cross_entropy",
        with_statistic("entropy", lambda h: h.detach().requires_grad_()),
        "statistics",
        "cross_entropy gradient",
        "ulp apart",
    ),
    "an argmax": (
        "cross_entropy",
        with_statistic("argmax", lambda top: top.clamp_min(1)),
        "statistics",
        "argmax",
        "other than the answer",
    ),
    "a statistic of 16 bits": (
        "cross_entropy",
        with_statistic("lse", lambda lse: lse.bfloat16().float()),
        "statistics",
        "lse",
        "ulp apart",
    ),
    "digits of log p": (
        "selective_log_softmax",
        behind_a_sum,
        "log-probabilities, entropies",
        "selective_log_softmax",
        "ulp apart",
    ),
    "a wrong cap taken": (
        "cross_entropy",
        cap_not_checked,
        "own options refused",
        "cross_entropy",
        "got a loss",
    ),
    "logits of a head in 16 bits": (
        "linear_cross_entropy",
        logits_in_16_bits,
        HEAD,
        "lse",
        "ulp apart",
    ),
    "a sum rounded at each chunk": (
        "linear_cross_entropy",
        rounded_after_each_chunk,
        HEAD,
        "linear_cross_entropy weight gradient",
        "ulp apart",
    ),
    "ignored rows of a head": (
        "linear_cross_entropy",
        ignored_rows_in_the_product,
        HEAD,
        "linear_cross_entropy weight gradient",
        "NaN in other places",
    ),
    "a bias forgotten": (
        "linear_cross_entropy",
        bias_without_gradient,
        HEAD,
        "linear_cross_entropy bias gradient",
        "got 0.0",
    ),
    "one plan": ("linear_cross_entropy", wrong_in_one_plan, HEAD, "linear_cross_entropy", "plan='lean'"),
    "place in the batch": ("softmax", other_bits_in_a_batch, "a row alone", "softmax", "of row"),
}
