# SPDX-License-Identifier: Apache-2.0
"""A fixture of the tests that run the CUDA kernels."""

from __future__ import annotations

import pytest
import torch

import softkern


@pytest.fixture
def cuda():
    # A device's own thread of autograd would keep to itself which way it went.
    with softkern.use_backend("cuda"), torch.autograd.set_multithreading_enabled(False):
        yield
