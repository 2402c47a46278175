# SPDX-License-Identifier: Apache-2.0
"""Write softkern/_binding/none/schemas.txt: the ops of csrc/ops/ops.h for an installation without them.

python tools/write_schemas.py
"""

from __future__ import annotations

from pathlib import Path

import torch

from softkern import _C

PATH = Path(__file__).resolve().parent.parent / "softkern/_binding/none/schemas.txt"


def schemas() -> str:
    every = (str(getattr(torch.ops.softkern, name).default._schema) for name in _C.op_names())
    return "".join(schema.removeprefix("softkern::") + "\n" for schema in every)


if __name__ == "__main__":
    PATH.write_text(schemas())
