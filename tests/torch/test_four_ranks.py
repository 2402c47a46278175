# SPDX-License-Identifier: Apache-2.0
"""Sharded rows and classes at the same time, on four gloo processes."""

from __future__ import annotations

import pytest
import torch
from places import SUPPORT
from processes import python

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this torch was built without torch.distributed's gloo", allow_module_level=True)


def test_rows_and_classes_on_four_ranks():
    result = python(str(SUPPORT / "four_ranks.py"))
    assert result.returncode == 0, result.stderr
    assert "checked" in result.stdout
