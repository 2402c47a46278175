# SPDX-License-Identifier: Apache-2.0
"""Losses and statistics of rows whose classes are spread over ranks, and their gradient."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from softkern.options import OUTPUTS, RowOptions
from softkern.parallel import _exchange
from softkern.parallel._agreement import RemoteError
from softkern.parallel._vocabulary import Node, Vocabulary

_ops = torch.ops.softkern
_ARGMAX, _CORRECT, _ENTROPY = OUTPUTS["argmax"], OUTPUTS["correct"], OUTPUTS["entropy"]
# Numbers of the dtype float32 hold classes up to here exactly.
MOST_SENT_CLASSES = 2**24


class Shard(NamedTuple):
    """Which classes this rank has, and whom it shares the rows with."""

    group: Any  # a ProcessGroup
    rank: Any  # an int, or the SymInt of LocalTensorMode
    vocabulary: Vocabulary
    exchange: bool  # by rows: an all-to-all and an all-gather instead of one all-gather
    chunks: int  # of rows, that are sent while the next one is computed

    @property
    def first(self) -> Any:
        """The first class of this rank."""
        if isinstance(self.rank, torch.SymInt):
            return self.rank * self.vocabulary.bounds[1]
        return self.vocabulary.bounds[self.rank]

    @property
    def nodes(self) -> tuple[Node, ...]:
        # In torch's LocalTensorMode one process is all ranks, and the rank stands for a number of each. All
        # have equally many classes there, so nodes differ only in their places, which nobody reads.
        return self.vocabulary.nodes[0 if isinstance(self.rank, torch.SymInt) else self.rank]


def row_losses(
    x: Tensor,
    given: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    options: RowOptions,
    shard: Shard,
) -> tuple[Tensor, ...]:
    """The results of the op row_losses for rows of which `x`, (N, C of this rank), are some classes.

    `given` are the op's other tensors. Weights and valid_classes are of whole rows, probabilities of the same
    classes as `x`.
    """
    apply: Callable[..., tuple[Tensor, ...]] = _RowLosses.apply
    return apply(x, *given, options, shard)


class _RowLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        target: Tensor | None,
        weight: Tensor | None,
        row_weight: Tensor | None,
        num_items: Tensor | None,
        target_probs: Tensor | None,
        options: RowOptions,
        shard: Shard,
    ) -> tuple[Tensor, ...]:
        given = (target, weight, row_weight, num_items, target_probs)
        parts, hot_z, argmax = gathered_parts(x, given, options, shard)
        loss, log_prob, lse, entropy, whole = _ops.row_parts_results(x, parts, hot_z, *given, *options)
        largest, correct = statistics_of(argmax, target, options.outputs)
        ctx.mark_non_differentiable(largest, correct)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, whole, *given)
        ctx.options, ctx.first = options, shard.first
        return loss, log_prob, lse, entropy, largest, correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, whole, *given = ctx.saved_tensors
        grad = None
        if any(g is not None for g in grads[:4]):
            with torch.no_grad():
                grad = _ops.row_parts_backward(*grads[:4], x, whole, *given, *ctx.options, ctx.first)
        return first_derivative(grad, x), *[None] * 7


def statistics_of(argmax: Tensor, target: Tensor | None, outputs: int) -> tuple[Tensor, Tensor]:
    """argmax and correct; empty if `outputs` lacks them."""
    nothing = argmax.new_empty(0)
    correct = argmax.eq(target) if outputs & _CORRECT and target is not None else nothing.bool()
    return argmax if outputs & _ARGMAX else nothing, correct


def first_derivative(grad: Tensor | None, x: Tensor) -> Tensor | None:
    """`grad` of x, whose own gradient raises: it needs the logits of all ranks."""
    if grad is None or not torch.is_grad_enabled():
        return grad
    apply: Callable[..., Tensor] = _FirstDerivative.apply
    return apply(grad, x)


class _FirstDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        raise RuntimeError("softkern.parallel computes no second derivatives")


# The op row_parts for a slice of the rows, given the other tensors of these rows: parts, hot_z, argmax.
OwnParts: TypeAlias = Callable[[slice, list[Tensor | None], RowOptions], tuple[Tensor, ...]]


def gathered_parts(
    x: Tensor,
    given: tuple[Tensor | None, ...],
    options: RowOptions,
    shard: Shard,
    own_parts: OwnParts | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The numbers of parts that make up whole rows, the z of several indices a row, and the largest class.

    own_parts: computes this rank's parts, where `x` has only the shape and the dtype of its logits.
    """

    def of_logits(rows: slice, of_rows: list[Tensor | None], wanted: RowOptions) -> tuple[Tensor, ...]:
        place = (shard.first, shard.vocabulary.tile)
        found: tuple[Tensor, ...] = _ops.row_parts(x[rows], *of_rows, *wanted, *place)
        return found

    compute = own_parts or of_logits
    form = _Form.of(x, given, options, shard)
    wanted = options._replace(outputs=options.outputs | (_ARGMAX if form.largest else 0))
    bounds = [x.shape[0] * i // shard.chunks for i in range(shard.chunks + 1)]
    waiting = []
    failure: Exception | None = None
    for begin, end in itertools.pairwise(bounds):
        some = x[begin:end]
        of_rows = [t if t is None or i in (1, 3) else t[begin:end] for i, t in enumerate(given)]
        sent = None
        if failure is None:
            try:
                sent = _own(x, compute(slice(begin, end), of_rows, wanted), shard, form)
            except Exception as error:
                if torch.compiler.is_compiling():
                    raise
                failure = error
        if sent is None:
            # The other ranks wait for these numbers.
            sent = some.new_full((form.height + 1, end - begin), torch.nan, dtype=form.dtype)
            sent[-1] = shard.rank + 1
        waiting.append((_by_rows if shard.exchange else _at_once)(x, sent, form, shard))
    received = [wait() for wait in waiting]
    if failure is not None:
        raise failure
    _check_ranks([failed for *_, failed in received])
    parts, hot_z, argmax, _ = (
        pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)
        for pieces, dim in zip(zip(*received, strict=True), (2, 0, 0, 0), strict=True)
    )
    return parts, hot_z, argmax


