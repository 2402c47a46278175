# SPDX-License-Identifier: Apache-2.0
"""Results of 8 MiB and more bypass the caches, and have the bits of the same rows in smaller calls."""

from __future__ import annotations

import pytest
import torch
from cases import name, upstream
from compare import assert_same_bits
from cross_entropy_cases import KINDS, problem
from tolerances import DTYPES

import softkern

STREAMED = 8 << 20  # bytes
over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=name)
# Rows of an odd number of classes begin anywhere in a vector; those of 40 and 21 classes lie in lanes, their
# results in whole vectors of a class (128 x 96) or not (33 x 3). With the kinds of cross_entropy's arguments.
INDICES, ALL_OPTIONS, PROBABILITIES = KINDS
SHAPES = {
    (1001,): KINDS,
    (4097,): (INDICES,),
    (21, 128, 96): (INDICES, PROBABILITIES),
    (40, 128, 96): (ALL_OPTIONS,),
    (40, 33, 3): (INDICES,),
}
over_shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
over_problems = pytest.mark.parametrize(
    ("shape", "kind"), [(shape, kind) for shape, kinds in SHAPES.items() for kind in kinds]
)


def large_problem(shape, dtype, **kind):
    """Rows enough for a streamed result, and parts of them that are small enough for none."""
    x, target, kwargs = problem((2, *shape), dtype, **kind)
    bytes_of_one = x[0].numel() * x.element_size()
    n = STREAMED // bytes_of_one + 1
    x, target, kwargs = problem((n, *shape), dtype, **kind)
    assert x.numel() * x.element_size() >= STREAMED
    parts = [slice(0, 1), slice(1, n // 2), slice(n // 2, n)]
    assert all(x[part].numel() * x.element_size() < STREAMED for part in parts)
    return x, target, kwargs, parts


@over_dtypes
@over_problems
def test_cross_entropy(shape, kind, dtype, isa):
    x, target, kwargs, parts = large_problem(shape, dtype, **kind)

    def of(rows):
        leaf = x[rows].clone().requires_grad_()
        loss = softkern.cross_entropy(leaf, target[rows], reduction="none", **kwargs)
        ones = torch.autograd.grad(loss, leaf, torch.ones_like(loss), retain_graph=True)[0]
        # retain_graph: the stored gradient is not scaled in place.
        factors = upstream(target[:, 0] if target.dim() > loss.dim() else target.to(dtype), "random")
        return loss, ones, torch.autograd.grad(loss, leaf, factors[rows].to(dtype), retain_graph=True)[0]

    whole = of(slice(None))
    for part in parts:
        for some, all_rows in zip(of(part), whole, strict=True):
            assert_same_bits(some, all_rows[part], f"rows {part}")


@over_dtypes
@over_shapes
@pytest.mark.parametrize("op", (softkern.softmax, softkern.log_softmax))
def test_softmax(op, shape, dtype, isa):
    x, _, _, parts = large_problem(shape, dtype)
    gradient = upstream(x, "random")

    def of(rows):
        leaf = x[rows].clone().requires_grad_()
        y = op(leaf, 1)
        return y, torch.autograd.grad(y, leaf, gradient[rows])[0]

    whole = of(slice(None))
    for part in parts:
        for some, all_rows in zip(of(part), whole, strict=True):
            assert_same_bits(some, all_rows[part], f"rows {part}")
