# SPDX-License-Identifier: Apache-2.0
"""row_losses on tensors without values: shapes, strides and dtypes are those of the real ops."""

from __future__ import annotations

import pytest
import torch
from cases import LAYOUTS, logits, name
from fakes import MODES, compare, over_sizes, quiet  # noqa: F401  (quiet is a fixture of each test)
from tolerances import DTYPES

from softkern.options import OUTPUTS, RowOptions

ops = torch.ops.softkern
SHAPES = ((7,), (6, 7), (4, 7, 3), (2, 7, 3, 4), (0, 7), (2, 7, 0))
LOSS, LOG_PROB, LSE, ENTROPY, ARGMAX, CORRECT = OUTPUTS.values()
ALL = sum(OUTPUTS.values())

# What the targets are, and the outputs that go with them.
KINDS = {
    "index": (LOSS, ALL, ALL - LOSS, CORRECT),
    "indices": (LOSS, ALL - CORRECT),
    "indices without probabilities": (LOG_PROB, LOG_PROB + ENTROPY + LSE + ARGMAX),
    "probabilities": (LOSS, LOSS + LSE + ENTROPY + ARGMAX),
    "none": (LSE, ENTROPY, ARGMAX, LSE + ENTROPY + ARGMAX),
}


def tensors(kind, x):
    """target, weight, row_weight, num_items, target_probs"""
    shape = x.shape if x.dim() > 1 else (1, *x.shape)
    rows, many = (shape[0], *shape[2:]), (shape[0], 2, *shape[2:])
    if x.dim() == 1:
        rows, many = (), (2,)
    weight, row_weight = torch.ones(7, dtype=x.dtype), torch.ones(rows, dtype=x.dtype)
    items = torch.tensor(5)
    if kind == "index":
        return torch.ones(rows, dtype=torch.int64), weight, row_weight, items, None
    if kind == "indices":
        return torch.ones(many, dtype=torch.int32), weight, row_weight, None, torch.ones(many)
    if kind == "indices without probabilities":
        return torch.ones(many, dtype=torch.int64), None, None, None, None
    if kind == "probabilities":
        return torch.ones_like(x), weight, row_weight, None, None
    return (None,) * 5


def options(outputs, reduction):
    return RowOptions(
        reduction, label_smoothing=0.1, valid_classes=6, softcap=3.0, z_loss=0.1, outputs=outputs
    )


@over_sizes
@pytest.mark.parametrize("reduction", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_every_op(kind, reduction, symbolic):
    """In the order in which autograd calls them."""

    def all_ops(x, outputs):
        given = (*tensors(kind, x), *options(outputs, reduction))
        compare(ops.row_losses, (x, *given), symbolic)
        results = compare(ops.row_losses_forward, (x, *given, True), symbolic)
        compare(ops.row_losses_forward, (x, *given, False), symbolic)
        upstream = [
            torch.ones_like(y) if outputs & bit else None
            for bit, y in zip((LOSS, LOG_PROB, LSE, ENTROPY), results, strict=False)
        ]
        compare(ops.row_losses_backward, (*upstream, x, *given), symbolic)
        for op, before in (
            (ops.row_losses_, ()),
            (ops.row_losses_forward_, ()),
            (ops.row_losses_backward_, upstream),
        ):
            compare(op, (*before, x.contiguous().clone(), *given), symbolic)

    if symbolic:  # dtypes and strides go the same ways
        all_ops(logits(4, 7, 3), KINDS[kind][-1])
        return
    for shape in SHAPES if reduction == 1 else SHAPES[1:3]:
        for outputs in KINDS[kind]:
            all_ops(logits(*shape), outputs)
    for dtype in DTYPES:
        all_ops(logits(4, 7, 3, dtype=dtype), KINDS[kind][-1])
    for layout in ("transposed", "padded", "channels_last", "permuted"):
        all_ops(LAYOUTS[layout](logits(2, 7, 3, 4)), KINDS[kind][0])


@over_sizes
@pytest.mark.parametrize("mode", ("no_grad", "inference"))
@pytest.mark.parametrize("op", (ops.row_losses, ops.row_losses_), ids=str)
def test_modes(op, mode, symbolic):
    assert mode in MODES
    for kind, outputs in KINDS.items():
        for bits in outputs:
            x = logits(6, 7)
            compare(op, (x, *tensors(kind, x), *options(bits, 1)), symbolic, mode)


@over_sizes
@pytest.mark.parametrize("dtype", (torch.float8_e4m3fn, torch.int64), ids=name)
@pytest.mark.parametrize("mode", MODES)
def test_what_aten_computes(mode, dtype, symbolic):
    """Logits of dtypes without kernels."""
    x = torch.ones(6, 7).to(dtype)
    compare(
        ops.row_losses, (x, *[None] * 5, *options(LSE + ENTROPY, 0)._replace(softcap=0.0)), symbolic, mode
    )


def test_arguments_that_equal_their_defaults_may_be_missing():
    """As the dispatcher leaves them out, and with keywords."""
    x, y = logits(6, 7), torch.ones(6, dtype=torch.int64)
    for call in (
        lambda x, y: ops.row_losses(x, y),
        lambda x, y: ops.row_losses(x, y, reduction=0),
        lambda x, y: ops.row_losses(x, outputs=LSE),
        lambda x, y: ops.row_losses(x, y, num_items=torch.ones((), device=x.device), outputs=ALL),
    ):
        compare(call, (x, y), symbolic=False)
