# SPDX-License-Identifier: Apache-2.0
"""A call of `cross_entropy` for the ranks of a group: checks, the ranks' classes, and the shapes of F."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import _reduction as _Reduction

from softkern import _row_arguments as _check
from softkern.options import OUTPUTS, RowOptions
from softkern.parallel import _collectives as collectives
from softkern.parallel._agreement import agreed
from softkern.parallel._links import prefers_rows
from softkern.parallel._rows import MOST_SENT_CLASSES, Shard
from softkern.parallel._shapes import row_losses_of
from softkern.parallel._vocabulary import even_widths, vocabulary
from softkern.row_losses import RowStats, numbers_of

_LOSS, _OF_CLASS = OUTPUTS["loss"], OUTPUTS["argmax"] | OUTPUTS["correct"]
_MEAN = _Reduction.get_enum("mean")
_EXCHANGES = ("auto", "gather", "rows")


class Call(NamedTuple):
    """The arguments of `cross_entropy` but for the logits and their ranks."""

    target: Tensor
    weight: Tensor | None
    ignore_index: int
    reduction: str
    label_smoothing: float
    row_group: Any
    own: dict[str, Any]  # row_losses.all_keywords
    tiles: int | None
    exchange: str
    row_chunks: int

    def arguments(self) -> dict[str, Any]:
        """By the names that the callers know."""
        given = self._asdict()
        own = given.pop("own")
        return {**given, **own}


def compute(
    input: Tensor,
    group: Any,
    classes: int | Sequence[int] | None,
    call: Call,
    losses: Callable[..., tuple[Tensor, ...]] = row_losses_of,
) -> Tensor | tuple[Tensor, RowStats]:
    """The loss and its statistics.

    losses: computes the results of the op row_losses, as `row_losses_of`. For others than that one, `input`
    may be without memory.
    """
    import torch.distributed as dist

    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        raise RuntimeError("softkern.parallel can't be called inside the transforms of torch.func")
    own = call.own
    group = dist.group.WORLD if group is None else group
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError("this process is no rank of group")
    widths, weight = _ranks(input, group, classes, call)
    of_ranks = vocabulary(widths, call.tiles)
    if call.exchange not in _EXCHANGES:
        raise ValueError(f"exchange must be one of {', '.join(_EXCHANGES)}, got {call.exchange!r}")
    mode = _Reduction.get_enum(call.reduction)
    target, kind, ignored, smoothing = _checked_target(input, of_ranks.classes, weight, mode, call)
    options = RowOptions(
        mode,
        ignored,
        smoothing,
        _valid(input, of_ranks.classes, call),
        *numbers_of(own),
        _LOSS | _check.output_bits(own["stats"]),
    )
    _check.check_one_index(options.outputs, kind)
    if options.outputs & _OF_CLASS and of_ranks.classes > MOST_SENT_CLASSES:
        raise ValueError(f"stats 'argmax' and 'correct' take at most {MOST_SENT_CLASSES} classes")
    sizes = _check.row_sizes(input)
    if own["row_weight"] is not None:
        _check.check_row_numbers("row_weight", own["row_weight"], sizes, input)
    _check_no_gradients(call)
    items = None
    if mode == _MEAN and own["num_items"] is not None:
        items = _check.divisor(own["num_items"], input)
    elif mode == _MEAN and call.row_group is not None:
        items = num_items(
            target if kind == "index" else target.new_zeros(sizes, dtype=torch.int64),
            call.row_group,
            weight=weight if kind == "index" else None,
            row_weight=own["row_weight"],
            ignore_index=ignored if kind == "index" else -1,
        )
    rows = torch.Size(sizes).numel()
    by_rows = call.exchange == "rows" or (
        call.exchange == "auto" and prefers_rows(dist.get_backend(group), of_ranks.ranks, rows)
    )
    shard = Shard(group, rank, of_ranks, by_rows, _chunks(call.row_chunks, rows))
    given = (target, weight, own["row_weight"], items, own["target_probs"])
    loss, *statistics = losses(input, 0 if input.dim() == 1 else 1, given, options, shard)
    if not options.outputs & ~_LOSS:
        return loss
    return loss, RowStats(
        *(
            t if options.outputs & OUTPUTS[name] else None
            for name, t in zip(RowStats._fields, statistics, strict=True)
        )
    )


def num_items(
    target: Tensor,
    row_group: Any = None,
    *,
    weight: Tensor | None = None,
    row_weight: Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """What a mean over the rows of all ranks divides by: the weight of the targets that are not ignored.

    Args:
        target: class indices of this rank's rows, of whole rows.
        row_group: the process group whose ranks have different rows: those of data and context parallelism,
            never those of tensor parallelism, which have the same rows. None: this rank's rows are all.
        weight: (C), of the classes; row_weight: in the shape of `target`.

    Returns:
        A tensor without dims, for ``num_items=`` of softkern's losses: int64 without weights, otherwise
        float64, where the sums of the ranks are added up in the order of the ranks; NaN if they are 0. A rank
        whose rows are all ignored adds 0.
    """
    kept = target != ignore_index
    if weight is None and row_weight is None:
        count = kept.sum()
        if row_group is not None:
            count = collectives.all_reduce(count, row_group)
        return count
    mass = kept.double()
    if weight is not None:
        # The loss raises for targets that are no classes. Here the other ranks would wait.
        known = kept & (target >= 0) & (target < weight.shape[0])
        mass = torch.where(known, weight.double()[torch.where(known, target, 0).long()], 0)
    if row_weight is not None:
        mass = torch.where(kept, mass * row_weight, 0)
    total = mass.sum()
    if row_group is None:
        return _or_nan(total)
    of_ranks = collectives.begin_all_gather(total.reshape(1), row_group)()
    total = of_ranks[0]
    for of_rank in of_ranks[1:]:
        total = total + of_rank
    return _or_nan(total)


def _or_nan(weight: Tensor) -> Tensor:
    """As in the loss without weights: 0/0 without a weight, even if label smoothing alone makes it x/0."""
    return torch.where(weight == 0, torch.nan, weight)


def _ranks(
    input: Any, group: Any, classes: int | Sequence[int] | None, call: Call
) -> tuple[tuple[int, ...], Tensor | None]:
    """The classes of each rank, and the weight of all classes.

    What differs between the ranks raises on all of them.
    """
    import torch.distributed as dist

    is_dense = torch.is_tensor(input) and input.layout == torch.strided and input.dim() > 0
    width = input.shape[0 if input.dim() == 1 else 1] if is_dense else -1
    weight: Any = call.weight
    own = (width, weight.numel() if isinstance(weight, Tensor) else None)
    ranks = dist.get_world_size(group)
    if torch.compiler.is_compiling():
        if classes is None:
            raise ValueError("in a compiled program, classes must be given: the ranks can't be asked")
        widths = even_widths(classes, ranks) if isinstance(classes, int) else tuple(classes)
        told = [(width, own[1]) for width in widths]
        if widths[dist.get_rank(group)] != width:
            raise ValueError(f"classes gives {widths} to the ranks, but this one has {width}")
    else:
        given = {"classes": classes, "input": input, **call.arguments()}
        shared = {name: _described(name, value) for name, value in given.items()}
        told = agreed(group, own, shared)
        widths = tuple(of_rank[0] for of_rank in told)
        _check.check_logits(input)
        _check_classes(classes, widths)
    total = sum(widths)
    if total < 1:
        raise ValueError("the ranks of group have no classes")
    if weight is None or not isinstance(weight, Tensor):
        return widths, weight
    lengths = tuple(of_rank[1] for of_rank in told)
    if lengths == widths and lengths != (total,) * ranks:
        return widths, _joined(weight, widths, group)
    if any(length != total for length in lengths):
        raise RuntimeError(
            f"weight must have one number for each of the {total} classes, or for the classes of the rank, "
            f"{widths}; got {lengths}"
        )
    return widths, weight


def _check_classes(classes: Any, widths: tuple[int, ...]) -> None:
    if classes is None:
        return
    if isinstance(classes, bool) or not (
        isinstance(classes, int)
        or (isinstance(classes, Sequence) and all(isinstance(n, int) for n in classes))
    ):
        raise TypeError(f"classes must be an int, a sequence of ints or None, got {classes!r}")
    ranks = len(widths)
    if ranks > 1 and widths == (classes,) * ranks:
        raise ValueError(f"input has all {classes} classes, but group has {ranks} ranks that share them")
    expected = even_widths(classes, ranks) if isinstance(classes, int) else tuple(classes)
    if expected != widths:
        raise ValueError(f"classes gives {expected} to the ranks, but they have {widths}")


def _described(name: str, value: Any) -> Any:
    """What has to be equal on all ranks of the argument `name`, as far as the host knows it.

    Values of tensors are not compared, nor is the number of classes of a tensor that has those of a rank.
    """
    if name == "row_group":  # the ranks may be in different ones
        return value if value is None else "a process group"
    if name == "num_items" and value is not None:  # another one in each step
        return "a number"
    if isinstance(value, Tensor):
        return _described_tensor(name, value)
    if name == "stats" and isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(sorted(map(str, value)))  # in any order: that of a set differs
    if name == "classes" and isinstance(value, list):
        value = tuple(value)
    # NaN would not be equal to itself.
    is_plain = isinstance(value, (int, float, str, type(None))) and value == value
    return value if is_plain else repr(value)


def _described_tensor(name: str, x: Tensor) -> str:
    sizes = ["nested"] if x.is_nested else [*map(str, x.shape)]
    if sizes and (name in ("input", "weight") or (name == "target" and x.is_floating_point())):
        sizes[min(1, len(sizes) - 1)] = "classes"
    layout = "" if x.layout == torch.strided else f", {x.layout}"
    graph = " that requires a gradient" if name != "input" and _needs_gradient(x) else ""
    return f"a tensor of {x.dtype} and shape ({', '.join(sizes)}) on {x.device.type}{layout}{graph}"


def _needs_gradient(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled()


def _joined(weight: Tensor, widths: tuple[int, ...], group: Any) -> Tensor:
    most = max(widths)
    padded = torch.nn.functional.pad(weight, (0, most - weight.numel()))
    gathered = collectives.begin_all_gather(padded, group)().view(-1, most)
    return torch.cat([of_rank[:n] for of_rank, n in zip(gathered, widths, strict=True)])


def _checked_target(
    input: Tensor, classes: int, weight: Tensor | None, mode: int, call: Call
) -> tuple[Tensor, _check.Kind, int, float]:
    """target, its kind, ignore_index and label_smoothing as the op takes them, checked as F checks them."""
    target: Any = call.target
    whole = _stand_in(input, classes)
    probable = torch.is_tensor(target) and target.is_floating_point()
    if probable and (target.shape != input.shape or target.dtype != input.dtype):
        raise RuntimeError(
            f"target must have the probabilities of this rank's classes, of {input.dtype} and shape "
            f"{tuple(input.shape)}; got {_check.described(target)}"
        )
    kind, y, ignored, smoothing = _check.check_as_torch(
        whole,
        _stand_in(target, classes) if probable else target,
        weight,
        call.own["target_probs"],
        mode,
        call.ignore_index,
        call.label_smoothing,
    )
    return target if probable else y, kind, ignored, smoothing


def _stand_in(x: Tensor, classes: int) -> Tensor:
    """A tensor of the shape of whole rows, without their memory."""
    sizes = [*x.shape]
    sizes[0 if x.dim() == 1 else 1] = classes
    return x.detach().new_zeros(()).expand(sizes)


def _valid(input: Tensor, classes: int, call: Call) -> int:
    valid = _check.class_count(call.own["valid_classes"], _stand_in(input, classes))
    return classes if valid < 0 else valid


def _check_no_gradients(call: Call) -> None:
    for name, x in call.arguments().items():
        if _needs_gradient(x):
            raise RuntimeError(f"{name} must not need a gradient: only that of input is computed")


def _chunks(wanted: object, rows: int) -> int:
    if isinstance(wanted, bool) or not isinstance(wanted, int):
        raise TypeError(f"row_chunks must be an int, got {wanted!r}")
    if wanted < 1:
        raise ValueError(f"row_chunks must be at least 1, got {wanted}")
    return max(1, min(wanted, rows))
