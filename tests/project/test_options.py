# SPDX-License-Identifier: Apache-2.0
"""One list of options: csrc/common/options.h, softkern/options.py and the schemas have the same."""

import inspect
import re
from typing import get_type_hints

import pytest
import torch
from places import ROOT

import softkern
from softkern.options import OUTPUTS, PLANS, CrossEntropyOptions, LinearOptions, RowOptions

LIST = (ROOT / "csrc/common/options.h").read_text()
OF_PLANS = (ROOT / "csrc/ops/options.h").read_text()
TYPES = {"int": "int", "SymInt": "int", "float": "float"}
TENSORS = ("self", "target", "weight", "row_weight", "num_items", "target_probs")
LAYER = ("input", "linear_weight", "linear_bias", *TENSORS[1:])


def listed(macro: str, text: str = LIST) -> list[tuple[str, str, str]]:
    """(kind, name, default) of each option."""
    (lines,) = re.findall(rf"^#define {macro}\(OPTION\)\s*\\\n((?:  OPTION.*\n)+)", text, re.MULTILINE)
    return re.findall(r"^  OPTION\((\w+), (\w+), (\S+)\)", lines, re.MULTILINE)


OF_TORCH = listed("SOFTKERN_CROSS_ENTROPY_OPTIONS")
ALL = [*OF_TORCH, *listed("SOFTKERN_OWN_OPTIONS")]
LINEAR = [*ALL, *listed("SOFTKERN_LINEAR_OPTIONS", OF_PLANS)]
LISTS = ((OF_TORCH, CrossEntropyOptions), (ALL, RowOptions), (LINEAR, LinearOptions))
# op: (tensors, options)
OPS = {
    **{f"cross_entropy{suffix}": (TENSORS[:3], *LISTS[0]) for suffix in ("", "_", "_forward", "_forward_")},
    **{f"row_losses{suffix}": (TENSORS, *LISTS[1]) for suffix in ("", "_", "_forward", "_forward_")},
    **{f"row_losses_backward{suffix}": (TENSORS, *LISTS[1]) for suffix in ("", "_")},
    **{f"linear_cross_entropy{suffix}": (LAYER, *LISTS[2]) for suffix in ("", "_forward", "_backward")},
}


@pytest.mark.parametrize(("options", "fields"), LISTS, ids=("cross_entropy", "row_losses", "linear"))
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


def test_python_has_the_plans_of_cpp():
    (found,) = re.findall(r"^enum Plan : int64_t {(.*?)};", OF_PLANS, re.MULTILINE)
    assert re.findall(r"k(\w+)Plan = (\d)", found) == [(p.title(), str(i)) for i, p in enumerate(PLANS)]
    assert LinearOptions(1, z_loss=0.5, plan=2).of_rows == RowOptions(1, z_loss=0.5)


@pytest.mark.parametrize("op", OPS)
def test_schemas_have_the_list(op):
    tensors, options, fields = OPS[op]
    schema = getattr(torch.ops.softkern, op).default._schema
    others = ("need_grad", "needs", "numbers")
    named = [a.name for a in schema.arguments if a.name not in others and not a.name.startswith("grad_")]
    assert named == [*tensors, *(name for _, name, _ in options)]
    assert all(f"{kind} {name}" in str(schema) for kind, name, _ in options)
    defaults = [a.default_value for a in schema.arguments if a.name in fields._fields]
    with_defaults = op.removesuffix("_") in ("cross_entropy", "row_losses", "linear_cross_entropy")
    assert defaults == (list(fields()) if with_defaults else [None] * len(options))


@pytest.mark.parametrize(
    "function",
    (
        softkern.cross_entropy,
        softkern.CrossEntropyLoss.__init__,
        softkern.linear_cross_entropy,
        softkern.LinearCrossEntropyLoss.__init__,
    ),
)
def test_functions_and_modules_take_every_option(function):
    parameters = inspect.signature(function).parameters
    # What the user leaves out, and what he asks for by name.
    public = {"reduction": "mean", "valid_classes": None, "softcap": None}
    if "options" in parameters:  # as torch's function of this name has it
        public["ignore_index"] = None
    for name, default in RowOptions()._asdict().items():
        if name == "outputs":
            assert parameters["stats"].default == ()
        else:
            assert parameters[name].default == public.get(name, default)
