# SPDX-License-Identifier: Apache-2.0
"""Mistakes that fused linear losses have shipped, each with a test that sees it.

Not here: gradients that are added up by atomics, and TF32 (of GPUs alone); graph breaks, empty micro-batches
under DistributedDataParallel, and sharded weights (tests/torch). Softcaps, confident rows, very negative
logits and a bias of 1e4 have more cases in test_linear_cross_entropy_edges.py.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from compare import assert_same_bits
from linear_cases import Layer, linear, linear_problem, over_fused, plan, relative_error
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

bf16 = torch.bfloat16


class Ops(TorchDispatchMode):
    """softkern's ops, with their arguments and results."""

    def __enter__(self):
        self.calls = []
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        if func.namespace == "softkern":
            self.calls.append((func.name().removeprefix("softkern::"), args, result))
        return result


def wide_and_exact(layer: Layer, y, **kwargs):
    """float64 leaves with the gradients of the same formula."""
    wide = layer.double().leaves()
    z = wide.x @ wide.w.T if wide.b is None else F.linear(*wide)
    loss = F.cross_entropy(z, y, **kwargs)
    loss.sum().backward()
    return wide, loss.detach()


@over_fused
def test_trap_01_dw_rounded_per_chunk(name):
    """1,024 rows that all pull at one class: each chunk's share rounded to bfloat16 would be seen."""
    n, h = 1024, 8
    layer = Layer((torch.rand(n, h) + 0.5).to(bf16), torch.randn(40, h).to(bf16), None)
    y = torch.zeros(n, dtype=torch.long)
    wide, _ = wide_and_exact(layer, y)
    once = relative_error(wide.w.grad.to(bf16), wide.w.grad)
    for rows in (64, 1024):
        leaves = layer.leaves()
        linear(leaves, target=y, options=plan(name, chunk_rows=rows)).loss.backward()
        assert relative_error(leaves.w.grad, wide.w.grad) < 1.1 * once


@over_fused
def test_trap_02_logits_rounded_to_16_bits_before_the_softmax(name):
    """With a deviation of 40, bfloat16 logits are off by 0.1; losses and statistics have float32's digits.

    Also forward and backward from other logits: the gradients of the bias of a row sum to 0.
    """
    layer, options = linear_problem(70, 24, 97, bf16)
    layer = Layer(layer.x * 20, *layer[1:])
    leaves = layer.leaves()
    found = linear(leaves, ("loss", "log_prob"), reduction="none", options=plan(name), **options)
    wide, exact = wide_and_exact(layer, options["target"], reduction="none")
    torch.testing.assert_close(-found.log_prob.double(), exact, rtol=1e-6, atol=1e-5)
    found.loss.sum().backward()
    assert relative_error(leaves.b.grad, wide.b.grad) < 2**-9
    assert relative_error(leaves.x.grad, wide.x.grad) < 2**-8


@over_fused
def test_trap_03_the_true_class_gradient_in_16_bits(name):
    """p_y = 1 - 2e-6 is 1 in bfloat16: p_y - 1 must be formed before it is rounded."""
    bias = torch.tensor([14.0, 0.0, 0.0]).to(bf16)
    leaves = Layer(torch.ones(1, 2).to(bf16), torch.zeros(3, 2).to(bf16), bias).leaves()
    linear(leaves, target=torch.tensor([0]), options=plan(name)).loss.backward()
    rest = 2 * math.exp(-14)
    expected = torch.tensor([-rest, rest / 2, rest / 2]) / (1 + rest)
    torch.testing.assert_close(leaves.b.grad.float(), expected, rtol=2**-8, atol=0)
    torch.testing.assert_close(leaves.w.grad[:, 0].float(), expected, rtol=2**-8, atol=0)


@over_fused
def test_trap_04_small_gradients_filtered(name):
    """9,000 classes of probability 1.1e-4, below 2^-12: every one of them has its gradient."""
    layer = Layer(torch.ones(3, 2).to(bf16), torch.zeros(9000, 2).to(bf16), torch.zeros(9000).to(bf16))
    leaves = layer.leaves()
    y = torch.full((3,), 8999)
    linear(leaves, target=y, reduction="sum", options=plan(name)).loss.backward()
    torch.testing.assert_close(leaves.b.grad[:-1].float(), torch.full((8999,), 3 / 9000), rtol=2**-8, atol=0)
    torch.testing.assert_close(
        leaves.w.grad[:-1].float(), torch.full((8999, 2), 3 / 9000), rtol=2**-7, atol=0
    )


@over_fused
def test_trap_05_a_softcap_that_brings_padding_back(name):
    """As -inf in the bias and as valid_classes: a capped -inf would be -2."""
    layer, _ = linear_problem(6, 8, 19)
    y = torch.arange(6)
    few = Layer(layer.x, layer.w[:17], layer.b[:17])
    want = linear(few, ("loss", "lse", "entropy"), target=y, softcap=2.0, options=plan(name))
    masked = layer.b.clone()
    masked[17:] = -math.inf
    for of, options in ((Layer(layer.x, layer.w, masked), {}), (layer, {"valid_classes": 17})):
        leaves = of.leaves()
        got = linear(leaves, ("loss", "lse", "entropy"), target=y, softcap=2.0, options=plan(name), **options)
        for a, b in zip(got[:4], want[:4], strict=True):
            assert a is b is None or torch.allclose(a, b, rtol=1e-6)
        got.loss.backward()
        assert torch.equal(leaves.w.grad[17:], torch.zeros(2, 8))


