# SPDX-License-Identifier: Apache-2.0
"""softkern without anything compiled, in a process with SOFTKERN_GLUE=none, and with TRITON_INTERPRET=1 for
Triton's kernels. Run by tests/project/test_nothing_compiled.py."""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import Tensor

import softkern

LOSSES = (
    {},
    {"reduction": "sum", "label_smoothing": 0.1, "weight": torch.arange(1.0, 10)},
    {"reduction": "none", "ignore_index": 3},
    {"reduction": "mean", "weight": torch.arange(9.0)},
)
INDICES = torch.tensor([1, 2, 3, -100, 0, 8])


def indices(ignore_index: int = -100, **_: object) -> Tensor:
    return INDICES.where(INDICES >= 0, ignore_index)


def gradient(y: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(y, x, torch.full_like(y, 2.0))[0]


def raised(f, *given, **named) -> str:
    try:
        f(*given, **named)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("nothing was raised")


def torch_computes() -> None:
    x = torch.randn(6, 9, requires_grad=True)
    for options in LOSSES:
        target = indices(**options)
        ours, theirs = (f(x, target, **options) for f in (softkern.cross_entropy, F.cross_entropy))
        assert torch.equal(ours, theirs) and torch.equal(gradient(ours, x), gradient(theirs, x))
    assert torch.equal(softkern.softmax(x, 1), F.softmax(x, 1))
    loss, stats = softkern.cross_entropy(x, INDICES, z_loss=0.5, stats=("lse",))
    lse = x.logsumexp(1)
    kept = INDICES >= 0
    torch.testing.assert_close(loss, F.cross_entropy(x, INDICES) + 0.5 * lse[kept].square().mean())
    torch.testing.assert_close(stats.lse, lse.where(kept, 0))
    w = torch.randn(7, 9)
    own, torchs = softkern.linear_cross_entropy(x, w, INDICES % 7), F.cross_entropy(x @ w.T, INDICES % 7)
    torch.testing.assert_close(own, torchs)
    compiled = torch.compile(softkern.cross_entropy, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x, INDICES), F.cross_entropy(x, INDICES))
    hessian = torch.func.hessian(lambda row: softkern.cross_entropy(row, torch.tensor(2)))(x[0].detach())
    torch.testing.assert_close(
        hessian, torch.func.hessian(lambda row: F.cross_entropy(row, torch.tensor(2)))(x[0])
    )
    held = torch.softmax
    with softkern.installed():
        assert torch.softmax is not held, "no extension exchanges its code"
        assert torch.equal(torch.softmax(x, dim=1), held(x, 1))
        assert torch.equal(x.log_softmax(1), F.log_softmax(x, 1))
    assert torch.softmax is held
    assert raised(softkern.cross_entropy, x, INDICES + 9) == "IndexError: Target 10 is out of bounds."


def what_is_missing_is_said() -> None:
    without = "this installation of softkern has no compiled part"
    found = {backend.name: backend for backend in softkern.backends()}
    assert list(found) == ["cuda", "triton"] and found["cuda"].reason.startswith(without)
    assert raised(softkern.use_backend("cuda").__enter__).startswith(
        "RuntimeError: use_backend: backend 'cuda'"
    )
    assert raised(softkern.use_backend("avx2").__enter__).endswith(
        "expected one of 'cuda', 'triton', got 'avx2'"
    )
    parts = raised(torch.ops.softkern.row_parts_merge, torch.zeros(2, 3), torch.zeros(7, 1, 2))
    assert parts.startswith(f"RuntimeError: softkern::row_parts_merge: {without}")


def triton_computes() -> None:
    tolerances = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}
    for dtype, tolerance in tolerances.items():
        x = torch.randn(6, 9).to(dtype).requires_grad_()
        wide = x.detach().double().requires_grad_()
        for probabilities in (None, torch.rand(6, 9).to(dtype)):
            for options in LOSSES:
                if probabilities is not None and "ignore_index" in options:
                    continue
                target = indices(**options) if probabilities is None else probabilities
                narrow = {k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in options.items()}
                double = {k: v.double() if isinstance(v, Tensor) else v for k, v in narrow.items()}
                softkern._C.set_last("", "")
                ours = softkern.cross_entropy(x, target, **narrow)
                of_ours = gradient(ours, x)
                assert softkern._C.last_isa() == "triton"
                theirs = F.cross_entropy(
                    wide, target if target.dtype == torch.int64 else target.double(), **double
                )
                size = float(theirs.abs().max())
                torch.testing.assert_close(ours.double(), theirs, atol=tolerance * size, rtol=0)
                torch.testing.assert_close(
                    of_ours.double(), gradient(theirs, wide), atol=tolerance, rtol=tolerance
                )
        for name in ("softmax", "log_softmax"):
            y, of_f = getattr(softkern, name)(x, 1), getattr(F, name)(wide, 1)
            assert softkern._C.last_isa() == "triton"
            torch.testing.assert_close(y.double(), of_f, atol=tolerance, rtol=tolerance)
            g = torch.arange(9.0).expand(6, 9)
            (own,) = torch.autograd.grad(y, x, g.to(dtype))
            (torchs,) = torch.autograd.grad(of_f, wide, g.double())
            torch.testing.assert_close(own.double(), torchs, atol=20 * tolerance, rtol=tolerance)
    assert raised(softkern.cross_entropy, x, INDICES + 9) == "IndexError: Target 10 is out of bounds."
    assert "does not compute these arguments" in raised(softkern.cross_entropy, x, INDICES, z_loss=0.5)
    # In place: the gradient is in the memory of the logits.
    copy = x.detach().clone().requires_grad_()
    logits = copy * 1
    memory = logits.detach()
    softkern.cross_entropy(logits, INDICES, inplace_backward=True).backward()
    assert torch.equal(memory, copy.grad)


if __name__ == "__main__":
    torch.manual_seed(0)
    assert softkern._C.binding()[0] == "none"
    if os.environ.get("TRITON_INTERPRET") == "1":
        with softkern.use_backend("triton"):
            triton_computes()
    else:
        torch_computes()
        what_is_missing_is_said()
