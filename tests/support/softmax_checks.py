# SPDX-License-Identifier: Apache-2.0
"""Shared by softmax and log_softmax: the check of a result against the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from compare import assert_close, assert_gradient
from torch import Tensor

import softkern
from softkern import reference
from softkern.verify import oracle


class Op(NamedTuple):
    ours: Callable
    torchs: Callable
    forward: Callable  # of the reference
    backward: Callable  # of the reference
    scale: Callable  # (x, y, dim) -> magnitude of the terms of y
    backward_scale: Callable  # (grad, y, dim) -> magnitude of the terms of dx


OPS = {
    "softmax": Op(
        softkern.softmax,
        F.softmax,
        reference.softmax,
        reference.softmax_backward,
        oracle.softmax_scale,
        oracle.softmax_gradient_scale,
    ),
    "log_softmax": Op(
        softkern.log_softmax,
        F.log_softmax,
        reference.log_softmax,
        reference.log_softmax_backward,
        oracle.log_softmax_scale,
        oracle.log_softmax_gradient_scale,
    ),
}


def check_values(op: str, x: Tensor, dim: int) -> Tensor:
    """softkern's values against the oracle's; returns them."""
    o, x64 = OPS[op], x.detach().double()
    expected = o.forward(x64, dim)
    y = o.ours(x, dim=dim)
    scale = o.scale(x64, expected, dim)
    torch_result = o.torchs(x, dim=dim)
    assert_close(y, expected, x.dtype, scale=scale, torch_result=torch_result, what=f"{op} {dim=}")
    return y


def check_gradients(op: str, x: Tensor, dim: int, grad: Tensor) -> None:
    """The gradient for the upstream gradient `grad`.

    Backward sees the rounded output of forward and not the logits: in 16 bits they are far apart.
    So the oracle starts from softkern's own output, whose values check_values answers for.
    """
    o = OPS[op]
    x = x.detach().requires_grad_()
    y = o.ours(x, dim=dim)
    (dx,) = torch.autograd.grad(y, x, grad)
    (torch_result,) = torch.autograd.grad(o.torchs(x, dim=dim), x, grad)
    y64, g64 = y.detach().double(), grad.double()
    expected = o.backward(g64, y64, dim)
    scale = o.backward_scale(g64, y64, dim)
    options = {"scale": scale, "torch_result": torch_result, "what": f"d{op} {dim=}"}
    assert_gradient(dx, expected, x.dtype, dim=dim, **options)