@over_fused
def test_trap_06_a_maximum_that_does_not_begin_at_minus_infinity(name):
    layer = Layer(torch.ones(3, 1), torch.full((37, 1), -200.0), None).leaves()
    found = linear(layer, ("loss", "log_prob"), target=torch.tensor([0, 17, 36]), options=plan(name))
    torch.testing.assert_close(found.log_prob.detach(), torch.full((3,), -math.log(37)), rtol=1e-6, atol=0)
    found.loss.backward()
    torch.testing.assert_close(layer.w.grad[1], torch.tensor([1 / 37]), rtol=1e-5, atol=0)


@over_fused
def test_trap_07_lse_less_the_logit(name):
    """The loss is (m - z_y) + log d: of lse = 10,000.0003 and z_y no digit is left."""
    layer = Layer(torch.ones(1, 1), torch.tensor([[1e4], [9992.0]]), None)
    loss = linear(layer, target=torch.tensor([0]), options=plan(name)).loss
    torch.testing.assert_close(loss.double(), torch.tensor(-8.0).double().exp().log1p(), rtol=1e-6, atol=0)


@over_fused
def test_trap_08_none_scaled_by_one_number(name):
    """Each row has its own upstream gradient, one of them 0 and one negative."""
    layer, options = linear_problem(6, 8, 19)
    g = torch.tensor([0.0, -2, 1, 3, 0.5, -1])
    leaves = layer.leaves()
    linear(leaves, reduction="none", options=plan(name), **options).loss.backward(g)
    wide = layer.double().leaves()
    (F.cross_entropy(F.linear(*wide), options["target"], reduction="none") * g).sum().backward()
    for a, b in zip(leaves, wide, strict=True):
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-5, atol=1e-6)


@over_fused
def test_trap_09_entropy_without_its_gradient(name):
    layer, options = linear_problem(6, 8, 19)
    leaves = layer.leaves()
    (3 * linear(leaves, ("loss", "entropy"), options=plan(name), **options).entropy).sum().backward()
    wide = layer.double().leaves()
    log_p = F.linear(*wide).log_softmax(1)
    (-3 * (log_p.exp() * log_p).sum()).backward()
    for a, b in zip(leaves, wide, strict=True):
        assert b.grad.abs().max() > 1e-2
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-5, atol=1e-5)


@over_fused
def test_trap_10_no_dw_for_an_input_without_a_gradient(name):
    layer, options = linear_problem(6, 8, 19)
    every, head = layer.leaves(), Layer(layer.x, *layer.leaves()[1:])
    for of in (every, head):
        linear(of, options=plan(name), **options).loss.backward()
    assert_same_bits(head.w.grad, every.w.grad)
    assert_same_bits(head.b.grad, every.b.grad)


@over_fused
def test_trap_11_saved_gradients_scaled_in_place(name):
    """A graph that is kept gives the same again, whatever has become of what it gave before."""
    layer, options = linear_problem(6, 8, 19)
    leaves = layer.leaves()
    loss = linear(leaves, options=plan(name), **options).loss
    first = torch.autograd.grad(loss * 3, leaves, retain_graph=True)
    kept = [t.clone() for t in first]
    for t in first:
        t.mul_(7)
    again = torch.autograd.grad(loss * 3, leaves, retain_graph=True)
    last = torch.autograd.grad(loss * 3, leaves)
    for a, b, c in zip(kept, again, last, strict=True):
        assert_same_bits(b, a), assert_same_bits(c, a)


