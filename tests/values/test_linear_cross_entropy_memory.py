# SPDX-License-Identifier: Apache-2.0
"""linear_cross_entropy never holds the N x C logits, and keeps to max_bytes."""

from __future__ import annotations

import gc

import pytest
import torch
from cases import name as id_of
from linear_cases import Layer, linear, needed_bytes, over_fused, plan
from peak import peak_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# More rows than 4H: for fewer, the fast plan keeps all gradients of logits in 16 bits for one product. More
# classes than lean's largest tile.
N, H, C = 256, 8, 40009
# Rows of logits start at cache lines: an odd multiple of 32 elements apart.
PITCH = 1251 * 32
# Beside what the plan counts: some numbers a row and a class, such as losses and the gradient of the bias.
OF_ROW, OF_CLASS = 128, 16

over_floats = pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=id_of)
KINDS = {
    "mean": {"outputs": ("loss",)},
    "none": {"outputs": ("loss",), "reduction": "none"},
    "statistics": {"outputs": ("loss", "log_prob", "lse", "entropy")},
}
over_kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def layer_of(dtype, c=C):
    torch.manual_seed(1)
    return Layer(*(torch.randn(*s).to(dtype) for s in ((N, H), (c, H), (c,)))), torch.arange(N) * 7 % c


class NoLogits(TorchDispatchMode):
    """Fails at an op whose result shares memory of N x C elements or more."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        for t in tree_leaves(result):
            if isinstance(t, torch.Tensor) and t.untyped_storage().nbytes() >= N * C * t.element_size():
                raise AssertionError(f"{func} made {tuple(t.shape)}")  # an assert would print the tensor
        return result


def allocations(call):
    """Bytes of each, also of those inside an op."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    events = profile.profiler.kineto_results.events()
    return [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0]


def both_ways(leaves, y, options, kind):
    found = linear(leaves, target=y, options=options, **kind)
    sum(t.sum() for t in found if t is not None).backward()
    return [t.grad for t in leaves]


@over_kinds
@over_floats
@pytest.mark.parametrize("name", ("auto", "fast", "lean"))
def test_the_logits_never_exist(name, dtype, kind):
    """Neither in the dtype of the inputs, nor, with bfloat16 ones, its gradient in 16 bits."""
    layer, y = layer_of(dtype)
    options = plan(name, chunk_rows=64)
    with NoLogits():
        both_ways(layer.leaves(), y, options, kind)
    sizes = allocations(lambda: both_ways(layer.leaves(), y, options, kind))
    assert max(sizes) < N * C * layer.x.element_size()


def test_the_checks_see_logits():
    layer, y = layer_of(torch.float32)
    with pytest.raises(AssertionError, match="aten"), NoLogits():
        both_ways(layer.leaves(), y, plan("reference"), KINDS["mean"])
    sizes = allocations(lambda: both_ways(layer.leaves(), y, plan("reference"), KINDS["mean"]))
    assert max(sizes) >= 4 * N * C


@over_kinds
@over_floats
@over_fused
def test_temporaries_keep_to_max_bytes(name, dtype, kind):
    """From the least that is accepted to four times as much, forward and backward and without gradients."""
    classes = 5003
    layer, y = layer_of(dtype, classes)
    few = N * OF_ROW + classes * OF_CLASS
    if dtype is torch.bfloat16:  # torch's product may copy an operand, with no fewer than 64 columns
        few += (classes + 128) * 64 * 2

    def call(most):
        return linear(layer.leaves(), target=y, options=plan(name, max_bytes=most), **kind)

    least = needed_bytes(call)
    assert least > 10 * (N * OF_ROW + classes * OF_CLASS)
    with pytest.raises(ValueError, match=f"need {least} bytes"):
        call(least - 1)
    gc.collect()  # what the errors' frames have held
    for most in (least, 4 * least):
        leaves, options = layer.leaves(), plan(name, max_bytes=most)
        peak, end = peak_of(lambda: both_ways(leaves, y, options, kind))  # noqa: B023
        assert peak - end <= most + few, most
        peak, end = peak_of(lambda: linear(layer, target=y, options=options, **kind))  # noqa: B023
        assert peak - end <= most + few, most


def test_a_forward_without_gradients_needs_less():
    layer, y = layer_of(torch.float32)

    def needed(of):
        return needed_bytes(lambda most: linear(of, target=y, options=plan("lean", max_bytes=most)))

    frozen = Layer(layer.x, *layer.leaves()[1:])
    without, all_of_them = needed(layer), needed(layer.leaves())
    assert without == 64 * PITCH * 4  # the logits of 64 rows
    assert without <= needed(frozen) <= all_of_them


@pytest.mark.parametrize("rows", (64, 128))
def test_chunk_rows_are_the_rows_of_a_chunk(rows):
    layer, y = layer_of(torch.float32)
    with torch.no_grad():
        sizes = allocations(lambda: linear(layer, target=y, options=plan("lean", chunk_rows=rows)))
    assert max(sizes) == rows * PITCH * 4
