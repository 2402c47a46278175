# SPDX-License-Identifier: Apache-2.0
"""Terms that vanish become 0 without a product that underflows.

Many CPUs need a hundred cycles for an operation with a subnormal result or operand, even if the result is
rounded to 0: rows with masked classes took five times as long. Other CPUs take no longer. So these tests read
the flags of the processor, which tell whether any operation of a call had such a number.
"""

from __future__ import annotations

import ctypes
import platform

import pytest
import torch
from cases import name

import softkern

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the flags are those of x86-64's MXCSR"
)

UNDERFLOW, DENORMAL_OPERAND = 0x10, 0x02
_libm = ctypes.CDLL("libm.so.6")

# Not float16, whose own results are often subnormal; it is computed in float32.
over_dtypes = pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16), ids=name)
SHAPES = {  # shape and dim: lanes, wide lanes, rows that lag, long rows, tails, strided rows
    "65x10": ((65, 10), 1),
    "40x100": ((40, 100), 1),
    "9x300": ((9, 300), 1),
    "3x5003": ((3, 5003), 1),
    "64x20 dim 0": ((64, 20), 0),
    "300x33 dim 0": ((300, 33), 0),
    "2x30x7x7": ((2, 30, 7, 7), 1),
    "3x2500x5": ((3, 2500, 5), 1),
}
over_shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
MASKS = {
    "-inf": float("-inf"),
    "-1e4": -1e4,
    "finfo.min": None,
    "-300": -300.0,
}
over_masks = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


def flags_of(call) -> int:
    _libm.feclearexcept(UNDERFLOW | DENORMAL_OPERAND)
    call()
    return _libm.fetestexcept(UNDERFLOW | DENORMAL_OPERAND)


def masked(shape, dim, dtype, mask, share):
    """Logits of which a share of the classes is masked, in each row the last class is not."""
    x = torch.randn(shape).clamp(-8, 8).to(dtype)
    where = torch.rand(shape) < share
    where.select(dim, -1).fill_(False)
    return x.masked_fill(where, torch.finfo(dtype).min if mask is None else mask).contiguous()


def test_the_flags_see_a_product_that_underflows():
    x = torch.full((16,), 1e-30)
    assert flags_of(lambda: x * 1e-30) & UNDERFLOW
    assert flags_of(lambda: x * x.new_tensor(1e-9)) & UNDERFLOW  # to a subnormal number
    assert not flags_of(lambda: x * 2)


@over_masks
@over_shapes
@over_dtypes
@pytest.mark.parametrize("share", (0.05, 0.5), ids=("5 %", "half"))
def test_masked_classes_underflow_nowhere(share, dtype, shape, mask, isa):
    sizes, dim = shape
    x = masked(sizes, dim, dtype, mask, share)
    upstream = torch.rand_like(x) + 0.5
    target = torch.full([n for i, n in enumerate(sizes) if i != dim], sizes[dim] - 1)
    logits = x.movedim(dim, 1)
    calls = {}
    for op in (softkern.softmax, softkern.log_softmax):
        y = op(x, dim)
        backward = getattr(torch.ops.softkern, f"{op.__name__}_backward")
        calls[op.__name__] = lambda op=op: op(x, dim)
        calls[f"{op.__name__} backward"] = lambda f=backward, y=y: f(upstream, y, dim)
    calls["loss"] = lambda: softkern.cross_entropy(logits, target, reduction="sum")
    calls["loss and gradient"] = lambda: torch.ops.softkern.cross_entropy_forward(
        logits, target, None, 2, -100, 0.0, True
    )
    seen = {what: flags for what, call in calls.items() if (flags := flags_of(call))}
    assert not seen


@over_dtypes
@over_shapes
def test_a_confident_logit_underflows_nowhere(shape, dtype, isa):
    sizes, dim = shape
    x = torch.randn(sizes).clamp(-8, 8).to(dtype)
    x.select(dim, 0).fill_(300.0)
    if dtype == torch.float64:
        x.select(dim, 0).fill_(2000.0)
    assert not flags_of(lambda: softkern.softmax(x, dim))
    assert not flags_of(lambda: softkern.log_softmax(x, dim))


def test_terms_that_are_subnormal_numbers_stay(isa):
    x = torch.tensor([[0.0, -90.0, -100.0, -103.0, -103.9, -104.5, -200.0] + [-300.0] * 40])
    y = softkern.softmax(x, 1)
    assert torch.equal(y, torch.softmax(x.double(), 1).float())
    assert (y[0, :5] > 0).all() and (y[0, 5:] == 0).all()