@over_fused
@pytest.mark.parametrize("changed", range(3), ids=Layer._fields)
def test_trap_11_an_input_that_was_changed_after_the_forward(changed, name):
    layer, options = linear_problem(6, 8, 19)
    leaves = layer.leaves()
    loss = linear(leaves, options=plan(name), **options).loss
    with torch.no_grad():
        leaves[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@over_fused
def test_trap_12_dw_of_a_frozen_head(name):
    """It is not computed: nothing of its size is a result of forward or backward."""
    layer, options = linear_problem(70, 8, 19)
    with Ops() as ops:
        linear(
            Layer(layer.x.clone().requires_grad_(), *layer[1:]), options=plan(name), **options
        ).loss.backward()
    names = [op for op, _, _ in ops.calls]
    assert names[0] == "linear_cross_entropy_forward"
    results = [t for _, _, result in ops.calls for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
    assert not [t for t in results if t.shape == layer.w.shape]
    assert [t for t in results if t.shape == layer.x.shape]


@over_fused
def test_trap_13_the_external_normaliser_ignored(name):
    """Micro-batches with the whole batch's number of items add up to the whole batch."""
    layer, options = linear_problem(60, 8, 19, ignore=-100)
    y = options["target"]
    whole, parts = layer.leaves(), layer.leaves()
    loss = linear(whole, target=y, options=plan(name)).loss
    loss.backward()
    items = (y != -100).sum()
    total = 0
    for rows in (slice(0, 7), slice(7, 9), slice(9, 60)):
        x, target = parts.x[rows], y[rows]
        part = linear(Layer(x, *parts[1:]), target=target, num_items=items, options=plan(name)).loss
        part.backward()
        total += part.detach()
    torch.testing.assert_close(total, loss.detach(), rtol=1e-6, atol=0)
    for a, b in zip(parts, whole, strict=True):
        torch.testing.assert_close(a.grad.nan_to_num(), b.grad.nan_to_num(), rtol=1e-5, atol=1e-7)


@over_fused
@pytest.mark.parametrize("rows", (0, 5))
def test_trap_14_a_loss_of_nothing_without_a_graph(rows, name):
    """No rows, or ignored ones alone: zeros as gradients, for hooks that wait for them."""
    layer, _ = linear_problem(rows, 8, 19)
    leaves = layer.leaves()
    y = torch.full((rows,), -100)
    loss = linear(leaves, target=y, num_items=3, options=plan(name)).loss
    assert loss == 0 and loss.requires_grad
    seen = []
    leaves.w.register_post_accumulate_grad_hook(seen.append)
    loss.backward()
    assert seen and all(torch.equal(t.grad, torch.zeros_like(t)) for t in leaves)


@over_fused
@pytest.mark.parametrize("value", (math.nan, math.inf))
def test_trap_15_a_nan_in_an_ignored_row(value, name):
    """As if the row were not there: 0 * NaN in the product would be all of dW."""
    layer, _ = linear_problem(70, 8, 19)
    y = torch.arange(70) % 19
    y[::3] = -100
    layer.x[::3] = value
    leaves, fewer = layer.leaves(), Layer(layer.x[y != -100], *layer[1:]).leaves()
    linear(leaves, target=y, options=plan(name)).loss.backward()
    linear(fewer, target=y[y != -100], options=plan(name)).loss.backward()
    assert_same_bits(leaves.w.grad, fewer.w.grad)
    assert_same_bits(leaves.b.grad, fewer.b.grad)
    assert_same_bits(leaves.x.grad[y != -100], fewer.x.grad)
    assert not leaves.x.grad[::3].any()


@over_fused
def test_trap_16_an_adapter_on_the_head_bypassed(name):
    """The weight is what the caller made of it: gradients reach the adapter's factors."""
    layer, options = linear_problem(6, 8, 19)
    a, b = (torch.randn(*shape) for shape in ((19, 2), (2, 8)))

    def gradients(dtype, loss_of):
        frozen = layer.double() if dtype == torch.float64 else layer
        factors = [t.clone().to(dtype).detach().requires_grad_() for t in (a, b)]
        loss_of(Layer(frozen.x, frozen.w + factors[0] @ factors[1], frozen.b)).backward()
        return [t.grad for t in factors]

    got = gradients(torch.float32, lambda of: linear(of, options=plan(name), **options).loss)
    want = gradients(torch.float64, lambda of: F.cross_entropy(F.linear(*of), options["target"]))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)


@over_fused
def test_trap_17_products_in_another_dtype(name):
    """float32 and float64 keep their digits, also where torch may use bfloat16 in float32 products."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        for dtype, most in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
            layer, options = linear_problem(70, 96, 53, dtype)
            leaves = layer.leaves()
            linear(leaves, options=plan(name), **options).loss.backward()
            wide, _ = wide_and_exact(layer, options["target"])
            for a, b in zip(leaves, wide, strict=True):
                assert relative_error(a.grad, b.grad) < most
    finally:
        torch.set_float32_matmul_precision(before)


@over_fused
def test_trap_18_gradients_that_nobody_asked_for_made_into_zeros(name):
    """A backward of one statistic hands None for the others, which costs the kernels nothing."""
    layer, options = linear_problem(6, 8, 19)
    found = linear(layer.leaves(), ("loss", "log_prob", "lse", "entropy"), options=plan(name), **options)
    with Ops() as ops:
        found.lse.sum().backward()
    ((op, args, _),) = ops.calls
    assert op == "linear_cross_entropy_backward"
    assert [t is None for t in args[:4]] == [True, True, False, True]


@over_fused
@pytest.mark.parametrize("rows", (256, 1000))
def test_trap_19_chunks_that_are_far_too_small(rows, name):
    """By default no chunk has fewer than 64 rows, also for torch's own "auto": few products of logits."""
    layer, options = linear_problem(rows, 8, 640)
    activities = [torch.profiler.ProfilerActivity.CPU]
    chosen = [plan(name)]
    if name == "fast" and hasattr(torch.nn, "LinearCrossEntropyOptions"):
        chosen.append(torch.nn.LinearCrossEntropyOptions())
    for of in chosen:
        with torch.profiler.profile(activities=activities) as profile, torch.no_grad():
            linear(layer, options=of, **options)
        products = [e for e in profile.events() if e.name in ("aten::mm", "aten::addmm", "aten::mm_out")]
        assert 1 <= len(products) <= 8, len(products)
