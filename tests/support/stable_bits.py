# SPDX-License-Identifier: Apache-2.0
"""Prints a hash of results and gradients, or an exception, for each of many calls, so that two bindings of
the kernels can be compared (tests/project/test_stable.py)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

import softkern
from softkern.options import OUTPUTS

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SHAPES = ((101, 7), (33, 300), (4, 20, 6), (7,))
STATS = tuple(name for name in OUTPUTS if name != "loss")


def digest(*tensors: Tensor | None) -> str:
    result = hashlib.sha1()
    for x in tensors:
        if x is not None:
            result.update(repr((x.dtype, x.shape, x.detach().double().tolist())).encode())
    return result.hexdigest()[:12]


def gradients(loss: Tensor, *leaves: Tensor) -> str:
    upstream = torch.rand(loss.shape).to(loss.dtype)
    return digest(loss, *torch.autograd.grad(loss, leaves, upstream, allow_unused=True))


def numbers(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return (3 * torch.randn(shape)).to(dtype).requires_grad_()


def softmaxes(dtype: torch.dtype) -> Iterator[str]:
    for f in (softkern.softmax, softkern.log_softmax):
        for shape, dim in (((33, 300), -1), ((4, 20, 6), 1), ((), 0)):
            x = numbers(shape, dtype)
            with torch.inference_mode():
                alone = digest(f(x, dim))
            yield alone + gradients(f(x, dim), x)


def losses(dtype: torch.dtype, reduction: str) -> Iterator[str]:
    for shape in SHAPES:
        x = numbers(shape, dtype)
        classes = shape[min(1, len(shape) - 1)]
        rows = shape[:1] + shape[2:] if len(shape) > 1 else ()
        y, weight, row_weight = (
            torch.randint(0, classes, rows),
            torch.rand(classes).to(dtype),
            torch.rand(rows),
        )
        if rows:
            y.view(-1)[0] = -100
        probs = torch.rand(shape).to(dtype)
        for options in ({}, {"weight": weight}, {"weight": weight, "label_smoothing": 0.1}):
            for target in (y, y.int(), probs):
                yield gradients(softkern.cross_entropy(x, target, reduction=reduction, **options), x)
        for options in (
            {"row_weight": row_weight, "num_items": 7.0},
            {"z_loss": 0.1, "softcap": 20.0, "logit_scale": 0.5},
            {"valid_classes": classes - 1, "temperature": 2.0},
        ):
            t = y.clamp(max=classes - 2)
            yield gradients(softkern.cross_entropy(x, t, reduction=reduction, **options), x)
            loss, stats = softkern.cross_entropy(x, t, reduction=reduction, stats=STATS, **options)
            yield digest(*stats) + gradients(loss.sum() + stats.lse.sum() + 2 * stats.entropy.sum(), x)
            over = softkern.cross_entropy(x * 1, t, reduction=reduction, inplace_backward=True, **options)
            yield gradients(over, x)
        loss = softkern.cross_entropy(x, y, reduction=reduction, label_smoothing=0.1).sum()
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        yield gradients(first, x)


def layers(dtype: torch.dtype, reduction: str) -> Iterator[str]:
    x, w, b = numbers((50, 32), dtype), numbers((300, 32), dtype), numbers((300,), dtype)
    y = torch.randint(0, 300, (50,))
    y[3] = -100
    for plan in ("auto", "lean"):
        options = softkern.LinearCrossEntropyOptions(plan=plan)
        loss = softkern.linear_cross_entropy(x, w, y, linear_bias=b, reduction=reduction, options=options)
        yield gradients(loss, x, w, b)


def refused() -> Iterator[str]:
    x, y = torch.randn(3, 4, requires_grad=True), torch.tensor([0, 9, 1])
    for call in (
        lambda: softkern.softmax(x, 7),
        lambda: softkern.log_softmax(torch.arange(3), 0),
        lambda: softkern.cross_entropy(x, y),
        lambda: softkern.cross_entropy(x, y, z_loss=0.1),
        lambda: softkern.cross_entropy(x, y[:2]),
        lambda: softkern.cross_entropy(x, y.clamp(max=3), inplace_backward=True),
        lambda: softkern.linear_cross_entropy(x, torch.randn(5, 4), y),
    ):
        for mode in (torch.enable_grad, torch.inference_mode):
            try:
                with mode():
                    call()
            except Exception as error:
                yield f"{type(error).__name__}: {error}".partition("\n")[0]
            else:
                yield "accepted"


def main() -> None:
    torch.manual_seed(0)
    for dtype in DTYPES:
        print(dtype, "softmaxes", *softmaxes(dtype))
        for reduction in ("mean", "sum", "none"):
            print(dtype, reduction, *losses(dtype, reduction))
            if dtype != torch.bfloat16:  # the stable library has no products of packed matrices
                print(dtype, reduction, "layers", *layers(dtype, reduction))
    print(*refused(), sep="\n")


if __name__ == "__main__":
    main()
