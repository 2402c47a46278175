# SPDX-License-Identifier: Apache-2.0
"""Replaces softkern.triton in tests of the dispatch: it computes with torch and records its calls.

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
UNNOTED = ("target_weight", "reduce_losses")  # steps that some calls have and some have not
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
    from softkern.options import CrossEntropyOptions

    def noted(name, function, note=None):
        def kernel(*args):
            if name not in UNNOTED:
                RAN.append(name + (note(*args) if note else ""))
            _C.set_last("triton", "stand-in")
            return function(*args)

        return kernel

    def shared(a, b):
        return b is not None and a.data_ptr() == b.data_ptr()

    def softmax_backward(g, y, dim):
        return torch.ops.aten._softmax_backward_data(g, y, dim, y.dtype)

    def log_softmax_backward(g, y, dim):
        return torch.ops.aten._log_softmax_backward_data(g, y, dim, y.dtype)

    def target_weight(target, weight, classes, ignore_index, sum, reciprocal):
        counted = target[target != ignore_index].long()
        w = torch.ones(classes) if weight is None else weight
        sum.copy_(w[counted].sum() if counted.numel() else torch.tensor(torch.nan))
        reciprocal.copy_(1 / sum)

    def cross_entropy_rows(x, target, weight, *given):
        *values, factor, factor_on_device, losses, grad = given
        given = CrossEntropyOptions(*values)
        options = {
            "weight": weight,
            "reduction": "none",
            "ignore_index": given.ignore_index,
            "label_smoothing": given.label_smoothing,
        }
        losses.copy_(reference.cross_entropy(x, target, **options).reshape(-1))
        if grad is not None:
            ones = torch.ones([n for i, n in enumerate(x.shape) if i != min(1, x.dim() - 1)], dtype=x.dtype)
            g = reference.cross_entropy_backward(ones, x, target, **options)
            grad.copy_(g * (factor if factor_on_device is None else factor_on_device))

    def reduce_losses(losses, divisor, divisor_on_device, storage, storage_on_device, loss, grad_scale):
        assert storage == 0 and storage_on_device is None, "no checks of float16"
        loss.copy_(losses.sum() / (divisor if divisor_on_device is None else divisor_on_device))
        if grad_scale is not None:
            grad_scale.fill_(1)

    def scale_gradient(g, grad, scale, target, ignore_index, out):
        factor = g * scale
        out.copy_(grad * (factor.unsqueeze(0 if grad.dim() == 1 else 1) if factor.dim() else factor))

    def over_the_logits(*args):
        return " over the logits" if shared(args[0], args[-1]) else ""

    def in_place(g, grad, scale, target, ignore_index, out):
        return " in place" if shared(grad, out) else ""

    return {
        "softmax": noted("softmax", torch.ops.aten.softmax),  # behind torch.softmax may be softkern
        "log_softmax": noted("log_softmax", torch.ops.aten.log_softmax),
        "softmax_backward": noted("softmax_backward", softmax_backward),
        "log_softmax_backward": noted("log_softmax_backward", log_softmax_backward),
        "target_weight": noted("target_weight", target_weight),
        "cross_entropy_rows": noted("cross_entropy_rows", cross_entropy_rows, over_the_logits),
        "reduce_losses": noted("reduce_losses", reduce_losses),
        "scale_gradient": noted("scale_gradient", scale_gradient, in_place),
    }


sys.modules["softkern.triton"] = sys.modules[__name__]
sys.meta_path.append(_Findable)
