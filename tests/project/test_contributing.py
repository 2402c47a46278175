# SPDX-License-Identifier: Apache-2.0
"""The lists of files in CONTRIBUTING.md, held against an example of each kind of change."""

import subprocess
import sys

import pytest
from places import ROOT

SCRIPT = ROOT / "tools/files_per_change.py"


@pytest.mark.skipif(not SCRIPT.is_file(), reason="no tools beside these tests")
def test_a_change_touches_the_files_that_the_page_lists():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
