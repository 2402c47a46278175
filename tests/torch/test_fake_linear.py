# SPDX-License-Identifier: Apache-2.0
"""linear_cross_entropy on tensors without values: shapes, strides and dtypes are those of the real ops."""

from __future__ import annotations

import pytest
import torch
from fakes import compare, over_sizes, quiet  # noqa: F401  (quiet is a fixture of each test)
from tolerances import DTYPES

from softkern.options import OUTPUTS, PLANS, LinearOptions

ops = torch.ops.softkern
N, H, C = 6, 4, 7
LOSS, LOG_PROB, LSE, ENTROPY, *_ = OUTPUTS.values()
ALL = sum(OUTPUTS.values())
KINDS = {
    "index": (torch.arange(N) % C, None, ALL),
    "indices": (torch.arange(2 * N).reshape(N, 2) % C, torch.ones(N, 2), LOSS + LSE + ENTROPY),
    "probabilities": (torch.ones(N, C), None, LOSS),
    "ignored": (torch.full((N,), -100), None, LOSS),
}


def arguments(kind, dtype=torch.float32, **options):
    """Of the op."""
    target, target_probs, outputs = KINDS[kind]
    target = target.to(dtype) if target.is_floating_point() else target
    layer = [torch.ones(*shape, dtype=dtype) for shape in ((N, H), (C, H), (C,))]
    of_rows = (target, torch.ones(C, dtype=dtype), torch.ones(N), torch.tensor(5), target_probs)
    return (*layer, *of_rows, *LinearOptions(**{"softcap": 3.0, "outputs": outputs, **options}))


def all_ops(args, symbolic):
    """In the order in which autograd calls them."""
    compare(ops.linear_cross_entropy, args, symbolic)
    outputs = LinearOptions(*args[8:]).outputs
    for needs in (0, 1, 6, 7):
        results = compare(ops.linear_cross_entropy_forward, (*args, needs), symbolic)
        if needs:
            upstream = [
                torch.ones_like(y) if outputs & bit else None
                for bit, y in zip((LOSS, LOG_PROB, LSE, ENTROPY), results, strict=False)
            ]
            compare(ops.linear_cross_entropy_backward, (*upstream, results[-1], *args, needs), symbolic)


@over_sizes
@pytest.mark.parametrize("plan", range(len(PLANS) - 1), ids=PLANS[:-1])
@pytest.mark.parametrize("kind", KINDS)
def test_every_op(kind, plan, symbolic):
    for reduction in (1,) if symbolic else (0, 1, 2):
        all_ops(arguments(kind, plan=plan, reduction=reduction), symbolic)


@over_sizes
@pytest.mark.parametrize("wide_loss", (0, 1))
def test_dtypes(wide_loss, symbolic):
    for dtype in DTYPES:
        for outputs in (LOSS, LSE, ALL):
            all_ops(arguments("index", dtype, wide_loss=wide_loss, outputs=outputs), symbolic)


@over_sizes
def test_what_the_kernels_do_not_take(symbolic):
    """Named plans of ATen's, and dtypes of rows that no kernel has."""
    compare(ops.linear_cross_entropy, arguments("index", plan=PLANS.index("reference")), symbolic)
    args = list(arguments("probabilities"))
    args[3] = args[3].double()
    compare(ops.linear_cross_entropy, tuple(args), symbolic)


def test_arguments_that_equal_their_defaults_may_be_missing():
    x, w, _, y, *_ = arguments("index")
    for call in (
        lambda x, w, y: ops.linear_cross_entropy(x, w, None, y),
        lambda x, w, y: ops.linear_cross_entropy(x, w, target=y, reduction=0),
        lambda x, w, y: ops.linear_cross_entropy(x, w, outputs=LSE),
        lambda x, w, y: ops.linear_cross_entropy(x, w, target=y, num_items=torch.ones((), device=x.device)),
    ):
        compare(call, (x, w, y), symbolic=False)
