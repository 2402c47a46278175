# SPDX-License-Identifier: Apache-2.0
"""Compares softkern/_C.pyi, which mypy uses, with the extension."""

from __future__ import annotations

import ast
import re

from places import ROOT

from softkern import _C
from softkern._binding import c_api
from softkern.options import CrossEntropyOptions, LinearOptions, RowOptions

STUB = ROOT / "softkern" / "_C.pyi"


# What `*options` stands for in the stub.
OPTIONS, ROW_OPTIONS = len(CrossEntropyOptions._fields), len(RowOptions._fields)
EXPANDED = {
    "cross_entropy": OPTIONS + 1,
    "takes_cross_entropy": OPTIONS,
    "row_losses": ROW_OPTIONS + 1,
    "takes_row_losses": ROW_OPTIONS,
    "row_losses_in_aten": ROW_OPTIONS,
    **dict.fromkeys(
        ("linear_cross_entropy", "takes_linear_cross_entropy", "linear_cross_entropy_in_aten"),
        len(LinearOptions._fields),
    ),
    "row_losses_step": 24,
}


def stated() -> dict[str, int]:
    """Functions and how many arguments they take."""
    definitions = [node for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.FunctionDef)]
    assert {node.name for node in definitions if node.args.vararg} == EXPANDED.keys()
    return {
        node.name: len(node.args.posonlyargs + node.args.args) + EXPANDED.get(node.name, 0)
        for node in definitions
    }


def compiled() -> dict[str, int]:
    """The same as pybind11 writes it into the docstrings."""
    functions = {
        name: getattr(_C, name).__doc__ for name in dir(_C) if not name.startswith("_") and name != "binding"
    }
    return {
        name: len(re.findall(r"\b(?:arg\d+|\w+): ", doc.partition("->")[0]))
        for name, doc in functions.items()
    }


def test_the_stub_names_what_the_extension_has() -> None:
    assert stated() == {**compiled(), "binding": 0}


def test_ctypes_names_what_the_library_has() -> None:
    """Each function of csrc/c_api.cpp, and nothing else, is called; each is one of the stub's."""
    text = (ROOT / "csrc" / "c_api.cpp").read_text()
    exported = set(re.findall(r"^SOFTKERN_C [\w* ]+\bsoftkern_(\w+)\(", text, flags=re.M))
    of_probes = {"raise", "set_onnx_probe"}
    public = {name for name in vars(c_api.CApi) if not name.startswith("_")}
    assert exported - of_probes == public
    assert public <= stated().keys()


def test_calls_through_the_dispatcher_are_all_others() -> None:
    """What neither the library of C nor Python has, csrc/entry.h has."""
    text = (ROOT / "csrc" / "entry.h").read_text()
    entries = set(re.findall(r'^  f\("(\w+)"', text, flags=re.M)) | {"softmax", "log_softmax"}
    in_python = {"binding", "makes_a_graph", "put_behind", "take_away"}
    public = {name for name in vars(c_api.CApi) if not name.startswith("_")}
    assert entries == stated().keys() - public - in_python
