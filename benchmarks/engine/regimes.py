# SPDX-License-Identifier: Apache-2.0
"""Allocator regimes: the state of the memory that results are written to, set before a worker starts.

A fresh output of some MiB costs more in page faults than in writing it, and whether an output is fresh
depends on the allocator and on what was freed before. So it is chosen, not met by chance, and a provider is
compared with others in the same regime only. The faults of a call are counted beside its time.
"""

from __future__ import annotations

REGIMES = {
    "default": "glibc's malloc as in a long-running process: outputs above 32 MiB are fresh 4 KiB pages",
    "hugepages": "torch with THP_MEM_ALLOC_ENABLE=1: large outputs are fresh huge pages",
    "preallocated": "memory that was touched before: out=, bound outputs, or a heap that keeps its pages",
}
HUGE_PAGE = 2 << 20  # bytes
MAPPED = 32 << 20  # bytes: glibc's largest threshold
# Smaller outputs come from the heap's warm pages in any regime.
SMALLEST = 1 << 20  # bytes


def environment(regime: str) -> dict[str, str]:
    """What holds of every provider; their own part is Provider.environment."""
    if regime != "preallocated":
        # Left to itself, glibc moves both thresholds with what is freed, the first up to 32 MiB, and gives
        # the heap's top back or not depending on some bytes: one of two equal processes then faults in every
        # call and the other never. So: where it ends, and as if something lay above.
        return {"MALLOC_MMAP_THRESHOLD_": str(MAPPED), "MALLOC_TRIM_THRESHOLD_": str(1 << 46)}
    # glibc: never map an allocation of its own, never give the heap's pages back, one heap for all threads.
    return {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 46),
        "MALLOC_TOP_PAD_": str(64 << 20),
        "MALLOC_ARENA_MAX": "1",
    }
