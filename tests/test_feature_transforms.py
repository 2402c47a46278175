# SPDX-License-Identifier: Apache-2.0
"""torch.func's transforms and the derivatives of every kind: values as torch's, and who computes them."""

from __future__ import annotations

import pytest
import torch
from feature_cases import both, close, data, over_ops, scalar

# torch's own forward-mode decompositions are compiled with what torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


@pytest.mark.feature("torch.func.grad")
@over_ops
def test_grad(op, watch):
    ours, theirs = both(op)
    with watch:
        got = torch.func.grad(scalar(ours))(data())
    close(got, torch.func.grad(scalar(theirs))(data()))


@pytest.mark.feature("vmap(grad)")
@over_ops
def test_vmap_of_grad(op, watch):
    ours, theirs = both(op)
    x = torch.stack([data(), data(seed=1)])
    with watch:
        got = torch.func.vmap(torch.func.grad(scalar(ours)))(x)
    close(got, torch.func.vmap(torch.func.grad(scalar(theirs)))(x))
