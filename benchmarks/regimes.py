# SPDX-License-Identifier: Apache-2.0
"""Allocator regimes: the state of the memory that results are written to, set before a worker starts.

A fresh output of some MiB costs more in page faults than in writing it, and whether an output is fresh
depends on the allocator and on what was freed before. So it is chosen, not met by chance, and a provider is
compared with others in the same regime only. The faults of a call are counted beside its time.
"""

from __future__ import annotations

REGIMES = {
    "default": "the allocator as it comes: large outputs are fresh 4 KiB pages",
    "hugepages": "torch with THP_MEM_ALLOC_ENABLE=1: large outputs are fresh huge pages",
    "preallocated": "memory that was touched before: out=, bound outputs, or a heap that keeps its pages",
}
# Smaller outputs come from the heap's warm pages in any regime.
SMALLEST = 1 << 20  # bytes


def environment(regime: str) -> dict[str, str]:
    """What holds of every provider; their own part is Provider.environment."""
    if regime != "preallocated":
        return {}
    # glibc: never map an allocation of its own, never give the heap's pages back, one heap for all threads.
    return {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 46),
        "MALLOC_TOP_PAD_": str(64 << 20),
        "MALLOC_ARENA_MAX": "1",
    }
