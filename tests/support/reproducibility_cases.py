# SPDX-License-Identifier: Apache-2.0
"""All results whose bits must not depend on the machine. As a script, it computes and saves them.

python reproducibility_cases.py OUT     # saves {name: tensor} and the ISAs that ran
"""

from __future__ import annotations

import sys

import torch
from cases import CLASSES, HURTING, LAYOUTS, logits, special_rows, upstream
from cross_entropy_cases import OPTIONS, problem
from tolerances import DTYPES

import softkern

OPS = ("softmax", "log_softmax")


def _softmaxes(x, dim):
    x = x.detach().requires_grad_()
    for op in OPS:
        y = getattr(softkern, op)(x, dim)
        yield op, y
        yield f"d{op}", torch.autograd.grad(y, x, upstream(y, "random"))[0]


def _cross_entropies(x, target, kwargs):
    x = x.detach().requires_grad_()
    for reduction in ("none", "mean", "sum"):
        loss = softkern.cross_entropy(x, target, reduction=reduction, **kwargs)
        yield f"loss {reduction}", loss
        grad = upstream(loss, "random")
        yield f"dloss {reduction}", torch.autograd.grad(loss, x, grad)[0]


def _problems():
    """(name, logits, dim, target, options)"""
    for dtype in DTYPES:
        for c in CLASSES:
            kinds = OPTIONS if c in (10, 65) else OPTIONS[::3]
            for options in kinds:
                x, target, kwargs = problem((3, c), dtype, **options)
                yield f"{dtype} C={c} {options}", x, 1, target, kwargs
        for layout in LAYOUTS:
            for shape in ((5, 37), (3, 37, 5)):
                x, target, kwargs = problem(shape, dtype, **OPTIONS[5])
                yield f"{dtype} {layout} {shape}", LAYOUTS[layout](x), 1, target, kwargs
        for values in HURTING:
            x, target, kwargs = values(3, 130, dtype), *problem((3, 130), dtype)[1:]
            yield f"{dtype} {values.__name__}", x, 1, target, kwargs
        x = special_rows(33, dtype)
        _, target, kwargs = problem((len(x), 33), dtype, smoothing=0.1)
        yield f"{dtype} special", x, 1, target, kwargs
        yield f"{dtype} first dim", logits(70, 9, dtype=dtype), 0, None, {}


def _exponentials():
    """exp over its whole range, down to the subnormal numbers and below, ulp by ulp near 0."""
    steps = torch.linspace(-110, 0, 4096)
    near = -torch.arange(1024) * 2.0**-24
    for c, x in ((1, steps), (8, steps), (1024, steps), (4, near)):
        rows = x.reshape(-1, c)
        yield c, torch.cat([torch.zeros(len(rows), 1), rows], 1)


def results() -> dict[str, torch.Tensor]:
    out = {}
    for case, x, dim, target, kwargs in _problems():
        for op, t in _softmaxes(x, dim):
            out[f"{case}: {op}"] = t.detach()
        if target is not None:
            for op, t in _cross_entropies(x, target, kwargs):
                out[f"{case}: {op}"] = t.detach()
    for c, x in _exponentials():
        for op, t in _softmaxes(x, 1):
            out[f"exp C={c}: {op}"] = t.detach()
    return out


if __name__ == "__main__":
    torch.set_num_threads(1)
    tensors = results()
    torch.save({"tensors": tensors, "isa": softkern._C.last_isa()}, sys.argv[1])
