# SPDX-License-Identifier: Apache-2.0
"""The ops that ``csrc/ops/ops.h`` declares, as torch has them."""

from __future__ import annotations

import torch


def ops() -> dict[str, torch._ops.OpOverload]:
    """By name."""
    names = (name.split("::") for name in torch._C._dispatch_get_all_op_names())
    return {op: getattr(torch.ops.softkern, op).default for library, op in names if library == "softkern"}
