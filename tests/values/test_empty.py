# SPDX-License-Identifier: Apache-2.0
"""Sizes of 0 in any dimension: torch's results, and gradients with the shape of the logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import name
from cross_entropy_cases import REDUCTIONS, class_weights

import softkern

SHAPES = (
    (0, 3),
    (2, 3, 0),
    (0, 3, 4),
    (2, 3, 4, 0),
    (2, 3, 0, 4),
    (0, 3, 4, 5),
    (2, 3, 1, 0),
    (2, 3, 0, 0),
    (2, 3, 4, 5, 0),
    (2, 3, 4, 0, 5),
    (2, 3, 0, 4, 5),
    (0, 3, 0, 4, 0),
)
over_shapes = pytest.mark.parametrize("shape", SHAPES, ids=name)
OPTIONS = ({}, {"weight": True}, {"label_smoothing": 0.1}, {"weight": True, "label_smoothing": 0.2})


def layouts(shape):
    """Contiguous, and with steps that no other layout of the shape has."""
    yield torch.zeros(shape)
    yield torch.zeros(shape[::-1]).permute(*reversed(range(len(shape))))
    yield torch.zeros([2 * n + 1 for n in shape])[tuple(slice(0, 2 * n, 2) for n in shape)]


@pytest.mark.parametrize("inplace", (False, True))
@pytest.mark.parametrize("probabilities", (False, True))
@pytest.mark.parametrize("reduction", REDUCTIONS)
@over_shapes
def test_cross_entropy(shape, reduction, probabilities, inplace):
    for options in OPTIONS:
        for dtype in (torch.float32, torch.float16):
            for x in layouts(shape):
                x = x.to(dtype)
                target = (
                    torch.zeros(shape, dtype=dtype) if probabilities else torch.zeros_like(x[:, 0]).long()
                )
                kwargs = {"reduction": reduction} | options
                if "weight" in options:
                    kwargs["weight"] = class_weights(3, dtype)
                leaf = x.detach().requires_grad_()
                logits = Strided.apply(leaf)
                assert logits.stride() == x.stride()
                loss = softkern.cross_entropy(logits, target, inplace_backward=inplace, **kwargs)
                expected = F.cross_entropy(x, target, **kwargs)
                torch.testing.assert_close(loss.detach(), expected, equal_nan=True)
                alone = softkern.cross_entropy(x, target, **kwargs)
                torch.testing.assert_close(alone, expected, equal_nan=True)
                for upstream in (1.0, 3.0):
                    (dx,) = torch.autograd.grad(
                        loss, leaf, torch.full_like(loss, upstream), retain_graph=upstream == 1
                    )
                    assert dx.shape == x.shape and dx.dtype == dtype


class Strided(torch.autograd.Function):
    """The identity, with memory of its own and the strides of its argument."""

    @staticmethod
    def forward(ctx, x):
        return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


@pytest.mark.parametrize("op", ("softmax", "log_softmax"))
@pytest.mark.parametrize("shape", (*SHAPES, (3, 0), (2, 0, 4)), ids=name)
def test_softmaxes(shape, op):
    for x in layouts(shape):
        for dim in range(len(shape)):
            leaf = x.detach().requires_grad_()
            y = getattr(softkern, op)(leaf, dim)
            assert y.shape == x.shape
            assert torch.autograd.grad(y, leaf, torch.ones_like(y))[0].shape == x.shape
