# SPDX-License-Identifier: Apache-2.0
"""linear_cross_entropy on the CPU: what is promised of bits.

The loss and the statistics of a row depend on nothing but the row and the layer: not on the size of chunks,
the order of the rows, other rows that are ignored, the plan, or what is differentiated.
This holds for 64 rows and more: torch's products of fewer rows may go other ways, with the last bit of a sum
another one. Gradients are sums over chunks of rows (dW) or tiles of classes (dX). Two runs with the same
arguments give the same bits; other chunks or another plan may not.
"""

from __future__ import annotations

import pytest
import torch
from cases import name as id_of
from compare import assert_same_bits
from linear_cases import Layer, linear, linear_problem, over_fused, plan
from row_losses_checks import OUTPUTS

over_floats = pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=id_of)
N, H, C = 203, 72, 779


def rows_of(layer: Layer, options, name="lean", outputs=OUTPUTS, **of_plan):
    found = linear(layer, outputs, options=plan(name, **of_plan), reduction="none", **options)
    return {n: t.detach() for n, t in found._asdict().items() if t is not None}


def assert_equal(got, expected, what):
    for n, t in got.items():
        assert_same_bits(t, expected[n], f"{n} {what}")


@over_floats
@pytest.mark.parametrize("kind", ({}, {"softcap": 3.0, "z_loss": 0.1, "smoothing": 0.1}), ids=id_of)
def test_a_row_has_the_same_bits_in_any_company(kind, dtype):
    layer, options = linear_problem(N, H, C, dtype, **kind)
    y = options.pop("target")
    whole = rows_of(layer, {**options, "target": y})
    for rows in (64, 128, 1000):
        assert_equal(rows_of(layer, {**options, "target": y}, chunk_rows=rows), whole, f"chunks of {rows}")
    for name in ("auto", "fast"):
        assert_equal(rows_of(layer, {**options, "target": y}, name), whole, name)
    leaves = layer.leaves()
    assert_equal(rows_of(leaves, {**options, "target": y}, "auto"), whole, "with a gradient")
    assert_equal(rows_of(layer, {**options, "target": y}, outputs=("loss",)), whole, "the loss alone")

    order = torch.randperm(N)
    mixed = rows_of(Layer(layer.x[order], *layer[1:]), {**options, "target": y[order]})
    assert_equal(mixed, {n: t[order] for n, t in whole.items()}, "in another order")

    ignored = torch.arange(N) % 3 == 1
    some = rows_of(layer, {**options, "target": y.masked_fill(ignored, -100)})
    kept = {n: t[~ignored] for n, t in some.items()}
    assert_equal(kept, {n: t[~ignored] for n, t in whole.items()}, "between ignored rows")
    assert not some["loss"][ignored].any() and (some["argmax"][ignored] == -1).all()


@over_floats
def test_the_reduced_loss_is_that_of_the_rows(dtype):
    """Summed in double, so equal bits for any chunks and plan."""
    layer, options = linear_problem(N, H, C, dtype, ignore=2)
    losses = {}
    for name in ("fast", "lean"):
        for rows in (64, 1000):
            for of in (layer, layer.leaves()):
                losses[name, rows, of.x.requires_grad] = linear(
                    of, options=plan(name, chunk_rows=rows), **options
                )
    first, *others = (found.loss.detach() for found in losses.values())
    for loss in others:
        assert_same_bits(loss, first)


@over_fused
@over_floats
def test_gradients_have_the_same_bits_in_every_run(dtype, name):
    layer, options = linear_problem(N, H, C, dtype, ignore=2)
    runs = []
    for _ in range(2):
        leaves = layer.leaves()
        linear(leaves, options=plan(name, chunk_rows=64), **options).loss.backward()
        runs.append([t.grad for t in leaves])
    for a, b in zip(*runs, strict=True):
        assert_same_bits(a, b)
