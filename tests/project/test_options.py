# SPDX-License-Identifier: Apache-2.0
"""One list of options: csrc/common/options.h, softkern/options.py and the schemas have the same."""

import inspect
import re
from typing import get_type_hints

import pytest
import torch
from places import ROOT

import softkern
from softkern.options import CrossEntropyOptions

LIST = (ROOT / "csrc/common/options.h").read_text()
TYPES = {"int": "int", "SymInt": "int", "float": "float"}
OPS = ("cross_entropy", "cross_entropy_", "cross_entropy_forward", "cross_entropy_forward_")


def listed() -> list[tuple[str, str, str]]:
    """(kind, name, default) of each option."""
    macro = LIST[LIST.index("#define SOFTKERN_CROSS_ENTROPY_OPTIONS") :]
    return re.findall(r"^  OPTION\((\w+), (\w+), (\S+)\)", macro, re.MULTILINE)


def test_python_has_the_list_of_cpp():
    fields = {name: t.__name__ for name, t in get_type_hints(CrossEntropyOptions).items()}
    assert [(TYPES[kind], name) for kind, name, _ in listed()] == [(t, name) for name, t in fields.items()]
    assert [float(default) for *_, default in listed()] == [float(v) for v in CrossEntropyOptions()]


@pytest.mark.parametrize("op", OPS)
def test_schemas_have_the_list(op):
    schema = getattr(torch.ops.softkern, op).default._schema
    arguments = [a for a in schema.arguments[3:] if a.name != "need_grad"]
    assert [a.name for a in arguments] == [name for _, name, _ in listed()]
    assert all(f"{kind} {name}" in str(schema) for kind, name, _ in listed())
    defaults = [a.default_value for a in arguments]
    assert defaults == ([None] * len(arguments) if "forward" in op else list(CrossEntropyOptions()))


@pytest.mark.parametrize("function", (softkern.cross_entropy, softkern.CrossEntropyLoss.__init__))
def test_functions_and_modules_take_every_option(function):
    parameters = inspect.signature(function).parameters
    for name, default in CrossEntropyOptions()._asdict().items():
        assert parameters[name].default == ("mean" if name == "reduction" else default)
