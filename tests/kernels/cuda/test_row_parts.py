# SPDX-License-Identifier: Apache-2.0
"""row_losses of some classes of a row by the CUDA kernels, on a GPU or in the emulator: the numbers of a row,
which are the CPU's, and the gradient from them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from compare import assert_same_bits
from cuda_checks import DEVICE, DTYPES, by_kernels, emulated, eps, way
from cuda_row_checks import check_gradient, problem, upstream
from row_losses_cases import ALL, over_targets
from row_losses_checks import DIFFERENTIABLE, arguments, compute, possible
from torch import Tensor

import softkern
from softkern import _C
from softkern.reference_rows import RowLosses

pytestmark = by_kernels

EVERY = {k: v for k, v in ALL.items() if k not in ("num_items", "padding")}
PART = "part of a row"
NUMBERS = (
    7  # PartNumbers: m, ties, rest, E, the sums of the spread mass and of it times m - z, z of the index
)
# Rows with their windows: of aligned rows and others, of one thread's classes and of several warps'.
ROWS = {10: (0, 3, 10), 48: (0, 16, 48), 523: (0, 256, 523), 4608: (0, 2304, 4608)}
over_rows = pytest.mark.parametrize("classes", ROWS)


def step(x: Tensor, options: dict[str, Any], first: int = 0, end: int | None = None, **given: Any) -> None:
    """The step of the backend for the classes from `first` to `end` of the logits x. `given`: the numbers of
    whole rows, upstream gradients, and memory for results."""
    end = x.shape[1] if end is None else end
    target = options.get("target")
    own = {**options, "valid_classes": options.get("valid_classes") or x.shape[1]}
    if target is not None and target.is_floating_point():
        own["target"] = target[:, first:end]
    names = ("whole", "parts", *DIFFERENTIABLE, "losses", "grad")
    window = given.pop("logits", x[:, first:end])
    outputs = possible(x, **options) if given.pop("entropy_too", True) else ("lse",)
    _C.row_losses_step(window, *arguments(x, outputs, **own), first, *map(given.get, names))


def numbers(
    x: Tensor, options: dict[str, Any], first: int = 0, end: int | None = None, **given: Any
) -> Tensor:
    # Rows of another tensor lie between them.
    memory = torch.full((NUMBERS, 2, x.shape[0]), 7.0, dtype=compute(x.dtype), device=x.device)
    step(x, options, first, end, parts=memory[:, 0], **given)
    assert bool((memory[:, 1] == 7).all())
    return memory[:, 0]


def numbers_of_the_cpu(x: Tensor, options: dict[str, Any], *window: int, **given: Any) -> Tensor:
    moved = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in options.items()}
    with softkern.use_backend("portable"):
        return numbers(x.cpu(), moved, *window, **given).to(x.device)


def gradient(x: Tensor, options: dict[str, Any], cuts: tuple[int, ...], inplace: bool = False, **given: Any):
    """From the numbers of whole rows, one window of classes after the other."""
    memory = x.clone() if inplace else torch.full_like(x, 77)
    for first, end in itertools.pairwise(cuts):
        grad = memory[:, first:end]
        step(x, options, first, end, grad=grad, logits=grad if inplace else x[:, first:end], **given)
        assert way() == PART
    return memory


def upstreams(x: Tensor, options: dict[str, Any], names=DIFFERENTIABLE) -> dict[str, Tensor]:
    rows, k = x.shape[:1], options.get("target", x).shape[-1:]
    like = torch.zeros(rows, dtype=compute(x.dtype), device=x.device)
    several = like.new_zeros((*rows, *k)) if options.get("target_probs") is not None else like
    found = RowLosses(like, several, like, like, None, None)
    wanted = tuple(n for n in names if n in possible(x, **options))
    return upstream(found, wanted)


@over_rows
@over_targets
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_of_rows_are_those_of_the_cpu(classes, target, dtype):
    for kwargs in ({}, EVERY):
        x, options = problem((5, classes), dtype, target=target, **kwargs)
        for first, end in ((0, classes), *itertools.pairwise(ROWS[classes])):
            for entropy in (True, False):
                found = numbers(x, options, first, end, entropy_too=entropy)
                expected = numbers_of_the_cpu(x, options, first, end, entropy_too=entropy)
                assert_same_bits(found[1], expected[1])
                # z by the same formula, with another rounding of multiply-adds; sums in another order.
                near = {"rtol": 32 * eps(found.dtype), "atol": 0}
                torch.testing.assert_close(found, expected, **near, equal_nan=True)


def test_numbers_beside_other_results():
    """The loss has the mass of several indices, which the numbers have not."""
    x, options = problem((5, 45), target="indices", smoothing=0.1)
    memory, losses = torch.zeros(NUMBERS, 5, device=DEVICE), torch.zeros(2, 5, device=DEVICE)
    step(x, options, parts=memory, losses=losses[0])
    step(x, options, losses=losses[1])
    torch.testing.assert_close(losses[0], losses[1], rtol=8 * eps(x.dtype), atol=0)


@over_rows
@over_targets
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gradient_in_parts(classes, target, dtype):
    """Is right, takes the place of the logits, and has the bits of the gradient that is computed at once."""
    for kwargs, names in (({}, ("loss", "lse")), ({}, DIFFERENTIABLE), (EVERY, DIFFERENTIABLE)):
        x, options = problem((5, classes), dtype, target=target, **kwargs)
        if target == "none":  # has no mass that could be spread, but at once another form of the kernel
            options.pop("label_smoothing", None)
        grads = upstreams(x, options, names)
        whole = numbers(x, options)
        dx = gradient(x, options, ROWS[classes], whole=whole, **grads)
        check_gradient(dx, grads, x, **options)
        assert_same_bits(gradient(x, options, ROWS[classes], inplace=True, whole=whole, **grads), dx)
        assert_same_bits(gradient(x, options, (0, classes - 1, classes), whole=whole, **grads), dx)
        at_once = torch.empty_like(x)
        step(x, options, grad=at_once, **grads)
        if target != "indices" and dtype.itemsize > 2:
            assert_same_bits(dx, at_once)


def test_valid_classes_may_end_in_any_part():
    for target in ("index", "indices", "probs"):
        x, options = problem((3, 64), target=target, padding=9, weight=True, smoothing=0.1)
        grads = upstreams(x, options)
        whole = numbers(x, options)
        dx = gradient(x, options, (0, 64), whole=whole, **grads)
        assert bool((dx[:, 55:] == 0).all())
        check_gradient(dx, grads, x, **options)
        for cuts in ((0, 32, 64), (0, 55, 64), (0, 56, 60, 64)):
            assert_same_bits(gradient(x, options, cuts, whole=whole, **grads), dx)
            assert_same_bits(gradient(x, options, cuts, inplace=True, whole=whole, **grads), dx)
        nothing = numbers(x, options, 56, 64)
        assert bool((nothing[0] == -torch.inf).all()) and bool((nothing[1:] == 0).all())


def test_the_only_index_has_the_logit_of_the_numbers():
    """Another product of matrices may have rounded it differently."""
    for target in ("index", "indices"):
        x, options = problem((4, 48), target=target, k=1)
        options.pop("target_probs", None)
        grads = upstreams(x, options)
        if target == "indices":
            grads["log_prob"] = grads["log_prob"][:, None]
        whole = numbers(x, options)
        dx = gradient(x, options, (0, 16, 48), whole=whole, **grads)
        hot = x.scatter(1, options["target"].view(4, 1), torch.nan)
        assert_same_bits(gradient(hot, options, (0, 16, 48), whole=whole, **grads), dx)


def test_ignored_rows_are_zeros():
    x, options = problem((4, 48), ignore=2)
    options["target"][1:3] = 2
    x[1:3] = torch.nan
    whole = numbers(x, options)
    assert bool((whole[:, 1:3] == 0).all()) and not bool((whole[:, ::3] == 0).all())
    grads = upstreams(x, options)
    for inplace in (False, True):
        dx = gradient(x, options, (0, 16, 48), inplace, whole=whole, **grads)
        assert_same_bits(dx[1:3], torch.zeros_like(dx[1:3]))


@pytest.mark.parametrize("softcap", (0.0, 8.0))
def test_logits_that_are_not_finite_or_far_from_zero(softcap):
    x, options = problem((8, 48), softcap=softcap)
    x[0, 16:] = -torch.inf
    x[1, :16] = -torch.inf
    x[2, 20] = torch.nan
    x[3, 20] = torch.inf
    x[4] = -torch.inf
    x[5] += 1e4
    x[6, 3] = 1e6
    grads = upstreams(x, options)
    for first, end in ((0, 48), (0, 16), (16, 48)):
        found, expected = numbers(x, options, first, end), numbers_of_the_cpu(x, options, first, end)
        assert_same_bits(found[0], expected[0])
        # No sum means anything beside an infinite maximum, but other classes may have a finite one.
        assert not bool(found[2:4, found[0] == -torch.inf].any())
        number = found[0].isfinite()
        near = {"rtol": 32 * eps(x.dtype), "atol": 0}
        torch.testing.assert_close(found[:, number], expected[:, number], **near, equal_nan=True)
    at_once = torch.empty_like(x)
    step(x, options, grad=at_once, **grads)
    dx = gradient(x, options, (0, 16, 48), whole=numbers(x, options), **grads)
    assert_same_bits(dx, at_once)


def test_classes_that_lie_apart():
    x, options = problem((40, 48), target="probs", weight=True)
    grads = upstreams(x, options)
    whole = numbers(x, options)
    dx = gradient(x, options, (0, 16, 48), whole=whole, **grads)
    apart = x.t().contiguous().t()
    assert_same_bits(gradient(apart, options, (0, 16, 48), whole=whole, **grads), dx)


@emulated
@pytest.mark.parametrize("target", ("index", "indices"))
def test_an_index_out_of_range_is_an_error(target):
    x, options = problem((4, 48), target=target)
    whole = numbers(x, options)
    for wrong in (-1, 48, 1 << 40):
        options["target"].view(-1)[0] = wrong
        with pytest.raises(IndexError, match="out of bounds"):
            numbers(x, options, 16, 48)
        with pytest.raises(IndexError, match="out of bounds"):
            gradient(x, options, (16, 48), whole=whole, loss=torch.ones(4))
