# SPDX-License-Identifier: Apache-2.0
"""What some tests need of a machine, and why it has not got it."""

from __future__ import annotations

import os
import shutil
import tempfile

import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir


def why_no_inductor() -> str:
    """It needs g++, and hands it the paths of torch and of its own files without quotes."""
    if not shutil.which("g++"):
        return "inductor needs g++"
    cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or default_cache_dir()
    folders = (*torch.__path__, tempfile.gettempdir(), cache)
    spaced = [folder for folder in folders if len(folder.split()) > 1]
    return f"inductor can't compile where a folder's name has a space: {spaced[0]}" if spaced else ""
