# SPDX-License-Identifier: Apache-2.0
"""row_losses and its gradient in ATen's ops, as csrc/ops/row_losses/aten.cpp: for transforms, tracers,
forward-mode derivatives, gradients of other arguments than the logits, and devices without kernels."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from softkern._binding.stable.checks import LinearTensors, RowTensors
from softkern._binding.stable.tensors import class_dim, compute_dtype
from softkern.options import OUTPUTS, LinearOptions, RowOptions

_NONE, _MEAN = 0, 1


class Upstream(NamedTuple):
    """The upstream gradients of the results; None: 0."""

    loss: Tensor | None
    log_prob: Tensor | None
    lse: Tensor | None
    entropy: Tensor | None


class _Rows:
    """The quantities of a call. Tensors of classes have the logits' dims, those of rows have a class
    dimension of size 1."""

    def __init__(self, of: RowTensors, options: RowOptions | LinearOptions) -> None:
        self.of, self.options, self.kind = of, options, of.kind
        self.dim = class_dim(of.self)
        self.compute = compute_dtype(of.self)
        self.classes = of.self.shape[self.dim]
        self.valid = self.classes if options.valid_classes < 0 else options.valid_classes
        self.index: Tensor | None = None  # class indices, 0 in ignored rows
        self.counts: Tensor | None = None  # the rows that are not ignored
        self._set_indices()
        # Zeros, because the gradient of where() does not reach what it has not selected: 0 * NaN must not
        # arise.
        x = self.kept(self._narrowed(of.self).to(self.compute))
        self.x = x
        self.masked = x == -math.inf
        self.tanh: Tensor | None = None
        if options.softcap != 0:
            self.tanh = (x * (options.logit_scale / options.softcap)).tanh()
            z = self.tanh * (options.softcap / options.temperature)
        else:
            z = x * (options.logit_scale / options.temperature)
        self.z = torch.where(self.masked, x, z)
        self.log_p: Tensor = torch.ops.aten.log_softmax.int(self.z, self.dim)
        self.lse = torch.logsumexp(self.z, self.dim, keepdim=True)
        self.hot: Tensor | None = None  # masses of the indices
        self.spread: Tensor | None = None  # and of all classes
        self.own = self._number(1)  # the weight of the target class, else 1
        self._set_masses()

    def entropy(self) -> Tensor:
        held = self.log_p.masked_fill(self.masked, 0)
        return -(self.log_p.exp() * held).sum(self.dim, keepdim=True)

    def log_prob(self) -> Tensor:
        """Of the indices; 0 in ignored rows."""
        assert self.index is not None
        return self.kept(self.log_p.gather(self.dim, self.index))

    def argmax(self) -> Tensor:
        found = self.z.argmax(self.dim, keepdim=True)
        return found if self.counts is None else found.masked_fill(~self.counts, -1)

    def correct(self) -> Tensor:
        assert self.counts is not None
        return (self.argmax() == self.index) & self.counts

    def losses(self) -> Tensor:
        loss = self._zero()
        if self.hot is not None:
            assert self.index is not None
            loss = loss - (self.hot * self.log_p.gather(self.dim, self.index)).sum(self.dim, True)
        if self.spread is not None:
            loss = loss - (self.spread * self.log_p).sum(self.dim, True)
        if self.options.z_loss != 0:
            loss = loss + self.own * self.lse.square() * self.options.z_loss
        return self.kept(self._weighted(loss))

    def divisor(self) -> Tensor | None:
        """What a mean divides by; None without a mean."""
        if self.options.reduction != _MEAN:
            return None
        if self.of.num_items is not None:
            return self.of.num_items.to(self.compute)
        ones = torch.ones_like(self._zero())
        if self.counts is None:
            return self._weighted(ones).sum()
        every = self._weighted(self.kept(self.own * ones))
        return torch.where((every != 0).any(), every.sum(), self._number(math.nan))

    def without_classes(self, rows: Tensor) -> Tensor:
        return rows.squeeze(self.dim)

    def kept(self, rows: Tensor) -> Tensor:
        """0 in ignored rows."""
        return rows if self.counts is None else torch.where(self.counts, rows, rows.new_zeros(()))

    def gradient(self, upstream: Upstream) -> Tensor:
        p = self.log_p.exp()
        alpha, g = self._zero(), None  # g: the upstream gradient of the rows' losses
        if upstream.loss is not None:
            own = upstream.loss
            g = self._by_row(own) if self.options.reduction == _NONE else own.to(self.compute)
            divisor = self.divisor()
            g = self._weighted(g if divisor is None else g / divisor)
            total = self._zero()
            if self.hot is not None:
                total = total + self.hot.sum(self.dim, True)
            if self.spread is not None:
                total = total + self.spread.expand(self.x.shape).sum(self.dim, True)
            if self.options.z_loss != 0:
                total = total + self.own * self.lse * (2 * self.options.z_loss)
            alpha = alpha + g * total
        if upstream.lse is not None:
            alpha = alpha + self._by_row(upstream.lse)
        at_index: Tensor | None = None
        if upstream.log_prob is not None:
            of_k = upstream.log_prob
            at_index = of_k.to(self.compute) if self.kind == "indices" else self._by_row(of_k)
            alpha = alpha - at_index.sum(self.dim, True)
        dz = p * alpha
        if upstream.entropy is not None:
            below = -self.log_p.masked_fill(self.masked, 0)  # lse - z would lose the digits of an offset
            dz = dz + p * self._by_row(upstream.entropy) * (below - self.entropy())
        if g is not None and self.spread is not None:
            dz = dz - g * self.spread
        if g is not None and self.hot is not None:
            of_loss = -(g * self.hot)
            at_index = of_loss if at_index is None else at_index + of_loss
        if at_index is not None:
            assert self.index is not None
            dz = dz.scatter_add(self.dim, self.index, at_index.expand(self.index.shape))
        dx = dz * (self.options.logit_scale / self.options.temperature)
        if self.tanh is not None:
            dx = dx * (1 - self.tanh.square()).masked_fill(self.masked, 0)
        dx = self.kept(dx)
        if self.valid != self.classes:
            rest = list(dx.shape)
            rest[self.dim] = self.classes - self.valid
            dx = torch.cat([dx, dx.new_zeros(rest)], self.dim)
        return dx.to(self.of.self.dtype)

    def _number(self, value: float) -> Tensor:
        return self.x.new_full((), value)

    def _zero(self) -> Tensor:
        """A row's 0, also of a tensor without classes."""
        return torch.zeros_like(self.lse)

    def _by_row(self, g: Tensor) -> Tensor:
        return g.to(self.compute).unsqueeze(self.dim)

    def _narrowed(self, classes: Tensor) -> Tensor:
        return classes if self.valid == self.classes else classes.narrow(self.dim, 0, self.valid)

    def _weighted(self, rows: Tensor) -> Tensor:
        r = self.of.row_weight
        return rows if r is None else rows * r.to(self.compute).unsqueeze(self.dim)

    def _set_indices(self) -> None:
        if self.of.target is None or self.kind == "probabilities":
            return
        index = self.of.target.to(torch.int64)
        if self.kind == "index":
            index = index.unsqueeze(self.dim)
            self.counts = index != self.options.ignore_index
            index = index.masked_fill(~self.counts, 0)
        self.index = index

    def _set_masses(self) -> None:
        if self.of.target is None:
            return
        smoothing = self.options.label_smoothing
        keep = 1 - smoothing
        weight = None
        if self.of.weight is not None:
            shape: list[int] = [1] * self.of.self.dim()
            shape[self.dim] = self.valid
            weight = self.of.weight.narrow(0, 0, self.valid).to(self.compute).view(shape)
        share = self._number(smoothing) / torch.scalar_tensor(
            self.valid, dtype=self.compute, device=self.x.device
        )
        if self.kind == "probabilities":
            self.spread = self._narrowed(self.of.target).to(self.compute) * keep + share
            if weight is not None:
                self.spread = self.spread * weight
            return
        assert self.index is not None
        if self.kind == "index":
            hot = torch.ones_like(self.index, dtype=self.compute)
        elif self.of.target_probs is not None:
            hot = self.of.target_probs.to(self.compute)
        else:
            return
        if weight is not None:
            of_index = weight.expand(self.x.shape).gather(self.dim, self.index)
            if self.kind == "index":
                self.own = of_index
            hot = hot * of_index
        self.hot = self.kept(hot * keep)
        if smoothing != 0:
            self.spread = share.expand(self.x.shape) if weight is None else weight * share


