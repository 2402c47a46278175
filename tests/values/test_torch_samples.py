# SPDX-License-Identifier: Apache-2.0
"""torch's own test material, run with softkern: every sample in every dtype, and every error."""

from __future__ import annotations

import json

import pytest
import torch
import torch_material as material
from cases import name
from torch_material import MODULES, OPS, differentiable, dtypes, everywhere
from torch_material_checks import check

OVER_OPS = [pytest.param(op, t, id=f"{op.formatted_name}-{name(t)}") for op in OPS for t in dtypes(op)]
OVER_MODULES = [pytest.param(m, t, id=f"{m.name}-{name(t)}") for m in MODULES for t in dtypes(m)]
COUNTS = json.loads(material.COUNTS.read_text()) if material.COUNTS.is_file() else None


def only_the_first(call):
    """A gradient wanted in the logits alone: what the kernels compute."""
    first, *rest = call.args
    return call._replace(args=(first, *everywhere(torch.Tensor.detach, rest)))


def check_every_way(functions, call, dtype, relative):
    """Contiguous and not; without gradients, with that of the logits, with all."""
    for given in (call, material.noncontiguous(call)):
        assert check(*functions, given, relative=relative).error is None
        if differentiable(dtype):
            check(*functions, only_the_first(given), gradients=True, relative=relative)
            check(*functions, given, gradients=True, relative=relative)


def as_counted(kind, info, dtype, found):
    if COUNTS is None:
        pytest.skip("no docs beside these tests to compare the number of samples with")
    table = COUNTS[kind][getattr(info, "formatted_name", info.name)]
    assert found >= table.get(name(dtype), 0), "torch has fewer samples than docs/opinfo-counts.json says"


@pytest.mark.parametrize(("op", "dtype"), OVER_OPS)
def test_op_samples(op, dtype):
    found = 0
    for call in material.op_samples(op, dtype):
        check_every_way(material.FUNCTIONS[op.name], call, dtype, op.name == "softmax")
        found += 1
    assert found
    as_counted("op_samples", op, dtype, found)


@pytest.mark.parametrize(("info", "dtype"), OVER_MODULES)
def test_module_samples(info, dtype):
    found = 0
    for call in material.module_samples(info, dtype):
        check_every_way(material.module_functions(info), call, dtype, info.name == "nn.Softmax")
        found += 1
    assert found
    as_counted("module_samples", info, dtype, found)


@pytest.mark.parametrize(("info", "dtype"), OVER_MODULES)
def test_module_errors(info, dtype):
    found = 0
    for call, error_type, regex in material.module_errors(info, dtype):
        for given in (call, material.noncontiguous(call)):
            error = check(*material.module_functions(info), given).error
            assert isinstance(error, error_type), "torch itself does not raise what its material says"
            with pytest.raises(error_type, match=regex):
                raise error
        found += 1
    as_counted("module_errors", info, dtype, found)


# Making complex32 warns.
pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
EVERY_DTYPE = {t for t in vars(torch).values() if isinstance(t, torch.dtype)}


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.formatted_name)
def test_dtypes_that_torch_does_not_support(op):
    """The samples in all other dtypes: torch's exception, or its value where it computes them after all."""
    others, tried = sorted(EVERY_DTYPE - set(op.dtypes), key=str), 0
    for dtype in others:
        for call in list(material.op_samples(op, torch.float32))[:3]:
            try:
                x = call.args[0].detach().to(dtype)
            except (NotImplementedError, RuntimeError, TypeError):
                continue  # torch can't make such a tensor
            check(*material.FUNCTIONS[op.name], call._replace(args=(x, *call.args[1:])))
            tried += 1
    assert tried >= 3


@pytest.mark.skipif(COUNTS is None, reason="no docs beside these tests")
def test_the_committed_counts_are_those_of_this_torch():
    """Of the version they were counted with; of a later one they are the least there must be."""
    if torch.__version__.split("+")[0] != COUNTS["torch"]:
        pytest.skip(f"counted with torch {COUNTS['torch']}: each test compares its own number")
    assert material.count() == COUNTS, "python tests/support/torch_material.py docs/opinfo-counts.json"
    assert not any(COUNTS["op_errors"].values()), "torch now has error inputs for these ops: put them to use"
