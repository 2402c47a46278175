# SPDX-License-Identifier: Apache-2.0
"""Where things are, for tests that read files or start programs."""

from __future__ import annotations

from pathlib import Path

SUPPORT = Path(__file__).resolve().parent
TESTS = SUPPORT.parent
ROOT = TESTS.parent
DOCS, EXAMPLES = ROOT / "docs", ROOT / "examples"