def row_losses_in_aten(of: RowTensors, options: RowOptions | LinearOptions) -> tuple[Tensor, ...]:
    """The six results; those that are not wanted are empty."""
    rows = _Rows(of, options)
    compute, dtype = rows.compute, of.self.dtype

    def result(name: str) -> Tensor:
        if name == "loss":
            loss = rows.without_classes(rows.losses())
            if options.reduction != _NONE:
                loss = loss.sum()
            divisor = rows.divisor()
            return (loss if divisor is None else loss / divisor).to(dtype)
        if name == "log_prob":
            return rows.log_prob() if rows.kind == "indices" else rows.without_classes(rows.log_prob())
        if name == "lse":
            return rows.without_classes(rows.kept(rows.lse))
        if name == "entropy":
            return rows.without_classes(rows.kept(rows.entropy()))
        return rows.without_classes(rows.argmax() if name == "argmax" else rows.correct())

    dtypes = (dtype, compute, compute, compute, torch.int64, torch.bool)
    return tuple(
        result(name) if options.outputs & bit else of.self.new_empty([0], dtype=dtype)
        for (name, bit), dtype in zip(OUTPUTS.items(), dtypes, strict=True)
    )


def row_losses_gradient_in_aten(
    upstream: Upstream, of: RowTensors, options: RowOptions | LinearOptions
) -> Tensor:
    return _Rows(of, options).gradient(upstream)


def rows_of_layer(of: LinearTensors, options: LinearOptions) -> RowTensors:
    """The arguments of row_losses with the logits, in the dtype of the inputs unless the loss is wide."""
    logits = torch.nn.functional.linear(of.input, of.matrix, of.bias)
    if options.wide_loss:
        logits = logits.to(compute_dtype(of.input))
    rows = of.rows._replace(self=logits)
    if rows.target is not None and rows.kind == "probabilities":
        rows = rows._replace(target=rows.target.to(logits.dtype))
    return rows if rows.weight is None else rows._replace(weight=rows.weight.to(logits.dtype))


def linear_gradients_in_aten(
    upstream: Upstream, of: LinearTensors, options: LinearOptions, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, ...]:
    dz = row_losses_gradient_in_aten(upstream, rows_of_layer(of, options), options).to(of.input.dtype)
    return (
        dz.matmul(of.matrix) if needs[0] else None,
        dz.t().matmul(of.input) if needs[1] else None,
        dz.sum(0) if needs[2] else None,
    )
