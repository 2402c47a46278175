# SPDX-License-Identifier: Apache-2.0
"""Ops on tensors without values: shapes, strides, dtypes and exceptions are those of the real ops."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from cases import LAYOUTS, logits, name, upstream
from cross_entropy_cases import OPTIONS, REDUCTIONS, problem
from fakes import MODES, Fakes, compare, over_sizes, quiet  # noqa: F401  (quiet is a fixture of each test)
from tolerances import DTYPES

import softkern

ops = torch.ops.softkern
over_options = pytest.mark.parametrize("options", OPTIONS, ids=name)
SHAPES = ((7,), (6, 10), (4, 5, 3), (2, 5, 3, 4), (0, 5), (2, 5, 3, 0))


@over_sizes
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("op", ("softmax", "log_softmax"))
def test_softmaxes(op, mode, symbolic):
    both = getattr(ops, op), getattr(ops, f"{op}_backward")
    for shape in ((), *SHAPES):
        for layout in ("clone",) if shape == () else ("clone", "transposed") if symbolic else LAYOUTS:
            x = LAYOUTS[layout](logits(*shape))
            for dim in {0, -1, min(1, len(shape) - 1)}:
                y = compare(both[0], (x, dim), symbolic, mode)
                compare(both[1], (LAYOUTS[layout](upstream(y, "random")), y, dim), symbolic, mode)
    for dtype in DTYPES:
        compare(both[0], (logits(3, 4, dtype=dtype), 1), symbolic, mode)


def arguments(x, target, kwargs, reduction):
    more = kwargs.get("ignore_index", -100), kwargs.get("label_smoothing", 0.0)
    return (x, target, kwargs.get("weight"), reduction, *more)


@over_sizes
@pytest.mark.parametrize("reduction", range(3), ids=REDUCTIONS)
@over_options
def test_cross_entropy(options, reduction, symbolic):
    """Every op of it, in the order in which autograd calls them."""

    def all_ops(args):
        compare(ops.cross_entropy, args, symbolic)
        if OPTIONS.index(options) % 3:
            return
        loss, grad, scale = compare(ops.cross_entropy_forward, (*args, True), symbolic)
        compare(ops.cross_entropy_forward, (*args, False), symbolic)
        inner = upstream(loss, "random"), grad, scale, args[1], args[4]
        compare(ops.cross_entropy_backward, inner, symbolic)
        compare(ops.cross_entropy_backward_, inner, symbolic)
        compare(ops.cross_entropy_, args, symbolic)
        compare(ops.cross_entropy_forward_, (args[0].contiguous().clone(), *args[1:]), symbolic)

    for shape in SHAPES:
        all_ops(arguments(*problem(shape, **options), reduction))
    for mode in ("no_grad", "inference"):
        args = arguments(*problem((6, 10), **options), reduction)
        compare(ops.cross_entropy, args, symbolic, mode)
        compare(ops.cross_entropy_, args, symbolic, mode)
    if symbolic:  # dtypes and strides go the same ways
        return
    for dtype in DTYPES:
        all_ops(arguments(*problem((4, 5, 3), dtype, **options), reduction))
    for layout in ("transposed", "padded", "channels_last", "permuted"):
        x, target, kwargs = problem((2, 5, 3, 4), **options)
        all_ops(arguments(LAYOUTS[layout](x), target, kwargs, reduction))
    if "probs" not in options:
        x, target, kwargs = problem((6, 10), **options)
        for dtype in (torch.int32, torch.uint8):
            all_ops(arguments(x, target.clamp(min=0).to(dtype), kwargs, reduction))


@over_sizes
@pytest.mark.parametrize("reduction", REDUCTIONS)
@over_options
def test_gradients(options, reduction, symbolic):
    def gradient(x, target, weight):
        loss = softkern.cross_entropy(x, target, weight, reduction=reduction, **kwargs)
        return loss, torch.autograd.grad(loss.sum(), x)

    for shape in SHAPES:
        x, target, kwargs = problem(shape, **options)
        compare(gradient, (x.requires_grad_(), target, kwargs.pop("weight", None)), symbolic)


X, Y, W = problem((6, 10), weight=True)
REFUSED = {
    "fewer targets": (lambda: (X, Y[:5])),
    "targets of another rank": (lambda: (X, Y[:, None, None])),
    "short targets": (lambda: (X, Y.short())),
    "floating targets": (lambda: (X, Y.float())),
    "integer probabilities": (lambda: (X, Y[:, None].expand(6, 10).int())),
    "a smoothing above 1": (lambda: (X, Y, None, 1, -100, 1.5)),
    "probabilities and ignore_index": (lambda: (X, X.softmax(1), None, 1, 3)),
    "weights of another number": (lambda: (X, Y, W["weight"][:9])),
    "weights of another dtype": (lambda: (X, Y, W["weight"].double())),
}


@over_sizes
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", REFUSED)
def test_arguments_that_are_refused(case, mode, symbolic):
    """Before a compiler has built on them, by torch's own checks: what torch lets pass here is passed."""

    def raised(f, args, within):
        with MODES[mode](), within:
            try:
                f(*args)
            except Exception as error:
                return type(error)
        return None

    args = REFUSED[case]()
    fakes = Fakes(symbolic)
    with MODES[mode]():
        given = fakes(*args)
    got = raised(ops.cross_entropy, given, fakes.mode)
    expected = raised(torch.ops.aten.cross_entropy_loss, given, fakes.mode)
    assert got is expected
    assert raised(ops.cross_entropy, args, nullcontext()) is raised(
        torch.ops.aten.cross_entropy_loss, args, nullcontext()
    )


@over_sizes
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("op", ("softmax", "log_softmax"))
@pytest.mark.parametrize("dim", (2, -3, 64))
def test_a_dim_that_is_not_there(op, dim, mode, symbolic):
    fakes = Fakes(symbolic)
    texts = []
    with MODES[mode]():
        for x, within in ((X, nullcontext()), (*fakes(X), fakes.mode)):
            with within, pytest.raises(IndexError) as error:
                getattr(ops, op)(x, dim)
            texts.append(str(error.value))
    assert texts[0] == texts[1]
