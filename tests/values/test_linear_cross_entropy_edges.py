# SPDX-License-Identifier: Apache-2.0
"""linear_cross_entropy: logits and sizes that are hard, and how exact the results are for any chunks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from cases import HALVES
from cases import name as id_of
from compare import assert_close
from linear_cases import Layer, check, linear, linear_problem, over_fused, plan, relative_error
from places import SUPPORT
from processes import python
from row_losses_checks import DIFFERENTIABLE

MIXES = (("loss",), DIFFERENTIABLE)
over_floats = pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=id_of)


def by_bias(bias: torch.Tensor, n: int = 6, dtype: torch.dtype = torch.float32, spread: float = 1.0) -> Layer:
    """Logits that are `bias` and multiples of 1/8: exact in float32 for biases that are."""
    g = torch.Generator().manual_seed(2)
    x = torch.randint(-2, 3, (n, 8), generator=g) / 2
    w = spread * torch.randint(-2, 3, (bias.numel(), 8), generator=g) / 4
    return Layer(x.to(dtype), w.to(dtype), bias.to(dtype))


@over_fused
@over_floats
def test_a_prime_number_of_classes_and_the_last_of_them(dtype, name):
    layer, _ = linear_problem(70, 24, 1009, dtype)
    check(layer, mixes=MIXES, target=torch.full((70,), 1008), options=plan(name))


@over_fused
@over_floats
def test_logits_with_a_deviation_of_40(dtype, name):
    layer, options = linear_problem(70, 24, 97, dtype)
    layer = Layer(layer.x * 20, layer.w, layer.b)
    z = layer.x.double() @ layer.w.double().T
    assert 36 < z.std() < 44
    check(layer, mixes=MIXES, options=plan(name), **options)


@over_fused
def test_a_bias_of_1e4(name):
    """One class, all of them, and with the other sign: the digits of the differences stay."""
    y = torch.arange(6) * 3
    for bias in (torch.tensor([1e4] + [0.0] * 20), torch.full((21,), 1e4), torch.full((21,), -1e4)):
        layer = by_bias(bias)
        check(layer, mixes=MIXES, target=y, options=plan(name))
        exact = F.cross_entropy(layer.x.double() @ layer.w.double().T + layer.b.double(), y, reduction="none")
        got = linear(layer, target=y, reduction="none", options=plan(name)).loss
        torch.testing.assert_close(got.double(), exact, rtol=5e-7, atol=0)


@over_fused
@pytest.mark.parametrize("softcap", (None, 3.0))
def test_columns_whose_bias_is_minus_infinity(softcap, name):
    """They are no classes, under a softcap neither; the loss of a row whose target they are is inf."""
    bias = (torch.arange(21) - 10) / 8
    bias[[0, 7, 20]] = -math.inf
    layer = by_bias(bias, n=70)
    y = torch.arange(70) % 6 + 1
    check(layer, mixes=MIXES, target=y, softcap=softcap, options=plan(name))
    keep = bias.isfinite()
    fewer = Layer(layer.x, layer.w[keep], layer.b[keep]).leaves()
    leaves = layer.leaves()
    for of, target in ((leaves, y), (fewer, y - 1)):
        linear(of, target=target, softcap=softcap, options=plan(name)).loss.backward()
    torch.testing.assert_close(leaves.x.grad, fewer.x.grad, rtol=1e-5, atol=1e-8)
    assert torch.equal(leaves.w.grad[~keep], torch.zeros(3, 8))
    loss = linear(layer, target=torch.full((70,), 7), softcap=softcap, options=plan(name)).loss
    assert loss == math.inf


@over_fused
@pytest.mark.parametrize("classes", (3, 19, 131, 1001))
def test_a_softcap_of_any_number_of_classes(classes, name):
    """No multiple of any lanes: what a cap makes of the lanes behind the last class must not count."""
    layer, options = linear_problem(33, 16, classes, softcap=2.0, padding=min(2, classes - 1))
    check(layer, mixes=MIXES, options=plan(name), **options)


@over_fused
@pytest.mark.parametrize("classes", (5, 19, 131))
def test_all_logits_are_very_negative(classes, name):
    """A maximum that began at 0, or a lane behind the last class that is 0, would win."""
    layer = by_bias(torch.full((classes,), -3e4), n=20)
    y = torch.arange(20) % classes
    check(layer, mixes=MIXES, target=y, options=plan(name))
    found = linear(layer, ("loss", "log_prob"), target=y, options=plan(name))
    assert (found.log_prob < 0).all()


@over_fused
@over_floats
@pytest.mark.parametrize("lead", (8.0, 16.0, 24.0))
def test_the_digits_of_confident_rows(lead, dtype, name):
    """p_y - 1 of p_y = 1 - exp(-lead): no digit of it is left in 1 - p_y or in a 16-bit p_y."""
    bias = torch.zeros(5)
    bias[3] = lead
    layer = Layer(torch.zeros(1, 2).to(dtype), torch.ones(5, 2).to(dtype), bias.to(dtype)).leaves()
    loss = linear(layer, target=torch.tensor([3]), reduction="none", options=plan(name)).loss
    loss.sum().backward()
    rest = 4 * math.exp(-lead)
    u = torch.finfo(dtype).eps
    torch.testing.assert_close(loss.double(), torch.tensor([math.log1p(rest)]).double(), rtol=4 * u, atol=0)
    dz = torch.full((5,), rest / 4 / (1 + rest)).double()
    dz[3] = -rest / (1 + rest)
    torch.testing.assert_close(layer.b.grad.double(), dz, rtol=8 * u, atol=0)


@over_fused
def test_a_float16_mean_of_65536_rows(name):
    """The sum of the losses exceeds float16, and 1/N times a gradient is below its normal numbers."""
    n = 65536
    layer, options = linear_problem(n, 4, 5, torch.float16)
    leaves = layer.leaves()
    loss = linear(leaves, options=plan(name), **options).loss
    loss.backward()
    wide = Layer(*(t.detach().double().requires_grad_() for t in layer))
    exact = F.cross_entropy(F.linear(*wide), options["target"])
    exact.backward()
    assert exact * n > 65504
    assert_close(loss, exact.detach(), torch.float16)
    assert relative_error(leaves.w.grad, wide.w.grad) < 2**-11
    assert relative_error(leaves.b.grad, wide.b.grad) < 2**-11
    # dX is a float16 number of about 2^-18, below the normal ones: half a unit there.
    assert (leaves.x.grad.double() - wide.x.grad).abs().max() <= 2**-25 * (1 + 1e-3)


CHUNKS = (1024, 256, 64)


def problem_of_chunks(dtype, n=1024, h=64, c=500):
    g = torch.Generator().manual_seed(5)
    x, w = torch.randn(n, h, generator=g), torch.randn(c, h, generator=g) / 4
    y = torch.randint(0, c, (n,), generator=g)
    return Layer(x.to(dtype), w.to(dtype), None), y


def gradients_of(layer: Layer, y, options):
    leaves = layer.leaves()
    with torch.autocast("cpu", dtype=layer.x.dtype, enabled=layer.x.dtype in HALVES):  # a float32 loss
        loss = linear(leaves, target=y, options=options).loss
    loss.backward()
    return loss.detach(), leaves.x.grad, leaves.w.grad


def exact_gradients(layer: Layer, y):
    wide = layer.double().leaves()
    loss = F.cross_entropy(wide.x @ wide.w.T, y)
    loss.backward()
    return loss.detach(), wide.x.grad, wide.w.grad


@over_fused
@pytest.mark.parametrize("dtype", HALVES, ids=id_of)
def test_16_bit_gradients_are_as_exact_as_one_rounding_makes_them_for_any_chunks(dtype, name):
    """At most 1.1 times the error of float32 logits, one rounding of dz and one of each result."""
    layer, y = problem_of_chunks(dtype)
    exact = exact_gradients(layer, y)
    z = (layer.x.float() @ layer.w.float().T).requires_grad_()
    F.cross_entropy(z, y).backward()
    dz = z.grad if dtype == torch.float16 else z.grad.to(dtype).float()
    of_x, of_w = ((a.double() @ b.double()).to(dtype) for a, b in ((dz, layer.w), (dz.T, layer.x)))
    for rows in CHUNKS:
        loss, dx, dw = gradients_of(layer, y, plan(name, chunk_rows=rows))
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.double(), exact[0], rtol=2e-7, atol=0)
        for got, model, want in ((dx, of_x, exact[1]), (dw, of_w, exact[2])):
            assert got.dtype == dtype
            assert relative_error(got, want) <= 1.1 * relative_error(model, want), rows


@over_fused
def test_float32_errors_do_not_grow_with_the_chunks(name):
    layer, y = problem_of_chunks(torch.float32)
    exact = exact_gradients(layer, y)
    first, *others = (gradients_of(layer, y, plan(name, chunk_rows=rows)) for rows in CHUNKS)
    for one, *more, want in zip(first, *others, exact, strict=True):
        least = torch.finfo(torch.float32).eps / 2
        for got in more:
            assert relative_error(got, want) <= 1.1 * relative_error(one, want) + least
        assert relative_error(one, want) < 1e-6


def test_products_of_16_bit_matrices_into_float32():
    """CUDA's way through the driver, with ops for the CPU; float16's dz is scaled by a power of two."""
    result = python(str(SUPPORT / "mixed_products.py"))
    assert result.returncode == 0, result.stderr
    bfloat16, float16 = result.stdout.splitlines()
    assert "'mm'" in bfloat16 and "'addmm'" in bfloat16 and "'mm'" in float16
