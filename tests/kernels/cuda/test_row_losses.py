# SPDX-License-Identifier: Apache-2.0
"""row_losses by the CUDA kernels, on a GPU or in the emulator: every form and way of the kernel, with each
option. Threads, layouts and what is not finite: test_row_losses_inputs.py."""

from __future__ import annotations

import itertools

import pytest
import torch
from compare import assert_close
from cuda_checks import (
    BLOCK,
    CLUSTER,
    DEVICE,
    DTYPES,
    LANES,
    TILE,
    TWICE,
    by_kernels,
    with_clusters,
)
from cuda_row_checks import check, forward, problem
from row_losses_cases import ALL, ALONE, over_targets
from row_losses_checks import DIFFERENTIABLE, in_float64
from row_losses_scales import scales

from softkern import reference

pytestmark = by_kernels

# num_items is not the kernel's.
CASES = {n: kwargs for n, kwargs in ALONE.items() if n != "num_items"}
EVERY = {k: v for k, v in ALL.items() if k not in ("num_items", "padding")}
# With label smoothing or several indices, the kernel has another form. So it has with the entropy, or with
# logits that are transformed, and without either.
MIXES = tuple(m for n in range(1, 5) for m in itertools.combinations(DIFFERENTIABLE, n))
WITHOUT = ("entropy",)

COLUMNS, COLUMNS_TWICE = "columns, kept", "columns, read twice"
# Each way, with shapes of logits, and how many of their classes are not valid.
WAYS = (
    (TILE, (3, 1), 0),
    (TILE, (3, 9), 2),
    (TILE, (2, 7, 3), 0),
    (LANES, (3, 33), 0),
    (LANES, (2, 244), 4),
    (BLOCK, (2, 1100), 0),
    (BLOCK, (2, 1103), 3),
    (COLUMNS, (2, 40, 3), 0),
    (COLUMNS_TWICE, (1, 710, 2), 1),
)


@over_targets
@pytest.mark.parametrize("case", CASES)
def test_each_option_alone(case, target):
    for shape in ((3, 10), (3, 45), (2, 520)):
        x, options = problem(shape, target=target, **CASES[case])
        check(x, **options)
        check(x, (DIFFERENTIABLE[:3],), without=WITHOUT, **options)


@over_targets
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("expected", "shape", "padding"), WAYS, ids=str)
def test_every_way_takes_every_option(expected, shape, padding, dtype, target):
    x, options = problem(shape, dtype, target=target, padding=padding, **EVERY)
    assert check(x, **options) == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("expected", "shape", "padding"), WAYS, ids=str)
def test_every_way_without_options(expected, shape, padding, dtype):
    x, options = problem(shape, dtype, padding=padding, weight=True, z_loss=0.1)
    assert check(x, (DIFFERENTIABLE[:3],), without=WITHOUT, **options) == expected


LONG = {  # classes: the ways with and without clusters
    4099: (BLOCK, BLOCK),
    40000: (CLUSTER, TWICE),
}


@over_targets
@pytest.mark.parametrize("there", (True, False), ids=("clusters", "no clusters"))
@pytest.mark.parametrize("classes", LONG)
def test_long_rows(monkeypatch, classes, there, target):
    with_clusters(monkeypatch, there)
    x, options = problem((1, classes), target=target, softcap=8.0, z_loss=1e-4)
    assert check(x, **options) == LONG[classes][not there]


@pytest.mark.parametrize("there", (True, False), ids=("clusters", "no clusters"))
@pytest.mark.parametrize("classes", LONG)
@pytest.mark.parametrize("off", (0, 1), ids=("aligned", "unaligned"))
def test_long_rows_of_other_forms_and_16_bits(monkeypatch, classes, there, off):
    with_clusters(monkeypatch, there)
    for dtype in (torch.float32, torch.bfloat16):
        x, options = problem((1, classes + off), dtype, row_weight=True)
        options["row_weight"] += 1
        ran = check(x, (DIFFERENTIABLE[:3],), without=WITHOUT, **options)
        assert ran == LONG[classes][not there] or dtype == torch.bfloat16
    x, options = problem((1, classes + off), torch.bfloat16, softcap=8.0)
    check(x, **options)


@over_targets
@pytest.mark.parametrize("shape", ((3, 10), (3, 45), (2, 40, 3)), ids=str)
def test_any_mix_of_upstream_gradients(shape, target):
    x, options = problem(shape, target=target, **EVERY)
    check(x, MIXES, **options)
    x, options = problem(shape, target=target)
    check(x, MIXES, **options)


@pytest.mark.parametrize("k", (0, 1, 2, 40))
@pytest.mark.parametrize("shape", ((3, 10), (3, 45), (2, 1000), (2, 40, 3)), ids=str)
def test_any_number_of_indices_a_row(shape, k):
    """Fewer and more than a row has threads; several of them repeat."""
    for kwargs in ({}, {"weight": True, "smoothing": 0.1}, {"softcap": 3.0}):
        x, options = problem(shape, target="indices", k=k, **kwargs)
        options["target"] //= 3
        without = ("log_prob",) if k == 0 else ()
        check(x, without=without, **options)
        del options["target_probs"]
        check(x, without=without, **options)


@pytest.mark.parametrize("dtype", (torch.int64, torch.int32, torch.uint8), ids=str)
def test_index_dtypes(dtype):
    for target, ignore in (("index", 2), ("index", 255), ("indices", None)):
        x, options = problem((6, 40), target=target, ignore=ignore)
        options["target"] = options["target"].to(dtype)
        check(x, **options)


@over_targets
def test_means_on_the_device(target):
    """The divisor of a mean and its factors stay on the device."""
    for kwargs in ({}, {"num_items": torch.tensor(3, device=DEVICE)}):
        x, options = problem((6, 40), target=target, row_weight=True, weight=True, **kwargs)
        options["reduction"] = "mean"
        found, dx = forward(x, target != "none", **options)
        wide, given = in_float64(x, options)
        expected = reference.row_losses(wide, **given)
        scale, _ = scales(wide, {}, **given)
        if target != "none":
            assert_close(found.loss, expected.loss, x.dtype, scale=scale.loss)
            assert bool(dx.any())
        check(x, **options)
