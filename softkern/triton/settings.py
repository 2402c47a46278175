# SPDX-License-Identifier: Apache-2.0
"""Under which conditions this process uses Triton."""

from __future__ import annotations

import os

# Triton reads the variable where kernels are decorated, so that it has to be known when this is imported.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "") == "1"
