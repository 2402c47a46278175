# SPDX-License-Identifier: Apache-2.0
"""cost"""
LINKS = {"nccl": (12e-6, 300e9)}
OTHER = (50e-6, 1.25e9)
def prefers_rows(backend: str, ranks: int, rows: int) -> bool:
    return False
