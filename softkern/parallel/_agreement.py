# SPDX-License-Identifier: Apache-2.0
"""Whether the ranks of a group call with arguments that fit together."""

from __future__ import annotations

import weakref
from typing import Any


class RemoteError(RuntimeError):
    """Another rank of the group has failed, so this rank has no result."""


# What all ranks have told by what this rank has told, for each group. A group that is gone leaves no trace.
_AGREED: weakref.WeakKeyDictionary[Any, dict[Any, list[Any]]] = weakref.WeakKeyDictionary()


def agreed(group: Any, own: tuple[Any, ...], shared: dict[str, Any]) -> list[Any]:
    """`own` of each rank, after it is known that `shared` is equal on all of them.

    The ranks tell each other, unless this rank has told the same before.

    Raises:
        ValueError: on all ranks, if they differ; it names the argument and what each rank has.
        RemoteError: another rank tells that it has failed (`tell_failure`).
    """
    known = _AGREED.setdefault(group, {})
    key = (own, *shared.values())
    if key not in known:
        told = _told(group, (own, shared, None))
        for rank, (_, _, failure) in enumerate(told):
            if failure is not None:
                raise RemoteError(f"rank {rank} of the group has failed: {failure}")
        for name in shared:
            values = [of_rank[1].get(name) for of_rank in told]
            if any(value != values[0] for value in values):
                listed = "; ".join(f"rank {rank}: {value}" for rank, value in enumerate(values))
                raise ValueError(f"the ranks of the group must agree on {name}, got {listed}")
        known[key] = [of_rank[0] for of_rank in told]
    return known[key]


def tell_failure(group: Any, error: Exception) -> None:
    """Tells the ranks that wait in `agreed` that this one has nothing to agree on."""
    _told(group, (None, {}, f"{type(error).__name__}: {error}"))


def _told(group: Any, told: Any) -> list[Any]:
    import torch.distributed as dist

    everything: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everything, told, group=group)
    return everything
