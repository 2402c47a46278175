# SPDX-License-Identifier: Apache-2.0
"""The CPU's merge of statistics of a row's parts, in a program without torch."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from places import ROOT
from programs import compiled

pytestmark = pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="no C++ sources beside these tests")


def test_merged_parts_are_as_exact_as_the_contract_says(tmp_path: Path) -> None:
    flags = ("-O2", "-w", "-ffp-contract=off", "-fno-math-errno")
    program = compiled(tmp_path / "merge", *flags, "tests/native/merge.cpp")
    done = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
