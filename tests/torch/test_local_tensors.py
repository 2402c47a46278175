# SPDX-License-Identifier: Apache-2.0
"""DTensors in torch's LocalTensorMode, where one process is all ranks."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from places import SUPPORT
from processes import python

has_mode = (
    torch.distributed.is_available()
    and importlib.util.find_spec("torch.distributed._local_tensor") is not None
)


@pytest.mark.skipif(not has_mode, reason="this torch has no LocalTensorMode")
def test_sharded_classes_on_eight_simulated_ranks():
    result = python(str(SUPPORT / "local_tensor_checks.py"), "8")
    assert result.returncode == 0, result.stderr
    assert "checked 8" in result.stdout
