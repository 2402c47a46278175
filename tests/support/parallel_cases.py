# SPDX-License-Identifier: Apache-2.0
"""softkern.parallel.cross_entropy of whole tensors: threads as ranks have slices of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from cases import upstream
from compare import assert_same_bits
from row_losses_checks import DIFFERENTIABLE, OUTPUTS, assert_is_gradient, check_values, possible
from threaded_ranks import on_ranks
from torch import Tensor

import softkern.parallel
from softkern.parallel._vocabulary import even_widths
from softkern.reference_rows import RowLosses

__all__ = ["Sharded", "check", "even_widths", "raised", "sharded", "slices"]


class Sharded(NamedTuple):
    found: RowLosses  # the same on all ranks
    dx: Tensor | None  # the gradients of the ranks, side by side


def slices(x: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
    """The classes of each rank."""
    return x.split(list(widths), min(1, x.dim() - 1))


def sharded(
    x: Tensor,
    widths: Sequence[int],
    stats: tuple[str, ...] = (),
    grads: dict[str, Tensor] | None = None,
    how: dict[str, Any] | None = None,
    **options: Any,
) -> Sharded:
    """The loss, `stats`, and the gradient for the upstream gradients `grads` of any of them.

    `options` are those of reference.row_losses, `how` those of softkern.parallel alone. Raises if the ranks
    have other results than each other.
    """
    target = options.pop("target")
    xs = slices(x.detach(), widths)
    ys = slices(target, widths) if target.is_floating_point() else [target] * len(widths)

    def one(rank):
        leaf = xs[rank].clone().requires_grad_()
        loss, found = softkern.parallel.cross_entropy(
            leaf, ys[rank], stats=(*stats, "lse"), **options, **(how or {})
        )
        results = {"loss": loss, **{name: getattr(found, name) for name in stats}}
        dx = None
        if grads:
            (dx,) = torch.autograd.grad([results[name] for name in grads], leaf, list(grads.values()))
        return {name: t.detach() for name, t in results.items()}, dx

    ranks = on_ranks(len(widths), one)
    results = ranks[0][0]
    for other, _ in ranks[1:]:
        for name, t in results.items():
            assert_same_bits(other[name], t, f"{name} of another rank")
    found = RowLosses(*(results.get(name) for name in OUTPUTS))
    return Sharded(found, torch.cat([dx for _, dx in ranks], min(1, x.dim() - 1)) if grads else None)


def statistics(x: Tensor, target: Tensor, **options: Any) -> tuple[str, ...]:
    """Those that the function has for a target."""
    names = possible(x, target, **options)
    return tuple(n for n in names if n != "loss" and (n != "log_prob" or target.dim() < x.dim()))


def check(
    x: Tensor,
    widths: Sequence[int],
    stats: tuple[str, ...] | None = None,
    kind: str = "random",
    how: dict[str, Any] | None = None,
    **options: Any,
) -> Sharded:
    """Values, and gradients of all of them at once and of the loss alone, against float64.

    `kind` of upstream gradients: as in cases.upstream.
    """
    stats = statistics(x, **options) if stats is None else stats
    found = sharded(x, widths, stats, how=how, **options).found
    check_values(found, x, **options)
    all_of_them = {n: upstream(getattr(found, n), kind) for n in DIFFERENTIABLE if n in ("loss", *stats)}
    for grads in {tuple(g): g for g in (all_of_them, {"loss": all_of_them["loss"]})}.values():
        result = sharded(x, widths, stats, grads, how, **options)
        assert_is_gradient(result.dx, x, grads, **options)
    return result


def raised(ranks: int, f) -> list[Exception | None]:
    """What f(rank) raises on each rank."""

    def one(rank):
        try:
            f(rank)
        except Exception as error:
            return error
        return None

    return on_ranks(ranks, one)
