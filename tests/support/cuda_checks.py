# SPDX-License-Identifier: Apache-2.0
"""Shared by the tests of the CUDA kernels, on a GPU and emulated."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import softkern
from softkern import _C, reference
from softkern.verify import inputs

BUILD = _C.build()
COMPILED, EMULATED = bool(BUILD["cuda_architectures"]), bool(BUILD["cuda_emulated"])
ON_GPU = COMPILED and not EMULATED and torch.cuda.is_available() and not _C.why_no_cuda(0)
DEVICE = "cuda" if ON_GPU else "cpu"
# For a whole file: where the kernels are, they compute everything.
by_kernels = [
    pytest.mark.skipif(
        not (EMULATED or ON_GPU), reason="neither the build with emulated CUDA kernels nor a GPU for them"
    ),
    pytest.mark.usefixtures("cuda"),
]
emulated = pytest.mark.skipif(not EMULATED, reason="not the build with emulated CUDA kernels")

tensor, ones, full, zeros = (
    partial(make, device=DEVICE) for make in (torch.tensor, torch.ones, torch.full, torch.zeros)
)


def logits(*shape, **kwargs):
    return inputs.logits(*shape, **kwargs).to(DEVICE)


def indices(*args):
    return inputs.indices(*args).to(DEVICE)


def class_weights(*args):
    return inputs.class_weights(*args).to(DEVICE)


def probabilities(*args):
    return inputs.probabilities(*args).to(DEVICE)


SOFTMAXES = ("softmax", "log_softmax")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TILE, LANES, BLOCK = "a thread a row", "lanes, kept", "block, kept"
CLUSTER, TWICE = "cluster, kept", "block, read twice"
IN_BLOCK, IN_CLUSTER = "block, in shared memory", "cluster, in shared memory"
COLUMNS = "columns, in shared memory"


def with_clusters(monkeypatch, there: bool) -> None:
    """A GPU has them or not; the emulator is told, and also how much shared memory such a GPU has."""
    if not EMULATED and there != (torch.cuda.get_device_capability()[0] >= 9):
        pytest.skip("a GPU of the other kind is needed")
    monkeypatch.setenv("SIMT_CLUSTERS", str(int(there)))
    monkeypatch.setenv("SIMT_SHARED_KIB", "227" if there else "99")


def way() -> str:
    assert _C.last_isa() == "cuda"
    return _C.last_path()


def eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def close(actual: torch.Tensor, expected: torch.Tensor, scale: float = 1.0, atol: float = 0.0) -> None:
    """Within 8 eps of the dtype, `scale` times; atol for what is a difference of numbers of that size."""
    assert not actual.requires_grad
    # The sums that float64 is compared with are float64's own.
    computed_in = torch.float64 if actual.dtype == torch.float64 else torch.float32
    rtol = (32 if actual.dtype == torch.float64 else 8) * scale * eps(computed_in)
    if actual.dtype in (torch.bfloat16, torch.float16):
        rtol += eps(actual.dtype)
    torch.testing.assert_close(actual.double(), expected.double(), rtol=rtol, atol=atol, equal_nan=True)


def everything(x, target, **kwargs):
    """Values and gradients of all ops of rows x, with the ways that computed them."""
    ways, found = [], []
    for op in SOFTMAXES:
        leaf = x.clone().requires_grad_()
        y = getattr(softkern, op)(leaf, 1)
        ways.append(way())
        found += [y.detach(), *torch.autograd.grad(y, leaf, logits(*y.shape, dtype=y.dtype, seed=7))]
        ways.append(way())
    leaf = x.clone().requires_grad_()
    loss = softkern.cross_entropy(leaf, target, reduction="none", **kwargs)
    ways.append(way())
    found += [loss.detach(), *torch.autograd.grad(loss.sum(), leaf)]
    return ways, found


def check_everything(x, target, **kwargs) -> list[str]:
    ways, (y, dy, z, dz, loss, dx) = everything(x, target, **kwargs)
    wide = x.double()
    options = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
    tiny = float(torch.finfo(y.dtype).tiny) * 2
    g = logits(*y.shape, dtype=y.dtype, seed=7).double()
    classes = x.shape[1]
    own = 16 * eps(torch.float64 if x.dtype == torch.float64 else torch.float32)
    close(y, reference.softmax(wide, 1), atol=tiny)
    close(z, reference.log_softmax(wide, 1), atol=own / 4)
    # Of the stored outputs, as torch differentiates them; sums of as many terms as there are classes.
    close(dy, reference.softmax_backward(g, y.double(), 1), atol=own * float(g.abs().max()))
    close(dz, reference.log_softmax_backward(g, z.double(), 1), atol=own * float(g.abs().sum(1).max()))
    close(loss, reference.cross_entropy(wide, target, reduction="none", **options), atol=own)
    expected = reference.cross_entropy_backward(
        ones(loss.shape, dtype=torch.float64), wide, target, reduction="none", **options
    )
    heaviest = float(options.get("weight", ones(1)).max())
    close(dx, expected, scale=2, atol=max(tiny, own * heaviest / classes))
    return ways
