# SPDX-License-Identifier: Apache-2.0
"""The ops of rows whose classes are spread over tensors, in the dispatcher: schemas, fakes, refusals."""

from __future__ import annotations

import pytest
import torch
from cases import logits, name
from fakes import compare, over_sizes, quiet  # noqa: F401  (quiet is a fixture of each test)
from row_losses_cases import ALL, over_targets, row_problem
from row_losses_checks import DIFFERENTIABLE, arguments, possible
from tolerances import DTYPES

ops = torch.ops.softkern


def problem(target, reduction="mean", **more):
    """Logits without NaN, the arguments behind them, and upstream gradients for the last op."""
    x, options = row_problem((6, 20), target=target, **{**ALL, **more})
    options = {k: v.nan_to_num(0.1) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    x, names = x.nan_to_num(0.5), possible(x, **options)
    args = arguments(x, names, **options, reduction=reduction)
    shape = () if reduction != "none" else (6,)
    shapes = {"loss": shape, "log_prob": options.get("target", x[:, 0]).shape}
    grads = [logits(*shapes.get(n, (6,)), seed=7) if n in names else None for n in DIFFERENTIABLE]
    return x, args, grads


def in_order(run, x, args, grads):
    """The four ops as softkern.parallel calls them: run(op, arguments)."""
    parts, hot_z, _ = run(ops.row_parts, (x, *args, 0, 8))
    run(ops.row_parts_merge, (x, parts))
    *_, whole = run(ops.row_parts_results, (x, parts, hot_z, *args))
    run(ops.row_parts_backward, (*grads, x, whole, *args, 0))


@over_sizes
@over_targets
@pytest.mark.parametrize("reduction", ("none", "mean"))
def test_fakes_have_the_shapes_of_the_ops(reduction, target, symbolic):
    x, args, grads = problem(target, reduction)
    in_order(lambda op, given: compare(op, given, symbolic), x, args, grads)


def test_fakes_of_other_sizes_and_dtypes():
    run = lambda op, given: compare(op, given, symbolic=False)  # noqa: E731
    for dtype in DTYPES:
        x, args, grads = problem("index")
        weight, row_weight = (t.to(dtype) for t in args[1:3])
        in_order(run, x.to(dtype), (args[0], weight, row_weight, *args[3:]), grads)
    x, args, _ = problem("index")
    for classes, width in ((20, 20), (20, 1), (20, 7), (20, 30), (0, 5)):
        run(ops.row_parts, (x[:, :classes], *args, 0, width))
    for outputs in (1, 4, 16):
        *options, _ = args
        parts, hot_z, _ = run(ops.row_parts, (x, *options, outputs, 0, 8))
        run(ops.row_parts_results, (x, parts, hot_z, *options, outputs))


@over_targets
def test_opcheck(target):
    def run(op, given):
        torch.library.opcheck(op.default, given)
        return op(*given)

    in_order(run, *problem(target))


@pytest.mark.parametrize(
    "bad",
    (
        {"target": torch.zeros(5).long()},
        {"target": torch.zeros(6, 20)[:, :3]},
        {"row_weight": torch.ones(5)},
        {"weight": torch.ones(19)},
        {"weight": torch.ones(20).double()},
        {"target_probs": torch.ones(6, 2)},
    ),
    ids=name,
)
def test_arguments_that_the_kernels_do_not_take(bad):
    x, y = logits(6, 20), torch.zeros(6).long()
    with pytest.raises(RuntimeError, match=r"call softkern.parallel.cross_entropy"):
        ops.row_parts(x, *arguments(x, ("loss",), **{"target": y, "valid_classes": 20, **bad}), 0, 8)
    with pytest.raises(RuntimeError, match=r"expected \(N, C\) logits and the number of valid classes"):
        ops.row_parts(x[0], *arguments(x, ("loss",), target=y, valid_classes=20), 0, 8)
    with pytest.raises(RuntimeError, match=r"expected \(N, C\) logits and the number of valid classes"):
        ops.row_parts(x, *arguments(x, ("loss",), target=y), 0, 8)
