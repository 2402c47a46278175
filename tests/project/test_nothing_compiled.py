# SPDX-License-Identifier: Apache-2.0
"""softkern without anything compiled (``softkern._binding.none``), as the wheel for other systems has it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from places import SUPPORT, tool


def run(**variables: str) -> None:
    command = [sys.executable, "-W", "ignore", str(SUPPORT / "nothing_compiled_checks.py")]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SOFTKERN", "TRITON"))}
    env |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "SOFTKERN_GLUE": "none", **variables}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_torch_computes_and_what_is_missing_is_said():
    run()


@pytest.mark.skipif(find_spec("triton") is None, reason="the Triton backend needs Triton")
def test_triton_computes():
    run(TRITON_INTERPRET="1")


def test_the_ops_are_those_of_the_compiled_ones():
    schemas = tool("write_schemas")
    assert schemas.PATH.read_text() == schemas.schemas(), "run tools/write_schemas.py"
