# SPDX-License-Identifier: Apache-2.0
"""What ranks tell each other: the numbers of their parts of the rows, in one all-gather.

With many rows and slow links, an all-to-all by which each rank merges some rows, and an all-gather of what it
has merged, send less (`softkern.parallel.cost`). Both give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from softkern.parallel import _collectives as collectives
from softkern.parallel._vocabulary import Node, Vocabulary

if TYPE_CHECKING:
    from softkern.parallel._rows import Shard

_ops = torch.ops.softkern

# The numbers of a part, in the order of PartNumber (csrc/common/options.h).
MAX, TIES, REST, TERMS_BELOW, MASS, MASS_BELOW, HOT_Z = range(7)


def neutral(numbers: Tensor, nodes: int) -> Tensor:
    """The numbers of `nodes` parts without classes, in the form of `numbers`."""
    empty = numbers.new_zeros(numbers.shape[0], nodes, numbers.shape[2])
    empty[MAX] = -torch.inf
    return empty


def merge_own(x: Tensor, parts: Tensor, shard: Shard) -> Tensor:
    """The numbers of this rank's nodes from those of its tiles, and of as many nodes as any rank has."""
    nodes = []
    begin = 0
    for node in shard.nodes:
        tiles = parts[:, begin : begin + (1 << node.level)]
        nodes.append(_ops.row_parts_merge(x, tiles) if node.level else tiles[:, 0])
        begin += 1 << node.level
    own = torch.stack(nodes, 1) if nodes else parts[:, :0]
    missing = shard.vocabulary.most_nodes - len(nodes)
    return torch.cat((own, neutral(own, missing)), 1) if missing else own


def merge_all(x: Tensor, gathered: Tensor, vocabulary: Vocabulary) -> Tensor:
    """(numbers, parts, rows) that `row_parts_results` merges into whole rows.

    `gathered`: (ranks, numbers, nodes, rows).
    """
    found: list[tuple[Node, Tensor]] = []
    levels = [[node.level for node in nodes] for nodes in vocabulary.nodes]
    if len(levels[0]) == 1 and all(of_rank == levels[0] for of_rank in levels):
        return gathered[:, :, 0].movedim(0, 1)
    for rank, nodes in enumerate(vocabulary.nodes):
        for i, node in enumerate(nodes):
            found.append((node, gathered[rank, :, i]))
            while len(found) > 1 and found[-1][0].level == found[-2][0].level:
                (node, right), (_, left) = found.pop(), found.pop()
                merged = _ops.row_parts_merge(x, torch.stack((left, right), 1))
                found.append((Node(node.level + 1, node.place >> 1), merged))
    return torch.stack([numbers for _, numbers in found], 1)


def gather(numbers: Tensor, shard: Shard) -> Callable[[], Tensor]:
    """Begins to send (numbers, rows). The result waits for those of all ranks: (ranks, numbers, rows)."""
    wait = collectives.begin_all_gather(numbers.flatten(), shard.group)
    return lambda: wait().view(shard.vocabulary.ranks, *numbers.shape)


def to_row_owners(numbers: Tensor, shard: Shard) -> Callable[[], Tensor]:
    """Begins to send each rank its share of the rows, whose number is a multiple of that of the ranks. The
    result waits for what all ranks have sent: (ranks, numbers, rows of a rank)."""
    ranks = shard.vocabulary.ranks
    by_rank = numbers.view(numbers.shape[0], ranks, numbers.shape[1] // ranks).movedim(1, 0).contiguous()
    return collectives.begin_all_to_all(by_rank, shard.group)
