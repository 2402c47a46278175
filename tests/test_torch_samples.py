# SPDX-License-Identifier: Apache-2.0
"""torch's own test material, put to softkern: sample inputs, module inputs and error inputs."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from tolerances import DTYPES

import softkern

with warnings.catch_warnings():  # what torch's test modules do while they are imported
    warnings.simplefilter("ignore")
    opinfo = pytest.importorskip(
        "torch.testing._internal.common_methods_invocations",
        reason="torch's test material is internal and may move",
    )
    modules = pytest.importorskip(
        "torch.testing._internal.common_modules",
        reason="torch's test material is internal and may move",
    )

OURS = {
    "softmax": softkern.softmax,
    "log_softmax": softkern.log_softmax,
    "nn.functional.cross_entropy": softkern.cross_entropy,
}
THEIRS = {
    "softmax": F.softmax,
    "log_softmax": F.log_softmax,
    "nn.functional.cross_entropy": F.cross_entropy,
}
OPS = [op for op in opinfo.op_db if op.name in OURS]
MODULES = [m for m in modules.module_db if m.name in ("nn.CrossEntropyLoss", "nn.Softmax", "nn.LogSoftmax")]


def close(actual, expected):
    # Two roundings to 16 bits apart at most; in float32 and float64 torch's own error.
    eps = torch.finfo(actual.dtype).eps
    tight = {"rtol": 16 * eps, "atol": 16 * eps}
    torch.testing.assert_close(actual, expected, equal_nan=True, **tight)


def wide(value):
    """Of float64, all the way down."""
    if isinstance(value, torch.Tensor):
        return value.detach().double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {k: wide(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(wide(v) for v in value)
    return torch.float64 if isinstance(value, torch.dtype) else value


def value_and_gradient(f, x, args, kwargs):
    x = x.detach().requires_grad_()
    y = f(x, *args, **kwargs)
    g = torch.full_like(y, 0.5).cumsum(-1) if y.dim() else torch.full_like(y, 0.5)
    return y.detach(), torch.autograd.grad(y, x, g)[0]


def test_the_material_is_there():
    assert len(OPS) >= 5 and len(MODULES) == 3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.formatted_name)
def test_sample_inputs(op, dtype):
    """In every dtype against torch in float64, contiguous and not."""
    count = 0
    for given in op.sample_inputs("cpu", dtype, requires_grad=False):
        for sample in (given, given.noncontiguous()):
            x, args, kwargs = sample.input, sample.args, sample.kwargs
            got = value_and_gradient(OURS[op.name], x, args, kwargs)
            want = value_and_gradient(THEIRS[op.name], wide(x), wide(args), wide(kwargs))
            for a, b in zip(got, want, strict=True):
                close(a, b.to(a.dtype))
            count += 1
    assert count >= 4


def call_module(info, inputs):
    """(softkern's, torch's) output for one ModuleInput."""
    results = []
    for namespace in (softkern, torch.nn):
        c, f = inputs.constructor_input, inputs.forward_input
        module = getattr(namespace, info.name.removeprefix("nn."))(*c.args, **c.kwargs)
        results.append(module(*f.args, **f.kwargs))
    return results


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("info", MODULES, ids=lambda m: m.name)
@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
def test_module_inputs(info, dtype):
    samples = info.module_inputs_func(info, "cpu", dtype, requires_grad=False, training=True)
    assert samples
    for inputs in samples:
        close(*call_module(info, inputs))


def test_module_error_inputs():
    (info,) = (m for m in MODULES if m.name == "nn.CrossEntropyLoss")
    samples = info.module_error_inputs_func(info, "cpu", torch.float32, requires_grad=False, training=True)
    assert len(samples) >= 5
    for error in samples:
        inputs = error.module_error_input
        with pytest.raises(error.error_type, match=error.error_regex):
            c, f = inputs.constructor_input, inputs.forward_input
            softkern.CrossEntropyLoss(*c.args, **c.kwargs)(*f.args, **f.kwargs)
