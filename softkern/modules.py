# SPDX-License-Identifier: Apache-2.0
"""The modules of torch.nn, computed by softkern: subclasses, so `isinstance` works as before."""

from __future__ import annotations

from torch import Tensor, nn

from softkern import functional


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """`softkern.cross_entropy` as a module; arguments and `state_dict` of `torch.nn.CrossEntropyLoss`.

    Args:
        inplace_backward: keyword-only, as in `softkern.cross_entropy`.
    """

    inplace_backward = False  # for modules that were pickled before this option existed

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        inplace_backward: bool = False,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.inplace_backward = inplace_backward

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            inplace_backward=self.inplace_backward,
        )


class Softmax(nn.Softmax):
    """`softkern.softmax` as a module; arguments of `torch.nn.Softmax`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.softmax(input, self.dim, _stacklevel=5)


class LogSoftmax(nn.LogSoftmax):
    """`softkern.log_softmax` as a module; arguments of `torch.nn.LogSoftmax`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.log_softmax(input, self.dim, _stacklevel=5)
