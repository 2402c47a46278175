# SPDX-License-Identifier: Apache-2.0
"""torch's own test material for the three ops: OpInfo samples, ModuleInfo inputs, error inputs.

python tests/support/torch_material.py docs/opinfo-counts.json     # counts what the installed torch has
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from places import DOCS

import softkern

with warnings.catch_warnings():  # what torch's test modules do while they are imported
    warnings.simplefilter("ignore")
    reason = "torch's test material is internal and may move"
    opinfo = pytest.importorskip("torch.testing._internal.common_methods_invocations", reason=reason)
    modules = pytest.importorskip("torch.testing._internal.common_modules", reason=reason)
    utils = pytest.importorskip("torch.testing._internal.common_utils", reason=reason)

COUNTS = DOCS / "opinfo-counts.json"

FUNCTIONS = {
    "softmax": (softkern.softmax, F.softmax),
    "log_softmax": (softkern.log_softmax, F.log_softmax),
    "nn.functional.cross_entropy": (softkern.cross_entropy, F.cross_entropy),
}
OPS = [op for op in opinfo.op_db if op.name in FUNCTIONS]
MODULES = [m for m in modules.module_db if m.name in ("nn.CrossEntropyLoss", "nn.Softmax", "nn.LogSoftmax")]


class Call(NamedTuple):
    """One call; of a module, `constructor` is what it is made of."""

    args: tuple
    kwargs: dict
    constructor: tuple[tuple, dict] | None = None


def everywhere(f: Callable, value):
    """f of every tensor, all the way down."""
    if isinstance(value, torch.Tensor):
        return f(value)
    if isinstance(value, dict):
        return {k: everywhere(f, v) for k, v in value.items()}
    return type(value)(everywhere(f, v) for v in value) if type(value) in (list, tuple) else value


def differentiable(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def noncontiguous(call: Call) -> Call:
    """Every tensor with gaps between its elements."""

    def gaps(t):
        return utils.noncontiguous_like(t) if t.numel() > 1 and t.dim() else t

    return call._replace(args=everywhere(gaps, call.args), kwargs=everywhere(gaps, call.kwargs))


def op_samples(op, dtype: torch.dtype) -> Iterator[Call]:
    for sample in op.sample_inputs("cpu", dtype, requires_grad=differentiable(dtype)):
        yield Call((sample.input, *sample.args), sample.kwargs)


def _module_call(inputs) -> Call:
    c, f = inputs.constructor_input, inputs.forward_input
    return Call(f.args, f.kwargs, (c.args, c.kwargs))


def module_samples(info, dtype: torch.dtype) -> Iterator[Call]:
    for inputs in info.module_inputs_func(info, "cpu", dtype, requires_grad=True, training=True):
        yield _module_call(inputs)


def module_errors(info, dtype: torch.dtype) -> Iterator[tuple[Call, type, str]]:
    """(call, exception, regular expression)"""
    if info.module_error_inputs_func is not None:
        for error in info.module_error_inputs_func(info, "cpu", dtype, requires_grad=True, training=True):
            yield _module_call(error.module_error_input), error.error_type, error.error_regex


def module_functions(info) -> tuple[Callable, Callable]:
    """Functions that make softkern's and torch's module for a call, and call it."""

    def of(namespace):
        def call(*args, constructor, **kwargs):
            module = getattr(namespace, info.name.removeprefix("nn."))(*constructor[0], **constructor[1])
            return module(*args, **kwargs)

        return call

    return of(softkern), of(torch.nn)


def dtypes(info) -> list[torch.dtype]:
    """All that torch says it supports on a CPU, in a fixed order."""
    return sorted(info.dtypes, key=str)


def count() -> dict:
    """{kind: {op: {dtype: how many}}}"""

    def table(infos, material):
        return {
            info.formatted_name if hasattr(info, "formatted_name") else info.name: {
                str(dtype).removeprefix("torch."): sum(1 for _ in material(info, dtype))
                for dtype in dtypes(info)
            }
            for info in infos
        }

    return {
        "torch": torch.__version__.split("+")[0],
        "op_samples": table(OPS, op_samples),
        "module_samples": table(MODULES, module_samples),
        "op_errors": {op.formatted_name: int(op.error_inputs_func is not None) for op in OPS},
        "module_errors": table(MODULES, module_errors),
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(count(), indent=1) + "\n")
