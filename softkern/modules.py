# SPDX-License-Identifier: Apache-2.0
"""The modules of torch.nn, computed by softkern: subclasses, so `isinstance` works as before."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from softkern import functional


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """`softkern.cross_entropy` as a module; arguments and `state_dict` of `torch.nn.CrossEntropyLoss`.

    Args:
        inplace_backward, valid_classes, logit_scale, softcap, temperature, z_loss, stats: keyword-only, as in
            `softkern.cross_entropy`.

    A call takes `row_weight`, `num_items` and `target_probs` as keywords.
    """

    # For modules that were pickled before these options existed.
    inplace_backward = False
    valid_classes: int | None = None
    logit_scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    z_loss: float = 0.0
    stats: Iterable[str] = ()

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
        valid_classes: int | None = None,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        temperature: float = 1.0,
        z_loss: float = 0.0,
        stats: Iterable[str] = (),
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.inplace_backward = inplace_backward
        self.valid_classes = valid_classes
        self.logit_scale = logit_scale
        self.softcap = softcap
        self.temperature = temperature
        self.z_loss = z_loss
        self.stats = stats if isinstance(stats, str) else tuple(stats)

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        row_weight: Tensor | None = None,
        num_items: float | Tensor | None = None,
        target_probs: Tensor | None = None,
    ) -> Any:
        """The loss, or with `stats` the loss and a `softkern.RowStats`."""
        options: dict[str, Any] = {}
        if not (
            row_weight is None
            and num_items is None
            and target_probs is None
            and self.valid_classes is None
            and self.softcap is None
            and self.logit_scale == self.temperature == 1
            and self.z_loss == 0
            and self.stats == ()
        ):
            options = {
                "row_weight": row_weight,
                "num_items": num_items,
                "target_probs": target_probs,
                "valid_classes": self.valid_classes,
                "logit_scale": self.logit_scale,
                "softcap": self.softcap,
                "temperature": self.temperature,
                "z_loss": self.z_loss,
                "stats": self.stats,
            }
        return functional.cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            inplace_backward=self.inplace_backward,
            **options,
        )


class Softmax(nn.Softmax):
    """`softkern.softmax` as a module; arguments of `torch.nn.Softmax`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.softmax(input, self.dim, _stacklevel=5)


class LogSoftmax(nn.LogSoftmax):
    """`softkern.log_softmax` as a module; arguments of `torch.nn.LogSoftmax`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.log_softmax(input, self.dim, _stacklevel=5)
