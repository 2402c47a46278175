# SPDX-License-Identifier: Apache-2.0
"""How classes are spread over ranks and divided into tiles, and the parts of the tree that ranks have."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softkern.parallel._vocabulary import Node, _nodes, even_widths, vocabulary

WIDTHS = st.lists(st.integers(0, 200), min_size=1, max_size=9).filter(any)


def tiles_of(node):
    return range(node.place << node.level, (node.place + 1) << node.level)


@given(st.integers(0, 64), st.integers(0, 64))
def test_nodes_are_the_tiles_between_two_in_order(a, b):
    begin, end = sorted((a, b))
    nodes = _nodes(begin, end)
    assert [t for node in nodes for t in tiles_of(node)] == list(range(begin, end))
    assert len(nodes) <= 2 * 6, "as few as a tree of 64 leaves needs"
    pairs = itertools.pairwise(nodes)
    assert not any(a.level == b.level and b.place == a.place + 1 and b.place & 1 for a, b in pairs), (
        "two halves of a node that is there too"
    )


@given(WIDTHS)
def test_all_nodes_together_are_all_tiles(widths):
    of = vocabulary(widths)
    assert of.classes == sum(widths) and of.ranks == len(widths)
    assert [b - a for a, b in itertools.pairwise(of.bounds)] == widths
    if of.tree:
        tiles = [t for nodes in of.nodes for node in nodes for t in tiles_of(node)]
        assert tiles == list(range(math.gcd(of.classes, 64))) and of.tile * len(tiles) == of.classes
        assert all(
            sum(map(len, map(tiles_of, n))) * of.tile == w for n, w in zip(of.nodes, widths, strict=True)
        )
    else:
        assert any(bound % (of.classes // math.gcd(of.classes, 64)) for bound in of.bounds)
        assert of.tile >= max(widths) and of.nodes == tuple((Node(0, r),) for r in range(of.ranks))
    assert of.most_nodes == max(map(len, of.nodes))


def test_real_vocabularies():
    for classes in (128256, 151936, 256000, 201088, 129280, 32000, 50304, 640):
        for ranks in (1, 2, 4, 8, 16, 32, 64):
            of = vocabulary(even_widths(classes, ranks))
            assert of.tree and of.tile == classes // 64 and of.most_nodes == 1
    for classes in (50257, 32001):
        of = vocabulary(even_widths(classes, 2))
        assert not of.tree and of.tile == -(-classes // 2)
    of = vocabulary((320, 0, 160, 160))
    assert of.tree and of.nodes == ((Node(5, 0),), (), (Node(4, 2),), (Node(4, 3),))
    assert vocabulary((210, 430)).nodes == (
        (Node(4, 0), Node(2, 4), Node(0, 20)),
        (Node(0, 21), Node(1, 11), Node(3, 3), Node(5, 1)),
    )


@given(st.integers(1, 300), st.integers(1, 12))
def test_even_widths_are_those_of_chunk(classes, ranks):
    """And of DTensor: ranks that chunk leaves out have no classes."""
    widths = [len(chunk) for chunk in torch.arange(classes).chunk(ranks)]
    assert list(even_widths(classes, ranks)) == widths + [0] * (ranks - len(widths))


def test_tiles_that_are_asked_for():
    assert vocabulary((30, 10), tiles=4).nodes == ((Node(1, 0), Node(0, 2)), (Node(0, 3),))
    assert vocabulary((33,), tiles=1).nodes == ((Node(0, 0),),)
    for widths, tiles in (*(((30, 10), n) for n in (0, -2, 3, 6, 16, 128)), ((33, 7), 4), ((60, 60), 6)):
        with pytest.raises(ValueError, match=f"power of two.*got {tiles} for ranks with {widths[0]}, "):
            vocabulary(widths, tiles=tiles)
    for tiles in (2.0, True, "2"):
        with pytest.raises(TypeError, match="tiles must be an int or None"):
            vocabulary((30, 10), tiles=tiles)
