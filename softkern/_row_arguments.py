# SPDX-License-Identifier: Apache-2.0
"""Checks and conversions of the arguments of `row_losses`: those that F has, and softkern's own.

Each error names the argument, what came and what is accepted. What F refuses raises F's error.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from softkern._arguments import as_dim, as_double, as_index, as_long, torch_loss
from softkern.options import OUTPUTS

INDEX_DTYPES = (torch.int64, torch.int32, torch.uint8)
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_OF_ONE_INDEX = OUTPUTS["log_prob"] | OUTPUTS["correct"]
_STATISTICS = tuple(OUTPUTS)[1:]

# What the targets are, as in csrc/ops/row_losses/arguments.h.
Kind = Literal["index", "indices", "probabilities"]


def finite(name: str, value: object) -> float:
    number = value if type(value) is float else as_double(value)
    if number is None:
        raise TypeError(f"{name} must be a number (of Python, without a gradient), got {described(value)}")
    if not -float("inf") < number < float("inf"):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def positive(name: str, value: object) -> float:
    number = finite(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be greater than 0, got {number}")
    return number


def logit_numbers(logit_scale: object, softcap: object, temperature: object) -> tuple[float, float, float]:
    """As the op takes them: softcap 0 for none."""
    return (
        finite("logit_scale", logit_scale),
        0.0 if softcap is None else positive("softcap", softcap),
        positive("temperature", temperature),
    )


def class_count(value: object, input: Tensor) -> int:
    """`valid_classes` as the op takes it; -1 for all."""
    if value is None:
        return -1
    classes = input.shape[0 if input.dim() == 1 else 1]
    number: int | None = _index(value)
    if number is None:
        raise TypeError(f"valid_classes must be an int or None, got {described(value)}")
    if not (_is_jit_tracing() or 1 <= number <= classes):
        raise ValueError(
            f"valid_classes must be between 1 and the number of classes, {classes}; got {number}"
        )
    return number


def output_bits(stats: Iterable[str]) -> int:
    """The statistics as the option `outputs`, without the loss."""
    if type(stats) is tuple and not stats:
        return 0
    if isinstance(stats, str) or not isinstance(stats, Iterable):
        raise TypeError(f"stats must be a sequence of names, got {stats!r}")
    bits = 0
    for name in stats:
        if name not in _STATISTICS:
            raise ValueError(f"stats has the unknown name {name!r}; choose from {', '.join(_STATISTICS)}")
        bits |= OUTPUTS[name]
    return bits


def check_one_index(wanted: int, kind: Kind) -> None:
    if wanted & _OF_ONE_INDEX and kind != "index":
        raise ValueError(f"stats 'log_prob' and 'correct' need a target of one class index a row, got {kind}")


def class_dim_of(logits: Tensor, dim: object) -> int:
    """`dim`, counted from the front."""
    number = as_dim(dim)
    if number is None:
        raise TypeError(f"dim must be an int, got {described(dim)}")
    dims = logits.dim()
    if not -dims <= number < dims:
        raise IndexError(
            f"Dimension out of range (expected to be in range of [{-dims}, {dims - 1}], but got {number})"
        )
    return number % dims


def divisor(value: object, input: Tensor) -> Tensor:
    """`num_items` as a tensor without dims on the logits' device. The host never reads it."""
    if not isinstance(value, Tensor):
        number: Any = value if isinstance(value, (torch.SymInt, torch.SymFloat)) else as_double(value)
        if number is None:
            raise TypeError(f"num_items must be a number or a tensor, got {described(value)}")
        return torch.full((), number, dtype=torch.float64, device=input.device)
    if not same_sizes(value.shape, [1] * value.dim()):
        raise ValueError(f"num_items must be one number, got {described(value)}")
    if value.dtype.is_complex or value.dtype == torch.bool:
        raise RuntimeError(f"num_items must be of a floating-point or integer dtype, got {value.dtype}")
    if value.device != input.device:
        value = value.to(input.device, non_blocking=True)
    return value.reshape(()) if value.dim() > 0 else value


