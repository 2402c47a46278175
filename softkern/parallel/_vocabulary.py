# SPDX-License-Identifier: Apache-2.0
"""How the classes of a row are spread over the ranks of a group, and in which order they are added up."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

TILES = 64


class Node(NamedTuple):
    """Tiles [place * 2**level, (place + 1) * 2**level), merged along the tree."""

    level: int
    place: int


class Vocabulary(NamedTuple):
    """Rank r has the classes [bounds[r], bounds[r + 1]).

    A row's classes are summed in tiles of `tile` classes. Tiles are merged along a balanced binary tree,
    which does not depend on the ranks if each of them has whole tiles. Each rank merges the parts of the tree
    that it has, `nodes[rank]`. If some rank has no whole tiles, every rank's classes are one tile.
    """

    bounds: tuple[int, ...]
    tile: int
    nodes: tuple[tuple[Node, ...], ...]
    tree: bool  # whether the tree does not depend on the ranks

    @property
    def classes(self) -> int:
        return self.bounds[-1]

    @property
    def ranks(self) -> int:
        return len(self.bounds) - 1

    @property
    def most_nodes(self) -> int:
        return max(map(len, self.nodes))


def vocabulary(widths: Sequence[int], tiles: int | None = None) -> Vocabulary:
    """The vocabulary of ranks that have `widths` classes.

    `tiles`: into how many tiles the classes are divided, a power of two that every rank has whole tiles of.
    None: the largest one up to 64 that divides the number of classes, if each rank has whole tiles of it.
    """
    if tiles is not None and (isinstance(tiles, bool) or not isinstance(tiles, int)):
        raise TypeError(f"tiles must be an int or None, got {tiles!r}")
    bounds = [0]
    for width in widths:
        bounds.append(bounds[-1] + width)
    classes = bounds[-1]
    number = math.gcd(classes, TILES) if tiles is None else tiles
    tile = classes // max(1, number)
    whole = tile > 0 and all(bound % tile == 0 for bound in bounds)
    if tiles is not None and (tiles < 1 or tiles & (tiles - 1) or classes % tiles or not whole):
        raise ValueError(
            f"tiles must be a power of two so that every rank has whole tiles of classes / tiles; got "
            f"{tiles} for ranks with {', '.join(map(str, widths))} of {classes} classes"
        )
    if whole:
        nodes = [_nodes(a // tile, b // tile) for a, b in itertools.pairwise(bounds)]
    else:
        tile = max(1, *widths)
        nodes = [(Node(0, rank),) for rank in range(len(widths))]
    return Vocabulary(tuple(bounds), tile, tuple(nodes), whole)


def even_widths(classes: int, ranks: int) -> tuple[int, ...]:
    """The classes of each rank as DTensor's Shard and torch.chunk divide them."""
    most = -(-classes // ranks)
    return tuple(min(max(classes - rank * most, 0), most) for rank in range(ranks))


def _nodes(begin: int, end: int) -> tuple[Node, ...]:
    """The largest parts of the tree that make up the tiles [begin, end)."""
    nodes = []
    while begin < end:
        level = (end - begin).bit_length() - 1
        if begin:
            level = min(level, (begin & -begin).bit_length() - 1)
        nodes.append(Node(level, begin >> level))
        begin += 1 << level
    return tuple(nodes)
