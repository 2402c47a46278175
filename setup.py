# SPDX-License-Identifier: Apache-2.0
"""Builds softkern: an extension for this torch, or with SOFTKERN_LIBRARIES a wheel for every torch.
Metadata is in pyproject.toml."""

import os
import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).resolve().parent / "tools"))  # a build backend does not run a script

if libraries := os.environ.get("SOFTKERN_LIBRARIES"):
    from wheel_setup import arguments

    setup(**arguments(libraries))
else:
    import source_setup

    setup(**source_setup.arguments())
