# SPDX-License-Identifier: Apache-2.0
"""Replaces softkern.triton in tests of the dispatch: it runs torch's ops and records its calls.

To be imported before softkern, in a process of its own: what it registers stays.
"""

from __future__ import annotations

import os
import sys
import types
from importlib.machinery import ModuleSpec

os.environ["TRITON_INTERPRET"] = "1"


class _Findable:
    """Machines without Triton: it can be found, and not imported."""

    @staticmethod
    def find_spec(name: str, path: object, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, _Findable) if name == "triton" else None

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        raise ImportError("a stand-in")

    @staticmethod
    def exec_module(module: types.ModuleType) -> None:
        raise ImportError("a stand-in")


RAN: list[str] = []
REGISTERED: list[object] = []


def register() -> None:
    """Registers the kernels for CPU tensors, and for CUDA's where there are any."""
    if REGISTERED:
        return
    import torch

    library = torch.library.Library("softkern_triton", "IMPL")
    for key in ("CPU", "CUDA") if torch.cuda.is_available() else ("CPU",):
        for name, kernel in _kernels().items():
            library.impl(name, kernel, key)
    REGISTERED.append(library)


def _kernels():
    import torch

    from softkern import _C, reference

    reductions = ("none", "mean", "sum")

    def noted(name, function):
        def kernel(*args):
            RAN.append(name)
            _C.set_last("triton", "stand-in")
            return function(*args)

        return kernel

    def softmax_backward(g, y, dim):
        return torch.ops.aten._softmax_backward_data(g, y, dim, y.dtype)

    def log_softmax_backward(g, y, dim):
        return torch.ops.aten._log_softmax_backward_data(g, y, dim, y.dtype)

    def cross_entropy_forward(x, target, weight, reduction, ignore_index, label_smoothing, need_grad):
        options = {
            "weight": weight,
            "reduction": reductions[reduction],
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
        }
        loss = reference.cross_entropy(x, target, **options)
        if not need_grad:
            return loss, x.new_empty([0]), x.new_empty([0])
        grad = reference.cross_entropy_backward(torch.ones_like(loss), x, target, **options)
        return loss, grad.contiguous(), x.new_ones([])

    def cross_entropy_forward_(x, target, weight, reduction, ignore_index, label_smoothing):
        loss, grad, scale = cross_entropy_forward(
            x, target, weight, reduction, ignore_index, label_smoothing, True
        )
        x.copy_(grad)
        return loss, scale

    def cross_entropy_backward(g, grad, scale, target, ignore_index):
        factor = g * scale
        return grad * (factor.unsqueeze(0 if grad.dim() == 1 else 1) if factor.dim() else factor)

    def cross_entropy_backward_(g, grad, scale, target, ignore_index):
        grad.copy_(cross_entropy_backward(g, grad, scale, target, ignore_index))

    functions = {
        "softmax": torch.ops.aten.softmax,  # behind torch.softmax may be softkern
        "log_softmax": torch.ops.aten.log_softmax,
        "softmax_backward": softmax_backward,
        "log_softmax_backward": log_softmax_backward,
        "cross_entropy_forward": cross_entropy_forward,
        "cross_entropy_forward_": cross_entropy_forward_,
        "cross_entropy_backward": cross_entropy_backward,
        "cross_entropy_backward_": cross_entropy_backward_,
    }
    return {name: noted(name, function) for name, function in functions.items()}


sys.modules["softkern.triton"] = sys.modules[__name__]
sys.meta_path.append(_Findable)
