# SPDX-License-Identifier: Apache-2.0
"""Which way a call goes: rows of few classes in lanes, strided ones in tiles, else row by row."""

from __future__ import annotations

import pytest
import torch
from cases import HURTING, LAYOUTS, logits, name, upstream
from compare import assert_same_bits
from cross_entropy_cases import over_kinds, problem
from tolerances import DTYPES

import softkern

over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=name)
# Classes, layout and way. Contiguous rows of a shape (N, C, d) have their classes apart.
WAYS = [
    ((20, 1), "clone", "lanes"),
    ((20, 32), "clone", "lanes"),
    ((20, 33), "clone", "rows"),
    ((20, 32), "transposed", "lanes"),
    ((20, 33), "transposed", "tiles"),
    ((3, 7, 40), "clone", "lanes"),
    ((3, 40, 40), "clone", "tiles"),
    ((3, 40, 5), "every_other", "tiles"),
    ((2, 40, 3), "clone", "tiles"),
    ((2, 3000, 20), "clone", "tiles"),
]


def results(x, target):
    leaf = x.detach().requires_grad_()
    for op in (softkern.softmax, softkern.log_softmax):
        y = op(leaf, 1)
        yield softkern._C.last_path(), y
        yield softkern._C.last_path(), torch.autograd.grad(y, leaf, torch.ones_like(y))[0]
    for reduction in ("mean", "none"):
        loss = softkern.cross_entropy(leaf, target, reduction=reduction)
        yield softkern._C.last_path(), loss
        yield softkern._C.last_path(), torch.autograd.grad(loss, leaf, torch.ones_like(loss))[0]


@over_dtypes
@pytest.mark.parametrize(("shape", "layout", "way"), WAYS)
def test_the_way_that_a_call_goes(shape, layout, way, dtype, isa):
    x, target, _ = problem(shape, dtype)
    for ran, _ in results(LAYOUTS[layout](x), target):
        assert ran == way
    assert softkern._C.last_isa() == isa


@over_dtypes
@pytest.mark.parametrize("classes", (3, 10, 32, 33, 100))
@pytest.mark.parametrize("inner", (1, 2, 15, 16, 17, 40, 200))
def test_a_rows_bits_do_not_depend_on_its_way(classes, inner, dtype, isa):
    """The same rows packed side by side, in slices and one by one."""
    x, target, _ = problem((3, classes, inner), dtype)
    rows, flat = x.movedim(1, -1).reshape(-1, classes), target.reshape(-1)

    def as_rows(t):
        return t.movedim(1, -1).reshape(-1, classes) if t.dim() == 3 else t.reshape(-1)

    leaf, row_leaf = x.clone().requires_grad_(), rows.clone().requires_grad_()
    for op in (softkern.softmax, softkern.log_softmax):
        y, row_y = op(leaf, 1), op(row_leaf, 1)
        assert_same_bits(as_rows(y), row_y, op.__name__)
        upstream = logits(*row_y.shape, dtype=dtype, seed=9)
        from_rows = torch.autograd.grad(row_y, row_leaf, upstream)[0]
        there = upstream.reshape(3, inner, classes).movedim(-1, 1)
        assert_same_bits(as_rows(torch.autograd.grad(y, leaf, there)[0]), from_rows, f"d{op.__name__}")
    losses = softkern.cross_entropy(leaf, target, reduction="none")
    row_losses = softkern.cross_entropy(row_leaf, flat, reduction="none")
    assert_same_bits(losses.reshape(-1), row_losses, "loss")
    gradient = torch.autograd.grad(losses.sum(), leaf)[0]
    assert_same_bits(as_rows(gradient), torch.autograd.grad(row_losses.sum(), row_leaf)[0], "dloss")
    for r in (0, len(rows) // 2, len(rows) - 1):
        alone = softkern.cross_entropy(rows[r : r + 1], flat[r : r + 1], reduction="none")
        assert_same_bits(alone, row_losses[r : r + 1].detach(), f"row {r} alone")


def results_of_rows(rows, target, kwargs, give):
    """What `give` makes of rows whose classes lie side by side, and what comes of them as rows."""
    leaf = give(rows).requires_grad_()
    loss = softkern.cross_entropy(leaf, target, reduction="none", **kwargs)
    yield "loss", loss
    yield "dloss", torch.autograd.grad(loss, leaf, upstream(loss, "random"))[0]
    for op in (softkern.softmax, softkern.log_softmax):
        y = op(leaf, 1)
        yield op.__name__, y
        for kind, grad in (("random", upstream(rows, "random")), ("zeros", torch.full_like(rows, -0.0))):
            yield f"d{op.__name__} {kind}", torch.autograd.grad(y, leaf, give(grad), retain_graph=True)[0]


def apart(rows):
    return rows.t().contiguous().t()


# One block of sums ends at 1024 classes in float64, at 2048 else: longer rows are packed. 40: half of the
# last accumulator's lanes have a class.
@over_dtypes
@over_kinds
@pytest.mark.parametrize("classes", (33, 40, 64, 79, 100, 1000, 1025, 2048, 2049))
def test_options_of_strided_rows_give_the_bits_of_rows_side_by_side(classes, kind, dtype, isa):
    x, target, kwargs = problem((21, classes), dtype, **kind)
    side_by_side = dict(results_of_rows(x, target, kwargs, torch.clone))
    assert softkern._C.last_path() == "rows"
    for what, found in results_of_rows(x, target, kwargs, apart):
        # The stored gradient is scaled where it lies, row by row.
        assert softkern._C.last_path() == ("rows" if what == "dloss" else "tiles")
        assert_same_bits(found, side_by_side[what], what)


def tied(n, classes, dtype):
    """Several classes have the maximum, another one in each row: their terms are counted, not added."""
    return (logits(n, classes).clamp_max(4) + torch.linspace(0, 1, n)[:, None]).to(dtype)


@over_dtypes
@pytest.mark.parametrize("values", (*HURTING, tied), ids=lambda f: f.__name__)
def test_strided_rows_that_hurt_give_the_bits_of_rows_side_by_side(values, dtype, isa):
    x = values(21, 130, dtype)
    _, target, kwargs = problem((21, 130), dtype, smoothing=0.1)
    side_by_side = dict(results_of_rows(x, target, kwargs, torch.clone))
    for what, found in results_of_rows(x, target, kwargs, apart):
        # The stored gradient is scaled where it lies, row by row.
        assert softkern._C.last_path() == ("rows" if what == "dloss" else "tiles")
        assert_same_bits(found, side_by_side[what], what)
