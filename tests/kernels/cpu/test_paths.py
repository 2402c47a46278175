# SPDX-License-Identifier: Apache-2.0
"""Which way a call goes: rows of few classes in lanes, strided ones in tiles, short ones in wide lanes where
exponentials are summed, else row by row."""

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
    ((15, 33), "clone", "rows"),
    ((20, 251), "clone", "rows"),
    ((20, 32), "transposed", "lanes"),
    ((20, 33), "transposed", "tiles"),
    ((3, 7, 40), "clone", "lanes"),
    ((3, 40, 40), "clone", "tiles"),
    ((3, 40, 5), "every_other", "tiles"),
    ((2, 40, 3), "clone", "tiles"),
    ((2, 3000, 20), "clone", "tiles"),
]


def ways(x, target):
    """Of forward and backward of softmax, log_softmax, cross-entropy's mean and single losses."""
    leaf = x.detach().requires_grad_()
    for op in (softkern.softmax, softkern.log_softmax):
        y = op(leaf, 1)
        yield softkern._C.last_path()
        torch.autograd.grad(y, leaf, torch.ones_like(y))
        yield softkern._C.last_path()
    for reduction in ("mean", "none"):
        loss = softkern.cross_entropy(leaf, target, reduction=reduction)
        yield softkern._C.last_path()
        torch.autograd.grad(loss, leaf, torch.ones_like(loss))
        yield softkern._C.last_path()


@over_dtypes
@pytest.mark.parametrize(("shape", "layout", "way"), WAYS)
def test_the_way_that_a_call_goes(shape, layout, way, dtype, isa):
    x, target, _ = problem(shape, dtype)
    # Results are contiguous, whatever the logits: a backward may go another way.
    forward = list(ways(LAYOUTS[layout](x), target))[::2]
    assert set(forward) == {way}
    assert softkern._C.last_isa() == isa


@over_dtypes
@pytest.mark.parametrize("rows", (16, 37))
@pytest.mark.parametrize("longest", (False, True))
def test_short_rows_side_by_side_go_in_lanes_where_exponentials_are_summed(longest, rows, dtype, isa):
    classes = (125 if dtype == torch.float64 else 250) if longest else 33
    x, target, _ = problem((rows, classes), dtype)
    went = list(ways(x, target))
    assert set(went[::2]) == {"wide lanes"}
    # The mean's gradient is ready when it is asked for, but in float16; single losses' are scaled row by row.
    mean = "rows" if dtype == torch.float16 else "wide lanes"
    assert went[1::2] == ["rows", "rows", mean, "rows"]
    assert softkern._C.last_isa() == isa
    x, target, _ = problem((rows, classes + 1), dtype)
    assert next(ways(x, target)) == ("rows" if longest else "wide lanes")


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


def results_of_rows(rows, target, kwargs, give, at_once=21):
    """What comes of `at_once` rows at a time, and the ways of the ops; `give` puts them into memory."""
    went, found = {}, {}

    def note(what, result):
        went[what] = softkern._C.last_path()
        found.setdefault(what, []).append(result)

    per_row, per_logit = upstream(rows[:, 0], "random"), upstream(rows, "random")
    for first in range(0, len(rows), at_once):
        some = slice(first, first + at_once)
        leaf = give(rows[some]).requires_grad_()
        loss = softkern.cross_entropy(leaf, target[some], reduction="none", **kwargs)
        note("loss", loss)
        note("dloss", torch.autograd.grad(loss, leaf, per_row[some])[0])
        for op in (softkern.softmax, softkern.log_softmax):
            y = op(leaf, 1)
            note(op.__name__, y)
            for kind, grad in (("random", per_logit), ("zeros", torch.full_like(rows, -0.0))):
                found_grad = torch.autograd.grad(y, leaf, give(grad[some]), retain_graph=True)[0]
                note(f"d{op.__name__} {kind}", found_grad)
    return went, {what: torch.cat(parts) for what, parts in found.items()}


def apart(rows):
    return rows.t().contiguous().t()


def assert_same_bits_in_all_ways(x, target, kwargs):
    """Seven rows at a time go row by row; all 21 where they are short in lanes, apart in tiles."""
    went, want = results_of_rows(x, target, kwargs, torch.clone, at_once=7)
    assert set(went.values()) == {"rows"}
    short = x.shape[1] <= (125 if x.dtype == torch.float64 else 250)
    for give, way in ((torch.clone, "wide lanes" if short else "rows"), (apart, "tiles")):
        went, found = results_of_rows(x, target, kwargs, give)
        for what in want:
            # The stored gradient is scaled where it lies, row by row.
            summed = what in ("loss", "softmax", "log_softmax")
            expected = "rows" if what == "dloss" or (give is torch.clone and not summed) else way
            assert went[what] == expected, what
            assert_same_bits(found[what], want[what], f"{what}, {way}")


# One block of sums ends at 1024 classes in float64, at 2048 else: longer rows are packed. 40: half of the
# last accumulator's lanes have a class.
@over_dtypes
@over_kinds
@pytest.mark.parametrize("classes", (33, 40, 64, 79, 100, 1000, 1025, 2048, 2049))
def test_options_give_the_same_bits_in_all_ways(classes, kind, dtype, isa):
    assert_same_bits_in_all_ways(*problem((21, classes), dtype, **kind))


def tied(n, classes, dtype):
    """Several classes have the maximum, another one in each row: their terms are counted, not added."""
    return (logits(n, classes).clamp_max(4) + torch.linspace(0, 1, n)[:, None]).to(dtype)


@over_dtypes
@pytest.mark.parametrize("values", (*HURTING, tied), ids=lambda f: f.__name__)
def test_rows_that_hurt_give_the_same_bits_in_all_ways(values, dtype, isa):
    _, target, kwargs = problem((21, 120), dtype, smoothing=0.1)
    assert_same_bits_in_all_ways(values(21, 120, dtype), target, kwargs)
