# SPDX-License-Identifier: Apache-2.0
"""The differences from torch that docs/compatibility.md lists, and its advice about them."""

from __future__ import annotations

import ctypes
import ctypes.util
import platform

import pytest
import torch
from compare import assert_same_bits
from feature_cases import both, data, leaf, over_ops

import softkern


@over_ops
def test_nodes_have_the_methods_of_torchs_and_not_its_class(op):
    ours, theirs = both(op)
    x = leaf()
    node, torchs = ours(x).grad_fn, theirs(x).grad_fn
    assert isinstance(torchs, torch.autograd.graph.Node) and not isinstance(node, torch.autograd.graph.Node)
    assert node.name().startswith("Softkern") and node.metadata == {}
    assert node.next_functions[0][0] is x.grad_fn or node.next_functions[0][0].variable is x
    seen = []
    y = ours(x)
    y.grad_fn.register_prehook(lambda gradients: seen.append(len(gradients)))
    y.grad_fn.register_hook(lambda inputs, outputs: seen.append(len(inputs)))
    y.sum().backward()
    assert seen == [1, 1]


@pytest.fixture
def rounding():
    """Sets the rounding mode of this thread."""
    set_round = ctypes.CDLL(ctypes.util.find_library("m")).fesetround
    yield set_round
    set_round(0)


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="numbers of the modes are those of x86"
)
@pytest.mark.parametrize("mode", (0x400, 0x800, 0xC00), ids=("down", "up", "to zero"))
@pytest.mark.parametrize("dtype, most", ((torch.float64, 5e-11), (torch.float32, 5e-5)))
@over_ops
def test_another_rounding_mode(op, dtype, most, mode, rounding):
    """Off by as much as stated, and only while it lasts."""
    ours, _ = both(op, dtype)
    _, exact = both(op)
    before = ours(data(dtype))
    rounding(mode)
    during = ours(data(dtype))
    rounding(0)
    torch.testing.assert_close(during.double(), exact(data(dtype).double()), rtol=most, atol=most)
    assert not during.equal(before)
    assert_same_bits(ours(data(dtype)), before)


def calls(model):
    return [node for node in model.graph.nodes if node.op.startswith("call")]


MODULES = (torch.nn.Softmax(1), torch.nn.LogSoftmax(1))


@pytest.mark.parametrize("module", MODULES, ids=lambda module: type(module).__name__)
def test_tools_that_know_modules_by_their_exact_type(module, restored):
    """As captum looks rules up, and torch.fx its leaves."""
    rules = {type(module): "torch's rule"}
    ours = getattr(softkern, type(module).__name__)(1)
    assert isinstance(ours, type(module)) and type(ours) not in rules
    x = data(torch.float32)
    (node,) = calls(torch.fx.symbolic_trace(torch.nn.Sequential(ours)))
    assert node.op == "call_function"
    softkern.install()
    model = torch.fx.symbolic_trace(torch.nn.Sequential(module))
    (node,) = calls(model)
    assert node.op == "call_module" and type(model.get_submodule(node.target)) in rules
    assert_same_bits(model(x), ours(x))
