# SPDX-License-Identifier: Apache-2.0
"""The library on torch's stable ABI: it needs nothing else of torch, and computes the same bits."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
from places import ROOT, SUPPORT

from softkern._binding import path_of

LIBRARY = path_of("stable")
pytestmark = pytest.mark.skipif(not LIBRARY.is_file(), reason="stable.so is not built")

# In names of C++, after the length of what follows.
OF_TORCHS_CXX = r"_Z.*(?<!\d)(2at|3c10|5torch|6caffe2|8pybind11)(?=[A-Z0-9])"
OF_STABLE_ABI = r"aoti_torch_|torch_"


@pytest.mark.skipif(shutil.which("nm") is None, reason="there is no nm")
def test_the_library_needs_nothing_else_of_torch():
    """C functions of the stable ABI, kernels, and the standard libraries."""
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", str(LIBRARY)], capture_output=True, text=True, check=True
    ).stdout
    names = {line.split()[-1].partition("@")[0] for line in listed.splitlines()}
    of_torch = {name for name in names if re.match(OF_STABLE_ABI, name)}
    assert "torch_call_dispatcher" in of_torch
    assert not {name for name in names if re.match(rf"{OF_TORCHS_CXX}|_?Py", name)}


def lines(binding: str | None) -> list[str]:
    variables = {name: value for name, value in os.environ.items() if name != "SOFTKERN_GLUE"}
    if binding is not None:
        variables["SOFTKERN_GLUE"] = binding
    run = subprocess.run(
        [sys.executable, str(SUPPORT / "stable_bits.py")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**variables, "PYTHONPATH": str(path_of("stable").parent.parent.parent)},
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_results_gradients_and_exceptions_are_those_of_the_best_binding():
    expected = lines(None)
    assert len(expected) > 30
    assert lines("stable") == expected
