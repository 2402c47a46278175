# SPDX-License-Identifier: Apache-2.0
"""`cross_entropy` of plain tensors in a process group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from softkern.options import StatsKeywords
from softkern.parallel._call import Call, compute
from softkern.row_losses import RowStats, all_keywords, with_keywords

if TYPE_CHECKING:
    from typing_extensions import Unpack


def cross_entropy(
    input: Tensor,
    target: Tensor,
    group: Any = None,
    *,
    classes: int | Sequence[int] | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    row_group: Any = None,
    tiles: int | None = None,
    exchange: str = "auto",
    row_chunks: int = 1,
    **own: Unpack[StatsKeywords],
) -> Tensor | tuple[Tensor, RowStats]:
    r"""Cross-entropy of logits whose classes are spread over the ranks of a process group.

    Rank r has the logits of the classes :math:`[o_r, o_{r+1})` of every row. With the statistics
    :math:`m_r = \max_{o_r \le c < o_{r+1}} z_c` and :math:`d_r = \sum \exp(z_c - m_r)` of its classes, the
    loss of a row with the target y is

    .. math:: \ell = (m - z_y) + \log \sum_r d_r \exp(m_r - m), \qquad m = \max_r m_r

    Equivalent to ``softkern.cross_entropy(torch.cat(logits_of_all_ranks, 1), target, ...)``, whose options it
    takes. The logits are never gathered: a rank sends at most some numbers a row, once, in the forward, and
    nothing in backward.

    Args:
        input: this rank's logits: (C'), (N, C') or (N, C', d1, ..., dk) with C' >= 0 classes, different ones
            on each rank; float32, float64, bfloat16 or float16.
        target: class indices of whole rows, the same on all ranks: (N), or (N, K) with `target_probs`; or
            probabilities of the classes of `input`, in its shape and dtype.
        group: a ``torch.distributed`` process group, whose ranks have the classes in the order of the ranks.
            None: the default group.
        classes: how many classes whole rows have, which ranks share as ``torch.chunk`` and DTensor's
            ``Shard`` do; or the number of classes of each rank. None: the ranks tell each other, the first
            time.
        weight: (C) of whole rows, or of the classes of `input`.
        ignore_index, reduction, label_smoothing: as in `softkern.cross_entropy`.
        row_group: a process group whose ranks have different rows, such as those of data and context
            parallelism. A mean then divides by the weight of the rows of all of them, and the result is this
            rank's share of the mean: the shares of the group's ranks sum up to it.
        own: the options of `softkern.cross_entropy` that F lacks, and `stats`, for whole rows.
            `valid_classes` are the first of all classes.
        tiles: into how many tiles the classes are divided for the sums, a power of two. None: the largest one
            up to 64 that divides the number of classes, if all ranks have whole tiles.
        exchange: "gather", one all-gather; "rows", an all-to-all and an all-gather, for many rows and slow
            links; "auto" chooses by `softkern.parallel.cost`. Results have the same bits.
        row_chunks: the numbers of the rows are sent in so many pieces, while the next piece is computed.

    Returns:
        As `softkern.cross_entropy`, the same on all ranks: the loss, or with `stats` a pair of the loss and a
        `RowStats`.

    Raises:
        ValueError: an argument is out of range or differs between the ranks; then it raises on all of them.
        IndexError: a target is no class of whole rows.
        RuntimeError: dtypes, shapes or devices do not fit, or another argument than `input` needs a
            gradient.
        softkern.parallel.RemoteError: another rank has failed (CPU tensors).
        TypeError: an argument is of another type.

    Error: that of `softkern.cross_entropy` (``docs/accuracy.md``).

    Bits: loss, statistics and gradient have the same bits for every number of ranks that have whole tiles,
    one rank among them. With other shards they depend on which classes each rank has. They can differ in the
    last digits from those of `softkern.cross_entropy`, which adds up rows in another order.

    Memory: the gradient, which backward computes from `input`, and at most 7 numbers a row, rank and tile.

    Differs from torch: ``torch.distributed.tensor.parallel.loss_parallel`` needs a context and class indices,
    and sends three times.

    Source: pytorch/pytorch issue 190746 and sgl-project/sglang issue 34159 (what goes wrong with sums by
    all-reduce), Megatron-LM's vocab-parallel cross-entropy (the idea).
    """
    keywords = all_keywords(own, "cross_entropy")
    call = Call(
        target,
        weight,
        ignore_index,
        reduction,
        label_smoothing,
        row_group,
        keywords,
        tiles,
        exchange,
        row_chunks,
    )
    return compute(input, group, classes, call)


cross_entropy.__signature__ = with_keywords(cross_entropy)  # type: ignore[attr-defined]