def row_sizes(input: Tensor) -> list[int]:
    sizes = [*input.shape]
    if sizes:
        sizes.pop(0 if len(sizes) == 1 else 1)
    return sizes


def check_row_numbers(name: str, x: object, sizes: Sequence[int], input: Tensor) -> None:
    """Of `row_weight` and `target_probs`."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor or None, got {described(x)}")
    if not same_sizes(x.shape, sizes):
        raise ValueError(f"{name} must have the shape {tuple(sizes)}, got {tuple(x.shape)}")
    if x.dtype not in (input.dtype, torch.float32):
        raise RuntimeError(
            f"{name} must have the dtype of the logits, {input.dtype}, or torch.float32; got {x.dtype}"
        )
    if x.device != input.device:
        raise RuntimeError(f"{name} must be on the device of the logits, {input.device}; got {x.device}")


def check_target_probs(x: object, input: Tensor, target: Tensor) -> None:
    """Also that the target has K class indices a row."""
    class_dim = 0 if input.dim() == 1 else 1
    k = target.shape[class_dim] if target.dim() == input.dim() > 0 else None
    sizes = [*input.shape]
    if k is not None:
        sizes[class_dim] = k
    if k is None or target.dtype.is_floating_point or not same_sizes(target.shape, sizes):
        expected = ["K" if i == class_dim else str(size) for i, size in enumerate(input.shape)]
        raise ValueError(
            f"target_probs needs a target of K class indices a row, of shape ({', '.join(expected)}); got "
            f"{described(target)}"
        )
    check_row_numbers("target_probs", x, sizes, input)
    if target.dtype not in INDEX_DTYPES:
        raise RuntimeError(f"target must be of dtype int64, int32 or uint8, got {target.dtype}")
    if target.device != input.device:
        raise RuntimeError(f"target must be on the device of the logits, {input.device}; got {target.device}")


def check_index(index: object, logits: Tensor) -> bool:
    """Of `selective_log_softmax`. Whether there are K indices a row."""
    if not isinstance(index, Tensor):
        raise TypeError(f"index must be a tensor, got {described(index)}")
    rows = logits.shape[:-1]
    many = index.dim() == logits.dim()
    if not same_sizes(index.shape[:-1] if many else index.shape, rows):
        listed = ", ".join(str(size) for size in rows)
        raise ValueError(
            f"index must have the shape of the rows, ({listed}), or one more dimension at the end for K "
            f"indices a row; got {tuple(index.shape)}"
        )
    if index.dtype not in INDEX_DTYPES:
        raise RuntimeError(f"index must be of dtype int64, int32 or uint8, got {index.dtype}")
    if index.device != logits.device:
        raise RuntimeError(f"index must be on the device of the logits, {logits.device}; got {index.device}")
    return many


def check_logits(logits: object) -> None:
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits must be a tensor, got {described(logits)}")
    if logits.is_nested or logits.layout != torch.strided or not logits.dtype.is_floating_point:
        raise RuntimeError(f"logits must be a dense floating-point tensor, got {described(logits)}")
    if logits.dim() == 0:
        raise ValueError("logits must have a dimension of classes, got a tensor without dimensions")


def check_as_torch(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    target_probs: Tensor | None,
    mode: int,
    ignore_index: object,
    label_smoothing: object,
    ask_torch: Callable[..., object] = torch_loss,
) -> tuple[Kind, Tensor, int, float]:
    """The kind of the targets, then target, ignore_index and label_smoothing as the op takes them.

    What F refuses raises F's error, which `ask_torch` finds out.
    """
    kind, index, smoothing, fits = fit_as_torch(
        input, target, weight, target_probs, ignore_index, label_smoothing
    )
    if kind == "indices" and index is not None and index >= 0:
        raise RuntimeError("ignore_index is not supported for target_probs")
    if not fits:
        of_f = target if kind != "indices" else _any_index(input)
        with torch.no_grad():
            ask_torch(input, as_long(of_f, input), weight, mode, ignore_index, label_smoothing)
        if kind == "index" and input.dim() == 1 and target.dim() == 1:  # F takes an index of shape (1)
            target = target.reshape(())
        if index is None or smoothing is None or kind is None:
            came = ", ".join(map(described, (input, target, ignore_index, label_smoothing)))
            raise TypeError(
                "with these options, cross_entropy takes dense tensors, an int as ignore_index and a number "
                f"as label_smoothing; got {came}"
            )
    return kind, target, index, smoothing


def fit_as_torch(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    target_probs: Tensor | None,
    ignore_index: object,
    label_smoothing: object,
) -> tuple[Any, Any, Any, bool]:
    """The kind of the targets, ignore_index and label_smoothing as the op takes them; None: F refuses it.

    Last, whether F takes the call, as far as can be seen without the tensors' values.
    """
    index = _index(ignore_index)
    smoothing = as_double(label_smoothing)
    of_f, kind = target, _kind(input, target, target_probs)
    if kind == "indices":
        check_target_probs(target_probs, input, target)
        of_f = _any_index(input)
    fits = (
        index is not None
        and smoothing is not None
        and kind is not None
        and 0 <= smoothing <= 1
        and not (kind == "probabilities" and index >= 0)
        and _fit(input, of_f, weight, kind)
    )
    return kind, index, smoothing, fits


def _any_index(input: Tensor) -> Tensor:
    """One class index a row, in place of K."""
    return torch.zeros((), dtype=torch.int64, device=input.device).expand(row_sizes(input))


def _index(value: object) -> Any:
    """An int, or a SymInt that stands for one; None for other values."""
    return value if isinstance(value, torch.SymInt) else as_index(value)


def _kind(input: Any, target: Any, target_probs: Tensor | None) -> Kind | None:
    """None: F refuses such tensors."""
    for x in (input, target):
        if not isinstance(x, Tensor) or x.is_nested or x.layout != torch.strided:
            return None
    if target_probs is not None:
        return "indices"
    return "probabilities" if target.dtype.is_floating_point else "index"


def _fit(input: Tensor, target: Tensor, weight: Any, kind: Kind) -> bool:
    """Whether F accepts these tensors without a look at their values."""
    if input.dim() == 0 or input.dtype not in _FLOATS or target.device != input.device:
        return False
    if kind == "probabilities":
        if target.dtype != input.dtype or not same_sizes(target.shape, input.shape):
            return False
    elif target.dtype not in INDEX_DTYPES or not same_sizes(target.shape, row_sizes(input)):
        return False
    return weight is None or (
        isinstance(weight, Tensor)
        and weight.dtype == input.dtype
        and weight.device == input.device
        and same_sizes(weight.shape, [input.shape[0 if input.dim() == 1 else 1]])
    )


def same_sizes(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether the sizes are equal. Those that only a run can tell, the op compares."""
    if len(a) != len(b):
        return False
    if torch.compiler.is_dynamo_compiling() or torch.SymInt in map(type, (*a, *b)):
        from torch.fx.experimental.symbolic_shapes import guard_or_true

        return all(guard_or_true(m == n) for m, n in zip(a, b, strict=True))
    return _is_jit_tracing() or tuple(a) == tuple(b)


def _is_jit_tracing() -> bool:
    """torch.jit.trace warns of every size that is compared. The op compares them."""
    return not torch.compiler.is_dynamo_compiling() and torch._C._is_tracing()


def described(value: object) -> str:
    if not isinstance(value, Tensor):
        return reprlib.repr(value)
    graph = " that requires a gradient" if value.requires_grad else ""
    return f"a tensor of {value.dtype} and shape {tuple(value.shape)}{graph}"
