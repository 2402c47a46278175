# SPDX-License-Identifier: Apache-2.0
"""Broken softkerns, which the check behind values/test_torch_samples.py must see."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch_material import Call
from torch_material_checks import check

X = torch.linspace(-4, 4, 24).reshape(4, 6).sin().mul(5)
Y = torch.tensor([0, -100, 5, 2])


def softmax_with_one_element_off(x, dim):
    y = F.softmax(x, dim)
    off = torch.zeros_like(y)
    off[2, 3] = 1e-3
    return y * (1 + off)


def gradient_off(x, dim):
    return F.softmax(x + 1e-3 * (x - x.detach()), dim)


def ignores_class_0(x, target):
    return F.cross_entropy(x, target.where(target != -100, 0), ignore_index=0)


def divides_by_all_rows(x, target):
    return F.cross_entropy(x, target, reduction="sum") / len(x)


def of_float64(x, dim):
    return F.softmax(x, dim).double()


def nan_for_finite(x, dim):
    return F.softmax(x, dim).where(x != x.max(), torch.nan)


def without_a_graph(x, dim):
    return F.softmax(x.detach(), dim)


def another_exception(x, dim):
    raise ValueError(f"Dimension out of range (expected to be in range of [-2, 1], but got {dim})")


def another_message(x, dim):
    raise IndexError("out of range")


BROKEN = [
    (softmax_with_one_element_off, F.softmax, (1,), False),
    (gradient_off, F.softmax, (1,), True),
    (ignores_class_0, F.cross_entropy, (Y,), False),
    (divides_by_all_rows, F.cross_entropy, (Y,), False),
    (of_float64, F.softmax, (1,), False),
    (nan_for_finite, F.softmax, (1,), False),
    (another_exception, F.softmax, (2,), False),
    (another_message, F.softmax, (2,), False),
    (another_exception, F.softmax, (1,), False),
]


@pytest.mark.parametrize(("broken", "theirs", "args", "gradients"), BROKEN)
def test_what_is_broken_shows(broken, theirs, args, gradients):
    x = X.clone().requires_grad_(bool(gradients))
    check(theirs, theirs, Call((x, *args), {}), gradients=gradients, relative=True)
    with pytest.raises(AssertionError):
        check(broken, theirs, Call((x, *args), {}), gradients=gradients, relative=True)


def test_a_lost_graph_shows():
    with pytest.raises((AssertionError, RuntimeError)):
        check(without_a_graph, F.softmax, Call((X.clone().requires_grad_(), 1), {}), gradients=True)
