# SPDX-License-Identifier: Apache-2.0
"""The CPU's instruction sets, by the extension's own registry."""

from __future__ import annotations

import os

import softkern

ISAS = tuple(name for name, _, _ in softkern._C.isas())  # best first
FORCED_ISA = os.environ.get("SOFTKERN_CPU_ISA", "")


def cpu_isas() -> list[softkern.Backend]:
    """Only the forced one if one is forced."""
    return [b for b in softkern.backends() if b.name in ISAS and FORCED_ISA in ("", b.name)]
