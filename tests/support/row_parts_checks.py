# SPDX-License-Identifier: Apache-2.0
"""Checks the ops of rows whose classes are spread over several tensors, by the backend that is in use,
against those of the CPU and the float64 oracle."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from cases import logits, upstream
from compare import assert_gradient, assert_same_bits
from row_losses_checks import DIFFERENTIABLE, OUTPUTS, arguments, check_values, in_float64, possible
from row_losses_scales import scales
from torch import Tensor

import softkern
from softkern import reference
from softkern.reference_rows import RowLosses

ops = torch.ops.softkern
MAX, TIES, REST, TERMS_BELOW, MASS, MASS_BELOW, HOT_Z = range(7)


class Parts(NamedTuple):
    """What row_parts returns for all tensors, and the first class of each part."""

    numbers: Tensor
    hot_z: Tensor
    argmax: Tensor


def given_for(x: Tensor, options: dict[str, Any], first: int = 0, end: int | None = None) -> tuple:
    """The arguments for the classes from `first` to `end`."""
    own = {"reduction": "none", **options, "valid_classes": options.get("valid_classes") or x.shape[1]}
    target = own.get("target")
    if target is not None and target.is_floating_point():
        own["target"] = target[:, first:end]
    return arguments(x, possible(x, **options), **own)


def parts_of(x: Tensor, options: dict[str, Any], cuts: Sequence[int], tile: int) -> Parts:
    """The classes of each tensor are those between two `cuts`."""
    found = [
        ops.row_parts(x[:, first:end], *given_for(x, options, first, end), first, tile)
        for first, end in itertools.pairwise(cuts)
    ]
    numbers, hot_z, argmax = zip(*found, strict=True)
    return Parts(torch.cat(numbers, 1), torch.stack(hot_z).sum(0), torch.cat(argmax))


def results_of(x: Tensor, options: dict[str, Any], parts: Parts) -> tuple[RowLosses, Tensor]:
    """None for results that the target does not allow; and the numbers of whole rows."""
    *found, whole = ops.row_parts_results(x, parts.numbers, parts.hot_z, *given_for(x, options))
    wanted = possible(x, **options)
    results = (t if n in wanted else None for t, n in zip(found, OUTPUTS, strict=False))
    return RowLosses(*results, None, None), whole


def gradient_of(
    x: Tensor, options: dict[str, Any], cuts: Sequence[int], whole: Tensor, grads: dict[str, Tensor]
) -> Tensor:
    given = [grads.get(name) for name in DIFFERENTIABLE]
    return torch.cat(
        [
            ops.row_parts_backward(*given, x[:, first:end], whole, *given_for(x, options, first, end), first)
            for first, end in itertools.pairwise(cuts)
        ],
        1,
    )


def on_cpu(values: Any) -> Any:
    if isinstance(values, dict):
        return {k: on_cpu(v) for k, v in values.items()}
    if isinstance(values, (Parts, RowLosses)):
        return type(values)(*map(on_cpu, values))
    return values.cpu() if isinstance(values, Tensor) else values


def assert_near(found: Tensor, expected: Tensor, largest: float = 0.0) -> None:
    """Sums of numbers >= 0 within some ulp; `largest`: of the numbers that others are differences of."""
    eps = torch.finfo(found.dtype).eps
    near = {"rtol": 32 * eps, "atol": 8 * eps * largest, "equal_nan": True}
    torch.testing.assert_close(found.cpu(), expected, **near)


def check(x: Tensor, options: dict[str, Any], cuts: Sequence[int], tile: int) -> None:
    """All ops: the numbers of parts and of whole rows, the results, and their gradient."""
    parts = parts_of(x, options, cuts, tile)
    results, whole = results_of(x, options, parts)
    merged = ops.row_parts_merge(x, parts.numbers)
    assert_same_bits(merged, whole)
    with softkern.use_backend("portable"):
        expected = parts_of(on_cpu(x), on_cpu(options), cuts, tile)
        expected_whole = ops.row_parts_merge(on_cpu(x), on_cpu(parts.numbers))
    size = float(on_cpu(x)[:, : options.get("valid_classes", x.shape[1])].abs().nan_to_num(0, 0, 0).max())
    for i in range(7):
        assert_near(parts.numbers[i], expected.numbers[i], size if i in (MAX, HOT_Z) else 0)
        assert_near(whole[i], expected_whole[i])
    assert_near(parts.hot_z, expected.hot_z, size)
    assert torch.equal(parts.argmax.cpu(), expected.argmax)
    x_cpu, options_cpu = on_cpu(x), {"reduction": "none", **on_cpu(options)}
    check_values(on_cpu(results), x_cpu, **options_cpu)
    grads = {n: upstream(t, "random") for n, t in zip(OUTPUTS, results, strict=True) if t is not None}
    dx = gradient_of(x, options, cuts, whole, grads)
    wide, kwargs = in_float64(x_cpu, options_cpu)
    g = {n: t.cpu().double() for n, t in grads.items()}
    expected_dx = reference.row_losses_backward(*map(g.get, DIFFERENTIABLE), wide, **kwargs)
    _, scale = scales(wide, g, **kwargs)
    assert_gradient(dx.cpu(), expected_dx, x.dtype, dim=1, scale=scale, roundings=2)


def check_special(x: Tensor, options: dict[str, Any], cuts: Sequence[int], tile: int) -> None:
    """Rows without a finite result: as on the CPU, from the same numbers of parts."""
    parts = parts_of(x, options, cuts, tile)
    found, whole = results_of(x, options, parts)
    with softkern.use_backend("portable"):
        expected, expected_whole = results_of(on_cpu(x), on_cpu(options), on_cpu(parts))
    assert_near(whole, expected_whole)
    for name, got, want in zip(OUTPUTS, found, expected, strict=True):
        assert (got is None) == (want is None), name
        if got is not None and want is not None:
            assert_near(got, want, float(want.nan_to_num(0, 0, 0).abs().max()))


def some_parts(parts: int, rows: int, dtype: torch.dtype, device: Any = "cpu") -> Tensor:
    """Numbers of parts: some without classes, of -inf, with NaN, and far above or below the others."""
    shape = (parts, rows)
    m, ties = logits(*shape, dtype=dtype), torch.ones(shape, dtype=dtype)
    rest, below = logits(*shape, dtype=dtype, seed=1).abs(), logits(*shape, dtype=dtype, seed=2).abs()
    numbers = torch.stack((m, ties, rest, below, rest / 8, below / 8, torch.zeros_like(m)))
    numbers[HOT_Z, 0] = m[0]
    numbers[MAX, :, 1] += 1e4
    numbers[MAX, ::3, 2] += 1e4
    numbers[MAX, 1::2, 3] -= 1e4
    numbers[REST, 0, 4] = torch.nan
    numbers[MAX, -1, 5] = torch.inf
    numbers[TIES, ::2, 6] = 2
    numbers[MAX, :, 6] = 3
    for at in ((slice(None, None, 2), 7), (slice(None), 8), (slice(1, None), 9)):
        numbers[:, at[0], at[1]] = 0
        numbers[MAX, at[0], at[1]] = -torch.inf
    for number in (TIES, MASS):  # classes of -inf, which have mass
        numbers[number, ::2, 7] = 5
    return numbers.to(device)


def check_merge(x: Tensor, numbers: Tensor) -> None:
    """As on the CPU; and in groups whose numbers are merged then, with the same bits."""
    found = ops.row_parts_merge(x, numbers)
    with softkern.use_backend("portable"):
        expected = ops.row_parts_merge(on_cpu(x), on_cpu(numbers))
    assert_near(found, expected)
    leaves = 1 << (numbers.shape[1] - 1).bit_length()
    for size in sorted({max(1, leaves // groups) for groups in (1, 2, 4, 8)}):
        merged = [ops.row_parts_merge(x, group) for group in numbers.split(size, 1)]
        assert_same_bits(ops.row_parts_merge(x, torch.stack(merged, 1)), found)
