# SPDX-License-Identifier: Apache-2.0
"""row_losses: layouts, upstream gradients, dtypes of what stands beside the logits, several indices a row."""

from __future__ import annotations

import pytest
import torch
from cases import HALVES, LAYOUTS, UPSTREAM, logits, name
from cross_entropy_cases import over_reductions
from row_losses_cases import ALL, over_targets, row_problem
from row_losses_checks import DIFFERENTIABLE, MIXES, check, check_gradient, possible, row_losses
from tolerances import DTYPES


@over_targets
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", ((33,), (6, 33), (3, 17, 5), (2, 6, 5, 7)), ids=name)
def test_any_layout(shape, layout, target):
    x, options = row_problem(shape, target=target, smoothing=0.1, temperature=0.8, row_weight=True)
    x = LAYOUTS[layout](x)
    if target == "probs":
        options["target"] = LAYOUTS[layout](options["target"])
    elif layout not in ("expanded_classes", "channels_last") and len(shape) > 1:
        for n in set(options) & {"target", "target_probs", "row_weight"}:
            options[n] = LAYOUTS[layout](options[n])
    check(x, mixes=MIXES[:2], **options, reduction="none")


@over_targets
@pytest.mark.parametrize("layout", ("padded", "transposed", "every_other", "expanded"))
def test_any_layout_of_the_upstream_gradients(layout, target):
    x, options = row_problem((4, 17, 6), target=target, **ALL)
    leaf = x.requires_grad_()
    found = row_losses(leaf, possible(x, **options), **options, reduction="none")
    grads = {n: getattr(found, n) for n in DIFFERENTIABLE if getattr(found, n) is not None}
    grads = {n: LAYOUTS[layout](logits(*t.shape, seed=9)) for n, t in grads.items()}
    check_gradient(found, leaf, grads, **options, reduction="none")


@over_targets
@over_reductions
@pytest.mark.parametrize("kind", (*UPSTREAM, "zero"))
def test_any_upstream_gradient(kind, reduction, target):
    """Of any mix of the results: ones, of mixed signs, of stride 0, and zero."""
    for shape in ((9, 100), (3, 31, 4)):
        x, options = row_problem(shape, target=target, **ALL)
        dx = check(x, kind=kind, **options, reduction=reduction)
        assert bool(dx.any()) == (kind != "zero")


def test_results_without_an_upstream_gradient():
    """None of them; those that have none; and a second backward, which gets the same bits."""
    x, options = row_problem((5, 17), z_loss=0.1)
    leaf = x.requires_grad_()
    found = row_losses(leaf, DIFFERENTIABLE, **options)
    for n in DIFFERENTIABLE:
        result = getattr(found, n)
        grads = {n: torch.ones_like(result)}
        first = check_gradient(found, leaf, grads, **options)
        (second,) = torch.autograd.grad(result, leaf, torch.ones_like(result), retain_graph=True)
        assert torch.equal(first, second)
    (nothing,) = torch.autograd.grad(leaf * 0 + 1, leaf, torch.ones_like(leaf))
    assert not nothing.any()


@pytest.mark.parametrize("dtype", (torch.uint8, torch.int32, torch.int64), ids=name)
@pytest.mark.parametrize("target", ("index", "indices"))
def test_any_dtype_of_the_indices(target, dtype):
    for ignore in (255, 3) if target == "index" else (-100,):
        x, options = row_problem((30, 9), target=target, **({"ignore": ignore} if ignore > 0 else {}))
        options["target"] = options["target"].to(dtype)
        check(x, mixes=MIXES[:2], **options)


@pytest.mark.parametrize("k", (1, 2, 8))
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_several_indices_a_row_are_class_probabilities(dtype, k):
    """Repeated indices add up; to the class probabilities that they stand for."""
    for options in ({}, {"weight": True, "smoothing": 0.1, "row_weight": True, "padding": 3, "z_loss": 0.1}):
        x, given = row_problem((6, 40, 3), dtype, target="indices", k=k, **options)
        check(x, **given)
        dense = {
            **given,
            "target": torch.zeros_like(x).scatter_add(1, given["target"], given["target_probs"]),
        }
        del dense["target_probs"]
        results = []
        for arguments in (given, dense):
            leaf = x.clone().requires_grad_()
            found = row_losses(leaf, ("loss", "lse"), **arguments)
            results.append((found.loss.detach(), *torch.autograd.grad((found.loss, found.lse.sum()), leaf)))
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(*results, rtol=4 * eps, atol=4 * eps)


def test_one_index_and_a_column_of_one_index_agree():
    x, options = row_problem((6, 40), target="index")
    one = row_losses(x, ("loss", "log_prob", "lse"), **options)
    options["target"] = options["target"].unsqueeze(1)
    column = row_losses(x, ("loss", "log_prob", "lse"), **options, target_probs=torch.ones(6, 1))
    torch.testing.assert_close(column.loss, one.loss)
    assert torch.equal(column.log_prob.squeeze(1), one.log_prob) and torch.equal(column.lse, one.lse)


@pytest.mark.parametrize("dtype", HALVES, ids=name)
@over_targets
def test_numbers_of_rows_in_float32_beside_16_bit_logits(target, dtype):
    """What float32 has beyond 16 bits counts."""
    x, options = row_problem((6, 40), dtype, target=target, row_weight=True)
    options["row_weight"] = options["row_weight"].float() + 2.0**-20
    if target == "indices":
        options["target_probs"] = options["target_probs"].float() + 2.0**-20
    check(x, **options, reduction="sum")


@pytest.mark.parametrize("dtype", (torch.int64, torch.int32, torch.float64, torch.float32, torch.bfloat16))
@over_targets
def test_num_items_of_any_dtype(target, dtype):
    x, options = row_problem((6, 10), target=target, row_weight=True, ignore=2)
    check(x, **options, num_items=torch.tensor(4, dtype=dtype))
    for reduction in ("none", "sum"):  # which don't use it
        check(x, mixes=MIXES[:1], **options, num_items=torch.tensor(4, dtype=dtype), reduction=reduction)
