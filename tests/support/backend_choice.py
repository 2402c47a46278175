# SPDX-License-Identifier: Apache-2.0
"""What the tests of the choice between backends share."""

from __future__ import annotations

import sys
import types

backends = sys.modules["softkern.backends"]  # the function has the module's name


def registers(monkeypatch, calls: list[str]) -> None:
    """Instead of importing softkern.triton, as that does by itself."""
    module = types.SimpleNamespace(register=lambda: calls.append("registered"))
    monkeypatch.setattr(backends, "import_module", lambda name: calls.append(name) or module)
