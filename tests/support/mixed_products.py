# SPDX-License-Identifier: Apache-2.0
"""linear_cross_entropy with products of 16-bit matrices into float32, which CUDA has, on the CPU.

Run as a program, since a process can't give these ops back: it checks the error of each plan, and prints how
often each product ran.
"""

from __future__ import annotations

import collections

import torch
import torch.nn.functional as F

import softkern

LIBRARY = torch.library.Library("aten", "IMPL", "CPU")
CALLS = collections.Counter()


def _mm(a, b, out_dtype, *, out):
    assert out_dtype == out.dtype == torch.float32 and a.dtype == b.dtype != torch.float32
    CALLS["mm"] += 1
    return out.copy_(a.float() @ b.float())


def _addmm(bias, a, b, out_dtype, *, beta=1, alpha=1, out):
    assert out_dtype == out.dtype == bias.dtype == torch.float32 and a.dtype == b.dtype != torch.float32
    assert (beta, alpha) == (1, 1)
    CALLS["addmm"] += 1
    return out.copy_(bias + a.float() @ b.float())


LIBRARY.impl("mm.dtype_out", _mm)
LIBRARY.impl("addmm.dtype_out", _addmm)


def error(found, exact):
    return float((found.detach().double() - exact).norm() / exact.norm())


def check(dtype, plan, n, h, c, reduction, small=1.0):
    """At most 1.1 times the error of one rounding of dz, relative to its own size, and one of each result.

    With a `small` upstream gradient, dz is far below the normal numbers of float16, but dz w is not.
    """
    g = torch.Generator().manual_seed(n)
    scales = ((n, h), small), ((c, h), 1 / small), ((c,), 1)
    x, w, b = ((torch.randn(*s, generator=g) * k).to(dtype).requires_grad_() for s, k in scales)
    y = torch.randint(0, c, (n,), generator=g)
    y[::5] = -100
    options = softkern.LinearCrossEntropyOptions(plan=plan, chunk_rows=64)
    loss = softkern.linear_cross_entropy(x, w, y, linear_bias=b, reduction=reduction, options=options)
    grads = torch.autograd.grad(loss.sum(), (x, w, b), torch.tensor(small, dtype=dtype))
    wide = [t.detach().double().requires_grad_() for t in (x, w, b)]
    z = F.linear(*wide)
    z.retain_grad()
    exact = F.cross_entropy(z, y, reduction=reduction)
    torch.testing.assert_close(loss.double(), exact.detach(), rtol=torch.finfo(dtype).eps, atol=1e-6)
    exact.sum().backward(torch.tensor(small, dtype=torch.float64))
    power = 14 - z.grad.abs().max().log2().floor() if dtype == torch.float16 else 0
    dz = (z.grad * 2.0**power).to(dtype).double() * 2.0**-power
    x, w, _ = (t.detach() for t in wide)
    model = ((dz @ w).to(dtype), (dz.T @ x).to(dtype), z.grad.sum(0).to(dtype))
    for got, near, t in zip(grads, model, wide, strict=True):
        bound = 1.1 * error(near, t.grad)
        if not error(got, t.grad) <= bound:
            raise AssertionError(f"{dtype} {plan} {n} {h} {c}: {error(got, t.grad):.2e} > {bound:.2e}")


for dtype in (torch.bfloat16, torch.float16):
    before = CALLS.copy()
    for sizes in ((200, 130, 300), (200, 24, 300)):  # one product of dW with bfloat16, and several
        for plan in ("fast", "lean"):
            for reduction in ("mean", "none"):
                for small in (1, 2.0**-10):
                    check(dtype, plan, *sizes, reduction, small)
    print(dtype, dict(CALLS - before))
