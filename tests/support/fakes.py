# SPDX-License-Identifier: Apache-2.0
"""Calls of an op with tensors without values, compared with the same calls of the real op."""

from __future__ import annotations

import logging
from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils._pytree import tree_leaves, tree_map_only

MODES = {"grad": nullcontext, "no_grad": torch.no_grad, "inference": torch.inference_mode}
over_sizes = pytest.mark.parametrize("symbolic", (False, True), ids=("static", "symbolic"))


@pytest.fixture(autouse=True)
def quiet():
    """Every symbol is logged, and pytest keeps what is logged: most of the time of these tests."""
    logger = logging.getLogger("torch.__trace")
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(before)


class Fakes:
    """Takes arguments over into a world without values, where sizes are symbols if so wanted."""

    def __init__(self, symbolic: bool) -> None:
        self.mode = FakeTensorMode(shape_env=ShapeEnv() if symbolic else None)
        self.symbolic = symbolic

    def __call__(self, *args):
        return tree_map_only(torch.Tensor, self._fake, args)

    def _fake(self, t: torch.Tensor) -> torch.Tensor:
        sizes = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * t.dim())
        return self.mode.from_tensor(t, symbolic_context=sizes if self.symbolic else None)


def like(results) -> list:
    return [
        (tuple(map(int, t.shape)), tuple(map(int, t.stride())), t.dtype, t.device)
        for t in tree_leaves(results)
        if isinstance(t, torch.Tensor)
    ]


def compare(op, args, symbolic, mode="grad"):
    """Of an op, or a function of tensors; its values, for the next op."""
    fakes = Fakes(symbolic)
    with MODES[mode]():
        given = fakes(*args)
        with fakes.mode:
            got = op(*given)
        result = op(*args)
    assert like(got) == like(result), [tuple(a.shape) for a in args if isinstance(a, torch.Tensor)]
    return result
