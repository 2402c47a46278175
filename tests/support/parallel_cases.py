# SPDX-License-Identifier: Apache-2.0
"""softkern.parallel.cross_entropy of whole tensors: threads as ranks have slices of the classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from cases import upstream
from compare import assert_same_bits
from row_losses_checks import DIFFERENTIABLE, OUTPUTS, assert_is_gradient, check_values, possible
from threaded_ranks import on_ranks
from torch import Tensor

import softkern.parallel
from softkern.reference_rows import RowLosses


class Sharded(NamedTuple):
    found: RowLosses  # the same on all ranks
    grads: tuple[dict[str, Tensor], ...]  # upstream gradients of several backwards
    dx: tuple[Tensor, ...]  # what they gave: the gradients of the ranks, side by side


def slices(x: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
    """The classes of each rank."""
    return x.split(list(widths), min(1, x.dim() - 1))


def statistics(x: Tensor, target: Tensor, **options: Any) -> tuple[str, ...]:
    """Those that the function has for a target."""
    names = possible(x, target, **options)
    return tuple(n for n in names if n != "loss" and (n != "log_prob" or target.dim() < x.dim()))


def sharded(
    x: Tensor,
    widths: Sequence[int],
    stats: tuple[str, ...] | None = None,
    kind: str = "random",
    how: dict[str, Any] | None = None,
    **options: Any,
) -> Sharded:
    """The loss and `stats` (None: all), and two backwards: of all of them, and of the loss alone.

    `options` are those of reference.row_losses, `how` those of softkern.parallel alone, `kind` of upstream
    gradients: as in cases.upstream. Raises if the ranks have other results than each other.
    """
    stats = statistics(x, **options) if stats is None else stats
    target = options.pop("target")
    xs = slices(x.detach(), widths)
    ys = slices(target, widths) if target.is_floating_point() else [target] * len(widths)
    mixes = [[n for n in DIFFERENTIABLE if n in ("loss", *stats)]]
    mixes += [["loss"]] if len(mixes[0]) > 1 else []

    def one(rank):
        leaf = xs[rank].detach().requires_grad_()
        result = softkern.parallel.cross_entropy(leaf, ys[rank], stats=stats, **options, **(how or {}))
        loss, found = result if stats else (result, None)
        results = {"loss": loss, **{name: getattr(found, name) for name in stats}}
        grads = [{name: upstream(results[name].detach(), kind) for name in mix} for mix in mixes]
        dx = [
            torch.autograd.grad([results[name] for name in g], leaf, list(g.values()), retain_graph=True)[0]
            for g in grads
        ]
        return {name: t.detach() for name, t in results.items()}, grads, dx

    ranks = on_ranks(len(widths), one)
    results, grads, _ = ranks[0]
    for other, *_ in ranks[1:]:
        for name, t in results.items():
            assert_same_bits(other[name], t, f"{name} of another rank")
    found = RowLosses(*(results.get(name) for name in OUTPUTS))
    of_ranks = zip(*(dx for *_, dx in ranks), strict=True)
    return Sharded(found, tuple(grads), tuple(torch.cat(dx, min(1, x.dim() - 1)) for dx in of_ranks))


def check(x: Tensor, widths: Sequence[int], *args: Any, how: Any = None, **options: Any) -> Sharded:
    """The results and gradients of `sharded` against float64."""
    result = sharded(x, widths, *args, how=how, **options)
    check_values(result.found, x, **options)
    for grads, dx in zip(result.grads, result.dx, strict=True):
        assert_is_gradient(dx, x, grads, **options)
    return result


def assert_equal_bits(one: Sharded, other: Sharded) -> None:
    for name, a, b in zip(OUTPUTS, one.found, other.found, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert_same_bits(a, b, name)
    for a, b in zip(one.dx, other.dx, strict=True):
        assert_same_bits(a, b, "dx")


def raised(ranks: int, f: Callable[[int], object]) -> list[Exception | None]:
    """What f(rank) raises on each rank."""

    def one(rank):
        try:
            f(rank)
        except Exception as error:
            return error
        return None

    return on_ranks(ranks, one)