Received: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]


def _at_once(x: Tensor, sent: Tensor, form: _Form, shard: Shard) -> Callable[[], Received]:
    """Sends the numbers of all rows to all ranks.

    As `gathered_parts`, and last 1 + a rank that has failed, or 0.
    """
    wait = _exchange.gather(sent, shard)

    def received() -> Received:
        gathered = wait()
        return *form.merged(x, gathered[:, :-1], shard), _largest(gathered[:, -1])

    return received


def _by_rows(x: Tensor, sent: Tensor, form: _Form, shard: Shard) -> Callable[[], Received]:
    """The same, where each rank merges the numbers of its share of the rows and sends those of whole rows."""
    ranks, rows = shard.vocabulary.ranks, sent.shape[1]
    wait = _exchange.to_row_owners(torch.nn.functional.pad(sent, (0, -rows % ranks)), shard)

    def received() -> Received:
        gathered = wait()
        parts, hot_z, argmax = form.merged(x, gathered[:, :-1], shard)
        whole = _ops.row_parts_merge(x, parts)
        pieces = [whole[list(form.numbers)], hot_z.T] if form.indices else [whole[list(form.numbers)]]
        if form.largest:
            pieces.append(argmax.to(whole.dtype)[None])
        pieces.append(gathered[:, -1].amax(0, keepdim=True))
        of_rows = _exchange.gather(torch.cat(pieces), shard)().movedim(0, 1).flatten(1)[:, :rows]
        sizes = [len(form.numbers), form.indices, int(form.largest), 1]
        numbers, hot, largest, failed = torch.split(of_rows, sizes)
        return form.whole(numbers), hot.T.contiguous(), largest.flatten().long(), _largest(failed)

    return received


def _largest(failed: Tensor) -> Tensor:
    return torch.cat((failed.flatten(), failed.new_zeros(1))).amax().reshape(1)


def _check_ranks(failed: list[Tensor]) -> None:
    """Raises if another rank has failed. Only the host of a CPU tensor can know it without waiting."""
    if torch.compiler.is_compiling() or failed[0].device.type != "cpu":
        return
    rank = int(torch.cat(failed).amax()) - 1
    if rank >= 0:
        raise RemoteError(f"rank {rank} of the group has failed")


