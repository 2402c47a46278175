# SPDX-License-Identifier: Apache-2.0
"""Derivatives of cross_entropy that no kernel computes, as csrc/autograd/cross_entropy_derivatives.h.

Those of the logits are functions of the stored gradient G = (A p - a) / D, from which the probabilities
p = (D G + a) / A are recovered: the logits are not kept.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from softkern._binding.stable.checks import same_shape
from softkern._binding.stable.tensors import class_dim, compute_dtype
from softkern.options import CrossEntropyOptions

_NONE, _MEAN = 0, 1


class Masses:
    """The target mass a and values computed from it. Tensors have the compute dtype and, unless they are
    scalars, as many dims as the logits."""

    def __init__(
        self, like: Tensor, target: Tensor, weight: Tensor | None, options: CrossEntropyOptions
    ) -> None:
        """`like` has the shape of the logits. The masses have a history if target and weight have one."""
        self.dim = class_dim(like)
        self.indices = not same_shape(like, target)
        self.keep = 1 - options.label_smoothing
        share = options.label_smoothing / int(like.shape[self.dim])
        compute = compute_dtype(like)
        self.weight: Tensor | None = None  # (1, C, 1...)
        self.spread: Tensor | None = None  # the mass of every class
        self.divisor: Tensor | None = None  # D; None: 1
        if weight is not None:
            shape: list[int] = [1] * like.dim()
            shape[self.dim] = weight.shape[0]
            self.weight = weight.to(compute).view(shape)
        if not self.indices:
            self.spread = target.to(compute) * self.keep + share
            if self.weight is not None:
                self.spread = self.spread * self.weight
            self.total = self.spread.sum(self.dim, keepdim=True)
            if options.reduction == _MEAN:
                one = torch.ones((), dtype=compute, device=like.device)
                self.divisor = one.expand(self.total.shape).sum()  # rows, maybe symbolic
            return
        index = target.to(torch.int64).unsqueeze(self.dim)
        self.counts = index != options.ignore_index
        self.index = index.masked_fill(~self.counts, 0)
        own = self.counts.to(compute)  # w_y; 0 in ignored rows
        if self.weight is not None:
            own = own * self.weight.expand(like.shape).gather(self.dim, self.index)
        self.hot = own * self.keep
        self.total = self.hot
        if share != 0:
            if self.weight is None:
                self.spread = torch.full((), share, dtype=compute, device=like.device)
                every = torch.full((), options.label_smoothing, dtype=compute, device=like.device)
            else:
                self.spread = self.weight * share
                every = self.spread.sum()
            self.total = self.total + every * self.counts
        if options.reduction == _MEAN:
            nan = torch.full((), math.nan, dtype=compute, device=like.device)
            self.divisor = torch.where((own != 0).any(), own.sum(), nan)  # as in the kernels

    def kept(self, x: Tensor) -> Tensor:
        """Sets ignored rows to 0, whatever they hold."""
        return torch.where(self.counts, x, x.new_zeros(())) if self.indices else x

    def over_divisor(self, x: Tensor) -> Tensor:
        return x if self.divisor is None else x / self.divisor

    def probabilities(self, gradient: Tensor) -> Tensor:
        """Recovers p from G, in the memory of G. In rows without mass p can't be recovered, but nothing
        depends on it."""
        if self.divisor is not None:
            gradient.mul_(self.divisor)
        if self.spread is not None:
            gradient.add_(self.spread)
        if self.indices:
            gradient.scatter_add_(self.dim, self.index, self.hot)
        gradient.div_(self.total.masked_fill(self.total == 0, 1))
        return gradient.masked_fill_(~self.counts, 0) if self.indices else gradient

    def gradient(self, p: Tensor) -> Tensor:
        """Computes G from p."""
        x = self.total * p
        if self.spread is not None:
            x = x - self.spread
        if self.indices:
            x = x.scatter_add(self.dim, self.index, -self.hot)
        return self.kept(self.over_divisor(x))


def by_row(g: Tensor, masses: Masses, options: CrossEntropyOptions, compute: torch.dtype) -> Tensor:
    """The upstream gradient, one for each row of logits or one for all."""
    g = g.to(compute)
    return g.unsqueeze(masses.dim) if options.reduction == _NONE else g


# The gradients of class probabilities and of weights from log p, with the upstream gradient g of a row:
#   dt_c = -g w_c (1 - s) log p_c / D,   dw_c = -sum over rows of g ((1 - s) t_c + s/C) log p_c / D.


def probability_gradient(row: Tensor, log_p: Tensor, masses: Masses) -> Tensor:
    result = log_p * (masses.over_divisor(row) * -masses.keep)
    return result if masses.weight is None else result * masses.weight


def weight_gradient(row: Tensor, log_p: Tensor, unweighted: Masses) -> Tensor:
    assert unweighted.spread is not None
    products = unweighted.spread * log_p * unweighted.over_divisor(row)
    others = [i for i in range(products.dim()) if i != unweighted.dim]
    return -(products.sum(others) if others else products)
