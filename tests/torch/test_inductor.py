# SPDX-License-Identifier: Apache-2.0
"""inductor without implicit fallbacks, so that it needs softkern's lowerings; and that it loads late."""

from __future__ import annotations

import shutil

import pytest
from processes import python

STRICT = """
import sys
import torch, softkern
import torch.nn.functional as F
softkern.softmax(torch.zeros(2, 3), 1)
softkern.cross_entropy(torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 1])).backward()
assert "torch._inductor" not in sys.modules, "softkern loads inductor"

import torch._inductor.config
torch._inductor.config.implicit_fallbacks = False
x, y = torch.randn(6, 10, dtype=torch.float64), torch.arange(6)

for kwargs in ({}, {"inplace_backward": True}):
    torch._dynamo.reset()
    loss = torch.compile(lambda x: softkern.cross_entropy(softkern.softmax(x * 2, 1), y), fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(loss(x), F.cross_entropy(F.softmax(x * 2, 1), y))
    leaf = x.clone().requires_grad_()
    f = torch.compile(
        lambda x: softkern.cross_entropy(
            softkern.softmax(x * 2, 1).square() + softkern.log_softmax(x, 0), y, label_smoothing=0.1, **kwargs
        ),
        fullgraph=True,
        dynamic=DYNAMIC,
    )
    (got,) = torch.autograd.grad(f(leaf) * 3, leaf)
    want = F.cross_entropy(F.softmax(leaf * 2, 1).square() + F.log_softmax(leaf, 0), y, label_smoothing=0.1)
    torch.testing.assert_close(got, torch.autograd.grad(want * 3, leaf)[0])
    rows = torch.compile(lambda x: softkern.cross_entropy(x, y, reduction="none").square(), fullgraph=True)
    (got,) = torch.autograd.grad(rows(leaf).sum(), leaf)
    want = F.cross_entropy(leaf, y, reduction="none").square().sum()
    torch.testing.assert_close(got, torch.autograd.grad(want, leaf)[0])
print("compiled")
"""


@pytest.mark.inductor
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs g++")
@pytest.mark.parametrize("dynamic", (False, True))
def test_no_op_is_a_surprise(dynamic):
    """In a process of its own, that has not compiled before; nothing comes from the cache on disk."""
    code = STRICT.replace("DYNAMIC", str(dynamic))
    # torch warns that its caches are off.
    result = python("-W", "default", "-c", code, TORCHINDUCTOR_FORCE_DISABLE_CACHES="1")
    assert result.stdout == "compiled\n", result.stderr
