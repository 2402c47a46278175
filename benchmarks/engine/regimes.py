# SPDX-License-Identifier: Apache-2.0
"""Allocator regimes: the state of the memory for results, set before a worker starts.

For a fresh output of some MiB, page faults cost more than writing it. Whether an output is fresh depends on
the allocator and on what was freed before. So a run chooses this state, and compares providers only within
one regime. Page faults are counted together with the time of a call.
"""

from __future__ import annotations

REGIMES = {
    "default": "glibc's malloc as in a long-running process: outputs above 32 MiB are fresh 4 KiB pages",
    "hugepages": "torch with THP_MEM_ALLOC_ENABLE=1: large outputs are fresh huge pages",
    "preallocated": "memory that was touched before: out=, bound outputs, or a heap that keeps its pages",
}
HUGE_PAGE = 2 << 20  # bytes
MAPPED = 32 << 20  # bytes: glibc's largest threshold
# Smaller outputs come from warm pages of the heap in every regime.
SMALLEST = 1 << 20  # bytes


def environment(regime: str) -> dict[str, str]:
    """Variables for every provider; Provider.environment adds its own."""
    if regime != "preallocated":
        # By default, glibc moves both thresholds when memory is freed, the first one up to 32 MiB. A few
        # bytes then decide whether it gives the top of the heap back: of two equal processes, one has page
        # faults in every call and the other never. So the first threshold is fixed at its final value, and
        # the heap keeps its top, as if something lay above it.
        return {"MALLOC_MMAP_THRESHOLD_": str(MAPPED), "MALLOC_TRIM_THRESHOLD_": str(1 << 46)}
    # glibc: never map single allocations, never give pages of the heap back, one heap for all threads.
    return {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 46),
        "MALLOC_TOP_PAD_": str(64 << 20),
        "MALLOC_ARENA_MAX": "1",
    }
