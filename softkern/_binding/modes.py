# SPDX-License-Identifier: Apache-2.0
"""What csrc/behind.cpp asks torch in C++, for bindings without it."""

from __future__ import annotations

import sys

import torch

_KEYS = tuple(getattr(torch._C._TorchDispatchModeKey, key) for key in ("FAKE", "PROXY", "FUNCTIONAL"))


def makes_a_graph() -> bool:
    """Whether a graph is being made of this thread's calls, by a tracer or with tensors without values."""
    if torch._C._get_tracing_state() is not None:
        return True
    return any(torch._C._get_dispatch_mode(key) is not None for key in _KEYS)


def exports_to_onnx() -> bool:
    # An export loads torch.onnx, so there is none before it is loaded.
    onnx = sys.modules.get("torch.onnx")
    return onnx is not None and bool(onnx.is_in_onnx_export())
