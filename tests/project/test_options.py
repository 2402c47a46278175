# SPDX-License-Identifier: Apache-2.0
"""One list of options: csrc/common/options.h, softkern/options.py and the schemas have the same."""

import inspect
import re
from typing import get_type_hints

import pytest
import torch
from places import ROOT

import softkern
from softkern.options import OUTPUTS, CrossEntropyOptions, RowOptions

LIST = (ROOT / "csrc/common/options.h").read_text()
TYPES = {"int": "int", "SymInt": "int", "float": "float"}
TENSORS = ("self", "target", "weight", "row_weight", "num_items", "target_probs")


def listed(macro: str) -> list[tuple[str, str, str]]:
    """(kind, name, default) of each option."""
    (lines,) = re.findall(rf"^#define {macro}\(OPTION\)\s*\\\n((?:  OPTION.*\n)+)", LIST, re.MULTILINE)
    return re.findall(r"^  OPTION\((\w+), (\w+), (\S+)\)", lines, re.MULTILINE)


OF_TORCH = listed("SOFTKERN_CROSS_ENTROPY_OPTIONS")
ALL = [*OF_TORCH, *listed("SOFTKERN_OWN_OPTIONS")]
LISTS = ((OF_TORCH, CrossEntropyOptions), (ALL, RowOptions))
# op: (tensors, options)
OPS = {
    **{f"cross_entropy{suffix}": (TENSORS[:3], *LISTS[0]) for suffix in ("", "_", "_forward", "_forward_")},
    **{f"row_losses{suffix}": (TENSORS, *LISTS[1]) for suffix in ("", "_", "_forward", "_forward_")},
    **{f"row_losses_backward{suffix}": (TENSORS, *LISTS[1]) for suffix in ("", "_")},
}


@pytest.mark.parametrize(("options", "fields"), LISTS, ids=("cross_entropy", "row_losses"))
def test_python_has_the_list_of_cpp(options, fields):
    typed = {name: t.__name__ for name, t in get_type_hints(fields).items()}
    assert [(TYPES[kind], name) for kind, name, _ in options] == [(t, name) for name, t in typed.items()]
    assert [float(default) for *_, default in options] == [float(v) for v in fields()]


def test_python_has_the_outputs_of_cpp():
    (found,) = re.findall(r"^enum Output : int64_t {(.*?)};", LIST, re.MULTILINE | re.DOTALL)
    bits = {name: int(bit) for name, bit in re.findall(r"k(\w+) = (\d+)", found)}
    assert list(bits.items()) == [(name.title().replace("_", ""), bit) for name, bit in OUTPUTS.items()]
    assert [a.name for a in torch.ops.softkern.row_losses.default._schema.returns] == list(OUTPUTS)
    assert list(OUTPUTS)[1:] == list(softkern.RowStats._fields)


@pytest.mark.parametrize("op", OPS)
def test_schemas_have_the_list(op):
    tensors, options, fields = OPS[op]
    schema = getattr(torch.ops.softkern, op).default._schema
    named = [a.name for a in schema.arguments if a.name != "need_grad" and not a.name.startswith("grad_")]
    assert named == [*tensors, *(name for _, name, _ in options)]
    assert all(f"{kind} {name}" in str(schema) for kind, name, _ in options)
    defaults = [a.default_value for a in schema.arguments if a.name in fields._fields]
    with_defaults = op.removesuffix("_") in ("cross_entropy", "row_losses")
    assert defaults == (list(fields()) if with_defaults else [None] * len(options))


@pytest.mark.parametrize("function", (softkern.cross_entropy, softkern.CrossEntropyLoss.__init__))
def test_functions_and_modules_take_every_option(function):
    parameters = inspect.signature(function).parameters
    # What the user leaves out, and what he asks for by name.
    public = {"reduction": "mean", "valid_classes": None, "softcap": None}
    for name, default in RowOptions()._asdict().items():
        if name == "outputs":
            assert parameters["stats"].default == ()
        else:
            assert parameters[name].default == public.get(name, default)
