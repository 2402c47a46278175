# SPDX-License-Identifier: Apache-2.0
"""Tests that need a GPU, for each backend that computes on it: streams, graphs, memory, bits, sizes beyond
32 bits, wrong targets. Values are checked by `python -m softkern.verify --device cuda`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from compare import assert_same_bits
from places import ROOT

import softkern

GPU = [b.name for b in softkern.backends() if b.device == "cuda" and b.usable and torch.cuda.is_available()]
pytestmark = pytest.mark.skipif(not GPU, reason="no GPU that a backend computes on")
MIB = 1 << 20
# A row of each way through the kernels: tiny, lanes, block, cluster, read twice; classes apart.
SHAPES = ((300, 10), (300, 45), (300, 1000), (64, 5000), (40, 17000), (20, 50257), (6, 300000), (40, 60, 50))


@pytest.fixture(params=("cuda", "triton"), autouse=True)
def backend(request):
    if request.param not in GPU:
        pytest.skip(f"{request.param} does not compute on this machine's GPU")
    with softkern.use_backend(request.param):
        yield request.param


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cuda", dtype=torch.float32).mul_(3).to(dtype)


def targets(shape: tuple[int, ...]) -> torch.Tensor:
    rows = shape[:1] + shape[2:]
    return torch.randint(0, shape[1], rows, generator=torch.Generator("cuda").manual_seed(1), device="cuda")


def everything(x: torch.Tensor, target: torch.Tensor, upstream: torch.Tensor) -> list[torch.Tensor]:
    """Results and gradients of all ops, a row of which depends on that row alone."""
    found = []
    for op in (softkern.softmax, softkern.log_softmax):
        leaf = x.clone().requires_grad_()
        y = op(leaf, 1)
        found += [y.detach(), *torch.autograd.grad(y, leaf, upstream)]
    for options in ({}, {"label_smoothing": 0.1}):
        leaf = x.clone().requires_grad_()
        loss = softkern.cross_entropy(leaf, target, reduction="none", **options)
        found += [loss.detach(), *torch.autograd.grad(loss.sum(), leaf)]
    return found


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_has_the_same_bits_in_every_run_alone_and_anywhere(shape, dtype):
    x, target, upstream = random(*shape, dtype=dtype), targets(shape), random(*shape, dtype=dtype, seed=2)
    together = everything(x, target, upstream)
    for _ in range(3):
        for again, first in zip(everything(x, target, upstream), together, strict=True):
            assert_same_bits(again, first)
    for rows in (slice(0, 1), slice(1, 4), slice(shape[0] - 1, shape[0])):
        alone = everything(x[rows].clone(), target[rows], upstream[rows].clone())
        for some, every in zip(alone, together, strict=True):
            assert_same_bits(some, every[rows])


@pytest.mark.parametrize("reduction", ("mean", "sum"))
def test_sums_over_rows_have_the_same_bits_in_every_run(reduction):
    x, target = random(100_000, 30), targets((100_000, 30))
    first = softkern.cross_entropy(x, target, reduction=reduction)
    for _ in range(5):
        assert_same_bits(softkern.cross_entropy(x, target, reduction=reduction), first)


def steps(x: torch.Tensor, target: torch.Tensor) -> dict[str, Callable[[], list[torch.Tensor]]]:
    def loss() -> list[torch.Tensor]:
        leaf = x.detach().requires_grad_()
        value = softkern.cross_entropy(leaf, target)
        return [value.detach(), *torch.autograd.grad(value, leaf)]

    def scaled() -> list[torch.Tensor]:
        leaf = x.detach().requires_grad_()
        value = softkern.cross_entropy(leaf, target, reduction="sum") * 0.5
        return [value.detach(), *torch.autograd.grad(value, leaf)]

    def normalised() -> list[torch.Tensor]:
        leaf = x.detach().requires_grad_()
        y = softkern.softmax(leaf, 1)
        return [y.detach(), *torch.autograd.grad(y, leaf, x)]

    return {"loss": loss, "scaled": scaled, "normalised": normalised}


# Said once in a process, by whichever test comes first.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("name", ("loss", "scaled", "normalised"))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nothing_waits_for_the_device(shape, name):
    step = steps(random(*shape), targets(shape))[name]
    step()  # what is compiled or set up once
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ("loss", "scaled", "normalised"))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_calls_can_be_captured_in_a_graph(shape, name):
    x, other = random(*shape), random(*shape, seed=5)
    step = steps(x, targets(shape))[name]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.copy_(other)
    graph.replay()
    for replayed, computed in zip(captured, step(), strict=True):
        assert_same_bits(replayed, computed)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_current_stream_computes(shape):
    """The logits are written late, on the same stream: another one would not wait for them."""
    x, other, target = random(*shape), random(*shape, seed=5), targets(shape)
    wanted = steps(other, target)["loss"]()
    step = steps(x, target)["loss"]
    step()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)
        x.copy_(other)
        found = step()
    torch.cuda.synchronize()
    for a, b in zip(found, wanted, strict=True):
        assert_same_bits(a, b)


def peak(step: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("shape", ((2048, 8192), (512, 50257), (1_000_000, 10), (64, 200, 1000)), ids=str)
def test_memory_above_the_logits(shape):
    """Forward and backward: the gradient, and some numbers a row. In its place: these alone."""
    target = targets(shape)
    size, rows = 4 * torch.Size(shape).numel(), 32 * target.numel() + MIB
    leaf = random(*shape).requires_grad_()
    softkern.cross_entropy(leaf, target).backward()  # what is compiled or set up once
    leaf.grad = None
    assert size <= peak(lambda: softkern.cross_entropy(leaf, target).backward()) <= size + rows
    logits = leaf * 1
    assert (
        peak(lambda: softkern.cross_entropy(logits, target, inplace_backward=True).backward()) <= size + rows
    )
    logits = leaf * 1
    assert peak(lambda: softkern.cross_entropy(logits, target, inplace_backward=True)) <= rows


def free_memory(needed: int) -> None:
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"a GPU with {needed >> 30} GiB of free memory is needed")


@pytest.mark.parametrize("shape", ((70_000, 32_000), (9_000, 250_000), (230_000_000, 10)), ids=str)
def test_more_elements_than_32_bits_count(shape):
    torch.cuda.empty_cache()
    free_memory(20 << 30)
    x = torch.empty(shape, device="cuda", dtype=torch.bfloat16).normal_(0, 3)
    target = targets(shape)
    last = slice(shape[0] - 2, shape[0])
    y = softkern.softmax(x, 1)
    assert_same_bits(y[last], softkern.softmax(x[last].clone(), 1))
    del y
    leaf = x[last].clone().requires_grad_()
    loss = softkern.cross_entropy(leaf, target[last], reduction="sum")
    (wanted,) = torch.autograd.grad(loss, leaf)
    every = x.requires_grad_()
    loss = softkern.cross_entropy(every * 1, target, reduction="sum", inplace_backward=True)
    (dx,) = torch.autograd.grad(loss, every)
    assert_same_bits(dx[last], wanted)


def test_many_planes_of_classes_apart():
    shape = (70_000, 5, 3)
    x, target = random(*shape), targets(shape)
    leaf = x.clone().requires_grad_()
    loss = softkern.cross_entropy(leaf, target)
    (dx,) = torch.autograd.grad(loss, leaf)
    x.requires_grad_()
    expected = F.cross_entropy(x.double(), target)
    torch.testing.assert_close(loss.double(), expected)
    torch.testing.assert_close(dx, *torch.autograd.grad(expected, x))


def test_under_autocast():
    """As the loss of float32 logits."""
    x, target = random(64, 1000, dtype=torch.bfloat16).requires_grad_(), targets((64, 1000))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = softkern.cross_entropy(x, target)
        assert loss.dtype == F.cross_entropy(x, target).dtype == torch.float32
    wanted = F.cross_entropy(x.float(), target)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], torch.autograd.grad(wanted, x)[0])


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # of Inductor's own
def test_compiled():
    def step(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return softkern.cross_entropy(x * 2, target) + softkern.softmax(x, 1).square().sum()

    x, target = random(64, 1000).requires_grad_(), targets((64, 1000))
    compiled = torch.compile(step, fullgraph=True)
    torch.testing.assert_close(compiled(x, target), step(x, target))
    (found,), (wanted,) = (torch.autograd.grad(f(x, target), x) for f in (compiled, step))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("wrong", (-1, 1000, 2**40))
@pytest.mark.parametrize("options", ("", ", reduction='none'", ", label_smoothing=0.1"), ids=repr)
def test_a_target_out_of_range_stops_the_device(backend, wrong, options):
    """As in torch: an assertion, after which this process can't use the device."""
    script = f"""
import torch, softkern
x, target = torch.zeros(4, 1000, device="cuda"), torch.tensor([1, {wrong}, 2, 3], device="cuda")
with softkern.use_backend({backend!r}):
    softkern.cross_entropy(x, target{options})
torch.cuda.synchronize()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "device-side assert" in done.stderr, done.stderr[-2000:]
