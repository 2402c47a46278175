# SPDX-License-Identifier: Apache-2.0
"""Memory of the CPU that a call allocates, from the profiler's record of torch's allocator."""

from __future__ import annotations

from collections.abc import Callable

import torch


def peak_of(call: Callable[[], object]) -> tuple[int, int]:
    """Bytes above those at the start: the most at a time, and what the end holds with `call`'s result."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        result = call()
    changes = [
        event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    assert changes, "the profiler recorded no allocation"
    now = most = 0
    for change in changes:
        now += change
        most = max(most, now)
    del result
    return most, now
