# SPDX-License-Identifier: Apache-2.0
"""The modules of torch.nn, computed by softkern: subclasses, so `isinstance` works as before."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.loss import _WeightedLoss

from softkern import functional, linear_losses
from softkern.linear_losses import LinearCrossEntropyOptions


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


class _LinearCrossEntropyLoss(_WeightedLoss):
    """The constructor of `torch.nn.LinearCrossEntropyLoss`, for a torch that does not have it."""

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: Any = None,
        dtype: Any = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: LinearCrossEntropyOptions | None = None,
    ) -> None:
        if weight is not None and weight.shape != (num_classes,):
            raise RuntimeError(f"expected weight shape to be {(num_classes,)}, got {tuple(weight.shape)}")
        if not 0 <= label_smoothing <= 1:
            raise RuntimeError(f"expected label_smoothing to be in range [0, 1], got {label_smoothing}")
        super().__init__(weight, None, None, reduction)
        self.num_classes, self.out_features = num_classes, out_features
        self.ignore_index, self.label_smoothing, self.options = ignore_index, label_smoothing, options
        rows = num_classes * math.prod(out_features)
        self.linear = nn.Linear(in_features, rows, bias=bias, device=device, dtype=dtype)


class LinearCrossEntropyLoss(getattr(nn, "LinearCrossEntropyLoss", _LinearCrossEntropyLoss)):  # type: ignore[misc]
    """`softkern.linear_cross_entropy` as a module that owns the layer, a `torch.nn.Linear` named `linear`.

    Arguments and `state_dict` are those of `torch.nn.LinearCrossEntropyLoss`, of which it is a subclass where
    torch has it.

    Args:
        options: also a `softkern.LinearCrossEntropyOptions`.
        valid_classes, logit_scale, softcap, temperature, z_loss, stats: keyword-only, as in
            `softkern.linear_cross_entropy`.

    A call takes `row_weight`, `num_items` and `target_probs` as keywords.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: Any = None,
        dtype: Any = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: LinearCrossEntropyOptions | None = None,
        valid_classes: int | None = None,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        temperature: float = 1.0,
        z_loss: float = 0.0,
        stats: Iterable[str] = (),
    ) -> None:
        super().__init__(
            in_features,
            num_classes,
            out_features=out_features,
            bias=bias,
            device=device,
            dtype=dtype,
            reduction=reduction,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            options=options,
        )
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
        linear_weight, linear_bias = self.linear.weight, self.linear.bias
        if self.out_features:
            of_logits = (self.num_classes, *self.out_features)
            linear_weight = linear_weight.reshape(*of_logits, self.linear.in_features)
            linear_bias = None if linear_bias is None else linear_bias.reshape(of_logits)
        return linear_losses.linear_cross_entropy(
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            options=self.options,
            row_weight=row_weight,
            num_items=num_items,
            valid_classes=self.valid_classes,
            target_probs=target_probs,
            logit_scale=self.logit_scale,
            softcap=self.softcap,
            temperature=self.temperature,
            z_loss=self.z_loss,
            stats=self.stats,
        )


class Softmax(nn.Softmax):
    """`softkern.softmax` as a module; arguments of `torch.nn.Softmax`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.softmax(input, self.dim, _stacklevel=5)


class LogSoftmax(nn.LogSoftmax):
    """`softkern.log_softmax` as a module; arguments of `torch.nn.LogSoftmax`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.log_softmax(input, self.dim, _stacklevel=5)
