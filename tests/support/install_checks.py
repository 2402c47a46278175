# SPDX-License-Identifier: Apache-2.0
"""Shared by the tests of softkern.install: the patched names, and the ops that a call runs."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

SOFTMAXES = ("softmax", "log_softmax")
# torch has it since 2.13.
LINEAR = ("linear_cross_entropy",) if hasattr(torch.nn.functional, "linear_cross_entropy") else ()
OWNERS = (
    ("torch.nn.functional", (*SOFTMAXES, "cross_entropy", *LINEAR)),
    ("torch", SOFTMAXES),
    ("torch.Tensor", SOFTMAXES),
    ("torch.special", SOFTMAXES),
)


class Recorder(TorchDispatchMode):
    """Writes down the names of the ops that run."""

    def __init__(self):
        super().__init__()
        self.ops: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops.append(str(func))
        return func(*args, **(kwargs or {}))


def ops_run(call, *args) -> tuple[torch.Tensor, list[str]]:
    """The result of a call, and the ops that it ran."""
    with Recorder() as recorder:
        result = call(*args)
    return result, recorder.ops