def _own(x: Tensor, found: tuple[Tensor, ...], shard: Shard, form: _Form) -> Tensor:
    """What this rank sends: (numbers, rows), the last of which is 0."""
    parts, hot_z, argmax = found
    own = _exchange.merge_own(x, parts, shard)
    pieces = [own[i] for i in form.numbers]
    if form.indices:
        pieces.append(hot_z.T)
    if form.largest:
        is_nan = argmax < -1
        z = torch.where(is_nan, torch.nan, parts[_exchange.MAX])
        pieces.append(_first_largest(z, torch.where(is_nan, -2 - argmax, argmax).to(z.dtype)))
    return torch.cat((*pieces, parts.new_zeros(1, parts.shape[2])))


class _Form(NamedTuple):
    """What a rank sends for a row."""

    numbers: tuple[int, ...]  # those of each node
    nodes: int
    indices: int  # the z of as many indices
    largest: bool  # the largest z, and the first class that has it
    dtype: torch.dtype

    @classmethod
    def of(cls, x: Tensor, given: tuple[Tensor | None, ...], options: RowOptions, shard: Shard) -> _Form:
        target = given[0]
        several = target is not None and target.dim() == 2 and not target.is_floating_point()
        probable = target is not None and target.is_floating_point()
        massive = target is not None and (not several or given[4] is not None)
        spread = probable or (massive and options.label_smoothing != 0)
        return cls(
            (
                *(_exchange.MAX, _exchange.TIES, _exchange.REST),
                *((_exchange.TERMS_BELOW,) if options.outputs & _ENTROPY else ()),
                *((_exchange.MASS, _exchange.MASS_BELOW) if spread else ()),
                *((_exchange.HOT_Z,) if target is not None and not several and not probable else ()),
            ),
            shard.vocabulary.most_nodes,
            target.shape[1] if several and target is not None else 0,
            bool(options.outputs & (_ARGMAX | _CORRECT)),
            torch.float64 if x.dtype == torch.float64 else torch.float32,
        )

    @property
    def height(self) -> int:
        return len(self.numbers) * self.nodes + self.indices + 2 * self.largest

    def whole(self, numbers: Tensor) -> Tensor:
        """(7, 1, rows) from those that are sent."""
        all_of_them = numbers.new_zeros(7, 1, numbers.shape[1])
        all_of_them[list(self.numbers), 0] = numbers
        return all_of_them

    def merged(self, x: Tensor, gathered: Tensor, shard: Shard) -> tuple[Tensor, Tensor, Tensor]:
        """As `gathered_parts`, from what all ranks have sent: (ranks, height, rows)."""
        ranks, _, rows = gathered.shape
        of_nodes = len(self.numbers) * self.nodes
        numbers = gathered.new_zeros(ranks, 7, self.nodes, rows)
        sizes = (ranks, len(self.numbers), self.nodes, rows)
        numbers[:, list(self.numbers)] = gathered[:, :of_nodes].view(sizes)
        parts = _exchange.merge_all(x, numbers, shard.vocabulary)
        hot_z = gathered[:, of_nodes : of_nodes + self.indices].sum(0).T.contiguous()
        argmax = gathered.new_empty(0).long()
        if self.largest:
            argmax = _first_largest(gathered[:, -1], gathered[:, -2])[0].long()
        return parts, hot_z, argmax


def _first_largest(z: Tensor, classes: Tensor) -> Tensor:
    """(2, rows): the class of the largest z, for (parts, rows), and that z. A NaN is larger than numbers.

    Parts without classes, and rows that are ignored, have the class -1.
    """
    best, part = z.max(0, keepdim=True)  # the first of several, as torch documents it
    found = classes.gather(0, part)
    # All are -inf: the first class, wherever the first part that has classes is.
    first = torch.where(classes < 0, torch.inf, classes).amin(0, keepdim=True)
    first = torch.where(first.isinf(), -1, first)
    return torch.cat((torch.where(found < 0, first, found), best))
