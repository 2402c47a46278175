# SPDX-License-Identifier: Apache-2.0
"""Upstream gradients without their own memory, from sums, means and products with smaller tensors.

They give the bits of the same numbers in a separate tensor.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import logits, name
from compare import assert_same_bits
from tolerances import DTYPES

import softkern

over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=name)
over_ops = pytest.mark.parametrize("op", ("softmax", "log_softmax"))
SHAPES = (
    ((40, 10), 1),
    ((37, 100), 1),
    ((9, 300), 1),
    ((3, 5003), 1),
    ((2, 1, 300), 2),
    ((100, 20), 0),
    ((33, 40), 0),
    ((3000, 20), 0),
    ((5, 10, 3, 3), 1),
    ((5, 100, 3, 3), 1),
    ((3, 70, 5), 1),
    ((2, 4096, 8), 1),
    ((2, 4096, 3), 1),
    ((2, 21, 6, 7), 1),
    ((1, 128256), 1),
)
over_shapes = pytest.mark.parametrize(("shape", "dim"), SHAPES, ids=name)


def upstream_gradients(shape, dim, dtype):
    """What autograd hands to the backward of (y * of smaller tensors).sum() and the like."""
    one = torch.tensor(0.3, dtype=dtype)
    yield "sum", one.expand(shape)
    for kept in range(len(shape)):
        smaller = [n if i == kept else 1 for i, n in enumerate(shape)]
        yield f"along {kept}", logits(*smaller, dtype=dtype, seed=3).expand(shape)
        larger = [1 if i == kept else n for i, n in enumerate(shape)]
        yield f"but {kept}", logits(*larger, dtype=dtype, seed=4).expand(shape)


@over_dtypes
@over_ops
@over_shapes
def test_bits_are_those_of_a_tensor_of_its_own(shape, dim, op, dtype, isa):
    y = getattr(softkern, op)(logits(*shape, dtype=dtype), dim)
    backward = getattr(torch.ops.softkern, f"{op}_backward")
    for what, g in upstream_gradients(shape, dim, dtype):
        assert_same_bits(backward(g, y, dim), backward(g.contiguous(), y, dim), what)


@over_ops
@over_shapes
def test_values_of_broadcast_gradients(shape, dim, op):
    x = logits(*shape)
    for what, g in upstream_gradients(shape, dim, torch.float32):
        results = []
        for module, t in ((softkern, torch.float32), (F, torch.float64)):
            leaf = x.to(t).requires_grad_()
            y = getattr(module, op)(leaf, dim)
            results.append(torch.autograd.grad(y, leaf, g.to(t).contiguous() if t == torch.float64 else g)[0])
        size = g.abs().max().item()  # differences of such numbers
        torch.testing.assert_close(
            results[0].double(), results[1], rtol=1e-5, atol=2e-6 * size, msg=lambda m, w=what: f"{w}: {m}"
        )


@over_ops
def test_nothing_of_the_tensors_size_is_made_of_a_broadcast_gradient(op):
    from peak import peak_of

    x = logits(256, 1000).requires_grad_()
    y = getattr(softkern, op)(x, 1)
    w = logits(256)
    for loss in (y.sum(), (y.sum(-1) * w).sum()):  # a mean makes such a tensor itself
        most, _ = peak_of(lambda loss=loss: torch.autograd.grad(loss, x, retain_graph=True))
        assert most < 1.1 * x.nbytes
