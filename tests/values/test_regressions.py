# SPDX-License-Identifier: Apache-2.0
"""Earlier mistakes, each with its effect."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import softkern


def gradient(loss_of, x: torch.Tensor, upstream: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    loss_of(x).backward(upstream)
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("op", ["softmax", "cross_entropy"])
def test_large_calls_run_on_torchs_threads(op: str) -> None:
    # at::parallel_for runs on one thread in a file that is compiled without OpenMP.
    script = textwrap.dedent(
        f"""
        import os, torch, softkern
        torch.set_num_threads(2)
        x = torch.empty(2000, 1000)  # filling it would start the threads
        target = torch.zeros(2000, dtype=torch.long)
        before = len(os.listdir("/proc/self/task"))
        softkern.softmax(x, 1) if "{op}" == "softmax" else softkern.cross_entropy(x, target)
        print(len(os.listdir("/proc/self/task")) - before)
        """
    )
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("threads are counted in /proc, which this system does not have")
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert int(done.stdout) == 1


@pytest.mark.parametrize(("dtype", "ignore_index"), [(torch.uint8, -100), (torch.int32, 2**32 + 156)])
def test_ignore_index_does_not_wrap_in_narrow_targets(dtype: torch.dtype, ignore_index: int) -> None:
    # As uint8, -100 is 156: the row of class 156 lost its gradient when it was scaled.
    x = torch.randn(2, 200, dtype=torch.float64)
    target, upstream = torch.tensor([156, 3]), torch.tensor([2.0, torch.inf], dtype=torch.float64)
    actual = gradient(
        lambda x: softkern.cross_entropy(x, target.to(dtype), reduction="none", ignore_index=ignore_index),
        x,
        upstream,
    )
    expected = gradient(
        lambda x: F.cross_entropy(x, target, reduction="none", ignore_index=ignore_index), x, upstream
    )
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-12, atol=1e-14)


@pytest.mark.feature("is_grads_batched", "cross_entropy")
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_batched_gradients(reduction: str) -> None:
    # The gradient was scaled in place, which the batched upstream gradient can't be written into.
    x, target = torch.randn(4, 7, dtype=torch.float64, requires_grad=True), torch.tensor([0, 3, -100, 6])
    results = []
    for functions in (softkern, F):
        loss = functions.cross_entropy(x, target, reduction=reduction)
        upstream = (
            torch.eye(4, dtype=torch.float64) if reduction == "none" else torch.tensor([1.0, 2.0]).double()
        )
        results.append(torch.autograd.grad(loss, x, upstream, is_grads_batched=True)[0])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_batched_gradients_of_softmaxes(op: str) -> None:
    x, upstream = torch.randn(2, 3, dtype=torch.float64, requires_grad=True), torch.randn(5, 2, 3).double()
    results = [
        torch.autograd.grad(getattr(functions, op)(x, 1), x, upstream, is_grads_batched=True)[0]
        for functions in (softkern, F)
    ]
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


def test_negative_zero_survives_on_every_instruction_set() -> None:
    # 0 + -0 is +0: the portable broadcast lost the sign that AVX keeps.
    bits = set()
    for isa, _, reason in softkern._C.isas():
        if not reason:
            with softkern.use_backend(isa):
                y = softkern.log_softmax(torch.tensor([-0.0]), 0)
                dx = torch.ops.softkern.log_softmax_backward(torch.full((1, 3), -0.0), torch.zeros(1, 3), 1)
            bits.add((*y.view(torch.int32).tolist(), *dx.view(torch.int32).flatten().tolist()))
    assert len(bits) == 1


def test_a_type_error_from_inside_is_not_swallowed() -> None:
    # A fallback for pybind11's TypeErrors also caught those of hooks and modes.
    class Refusing(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            raise TypeError("refused")

    with Refusing(), pytest.raises(TypeError, match="refused"):
        softkern.softmax(torch.zeros(2, 3), 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: softkern.cross_entropy(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.float64)),
        lambda: torch.func.vmap(lambda x: softkern.softmax(x, 0))(torch.zeros(2, 3)),
        lambda: softkern.log_softmax(torch.zeros(2, 3, device="meta"), 1),
    ],
    ids=["dtypes", "vmap", "meta"],
)
def test_a_named_backend_is_never_replaced(call) -> None:
    call()
    with softkern.use_backend("portable"), pytest.raises(RuntimeError, match="'portable' was asked for"):
        call()


def test_a_named_backend_leaves_errors_to_torch() -> None:
    with softkern.use_backend("portable"), pytest.raises(IndexError, match="Target 9 is out of bounds"):
        softkern.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 9]))
    with softkern.use_backend("portable"), pytest.raises(ValueError, match="batch_size"):
        softkern.cross_entropy(torch.zeros(2, 3), torch.tensor([0]))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("create_graph", [False, True])
def test_targets_without_weight_have_no_mean(smoothing: float, create_graph: bool) -> None:
    x, target = torch.randn(2, 3, requires_grad=True), torch.tensor([0, 0])
    weight = torch.tensor([0.0, 1.0, 1.0])
    for functions in (softkern, F):
        loss = functions.cross_entropy(x, target, weight, label_smoothing=smoothing)
        assert loss.isnan()
        (dx,) = torch.autograd.grad(loss, x, create_graph=create_graph)
        assert dx.isnan().all()


def test_weights_that_cancel_divide_by_zero_as_in_torch() -> None:
    x, target, weight = (
        torch.tensor([[1.0, 2.0], [3.0, 1.0]]),
        torch.tensor([0, 1]),
        torch.tensor([1.0, -1.0]),
    )
    assert softkern.cross_entropy(x, target, weight).item() == F.cross_entropy(x, target, weight).item()


def test_fake_tensors_are_checked_in_inference_mode() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), torch.inference_mode():
        assert softkern.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]).int()).shape == ()
        with pytest.raises(ValueError, match="batch_size"):
            softkern.cross_entropy(torch.zeros(2, 3), torch.zeros(5, dtype=torch.long))


@pytest.mark.parametrize("rows", [1, 2, 17])
def test_long_strided_rows_are_packed_in_no_more_memory_than_there_are_rows(rows: int) -> None:
    x = torch.randn(5000, rows, dtype=torch.float64)
    torch.testing.assert_close(softkern.softmax(x, 0), F.softmax(x, 0), rtol=1e-13, atol=0)
