# SPDX-License-Identifier: Apache-2.0
"""Whether the ranks of a group call with arguments that fit together."""

from __future__ import annotations

import weakref
from typing import Any

# What all ranks have told by what this rank has told, for each group. A group that is gone leaves no trace.
_AGREED: weakref.WeakKeyDictionary[Any, dict[Any, list[Any]]] = weakref.WeakKeyDictionary()


def agreed(group: Any, own: tuple[Any, ...], shared: dict[str, Any]) -> list[Any]:
    """`own` of each rank, after it is known that `shared` is equal on all of them.

    The ranks tell each other, unless this rank has told the same before.

    Raises:
        ValueError: on all ranks, if they differ; it names the argument and what each rank has.
    """
    import torch.distributed as dist

    known = _AGREED.setdefault(group, {})
    key = (own, *shared.values())
    if key not in known:
        told: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(told, (own, shared), group=group)
        for name in shared:
            values = [of_rank[1].get(name) for of_rank in told]
            if any(value != values[0] for value in values):
                listed = "; ".join(f"rank {rank}: {value}" for rank, value in enumerate(values))
                raise ValueError(f"the ranks of the group must agree on {name}, got {listed}")
        known[key] = [of_rank[0] for of_rank in told]
    return known[key]
