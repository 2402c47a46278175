# SPDX-License-Identifier: Apache-2.0
"""How this process uses Triton."""

from __future__ import annotations

import os

# Triton reads this variable when kernels are decorated, so its value must be known when this is imported.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "") == "1"
