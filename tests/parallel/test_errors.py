# SPDX-License-Identifier: Apache-2.0
"""What ranks must agree on, what is refused, and ranks that fail: all hear of it, and nobody waits."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from cases import logits
from parallel_cases import raised
from row_losses_cases import row_problem
from threaded_ranks import on_ranks
from torch.testing._internal.distributed import multi_threaded_pg

from softkern.parallel import RemoteError, _rows, cross_entropy

X, Y = logits(6, 40), torch.arange(6)
OWN = X.chunk(2, 1)
ONES = torch.ones(6)
GRAD = torch.ones(6, requires_grad=True)
MANY = Y.unsqueeze(1).repeat(1, 2)
HALVES = torch.full((6, 2), 0.5)

# What two ranks pass: one argument that differs. "input" and "target" have defaults.
DIFFERENT = {
    "rows": ("input", OWN[0], OWN[1][:5]),
    "dtype of the logits": ("input", OWN[0], OWN[1].double()),
    "dimensions": ("input", OWN[0], OWN[1].unsqueeze(2)),
    "layout": ("input", OWN[0], OWN[1].to_sparse()),
    "no tensor": ("input", OWN[0], None),
    "dtype of the target": ("target", Y, Y.int()),
    "kind of target": ("target", Y, OWN[1]),
    "rows of the target": ("target", Y, Y[:5]),
    "classes": ("classes", 40, 41),
    "no number of classes": ("classes", (20, 20), 3.5),
    "weight": ("weight", torch.ones(40), None),
    "dtype of the weight": ("weight", torch.ones(40), torch.ones(40).double()),
    "ignore_index": ("ignore_index", 0, 1),
    "reduction": ("reduction", "mean", "sum"),
    "label_smoothing": ("label_smoothing", 0.1, 0.0),
    "row_group": ("row_group", None, True),
    "row_weight": ("row_weight", ONES, None),
    "row_weight with a gradient": ("row_weight", ONES, GRAD),
    "num_items": ("num_items", 5, None),
    "valid_classes": ("valid_classes", 39, None),
    "target_probs": ("target_probs", HALVES, None),
    "logit_scale": ("logit_scale", 1.0, 2.0),
    "softcap": ("softcap", 5.0, None),
    "temperature": ("temperature", 1.0, 2.0),
    "z_loss": ("z_loss", 0.1, torch.nan),
    "stats": ("stats", ("lse",), ("entropy",)),
    "no stats": ("stats", ("lse",), 5),
    "tiles": ("tiles", 2, 4),
    "exchange": ("exchange", "gather", "rows"),
    "row_chunks": ("row_chunks", 1, 2),
}


def call(rank, input=None, target=Y, **options):
    return cross_entropy(OWN[rank] if input is None else input[0], target, **options)


@pytest.mark.parametrize("what", DIFFERENT)
def test_ranks_that_differ_in_one_argument(what):
    name, *values = DIFFERENT[what]

    def one(rank):
        value = values[rank]
        if name == "row_group" and value:
            value = dist.group.WORLD
        return call(rank, **{name: (value,) if name == "input" else value})

    errors = raised(2, one)
    assert [type(error) for error in errors] == [ValueError] * 2, errors
    assert len({str(error) for error in errors}) == 1
    assert f"the ranks of the group must agree on {name}, got rank 0: " in str(errors[0])


def test_what_need_not_be_equal(monkeypatch):
    """The order of a set, a count, the group of the rows, and sizes that equal the classes of a rank."""

    # As groups of other backends do, which tell their address.
    monkeypatch.setattr(multi_threaded_pg.ProcessLocalGroup, "__repr__", object.__repr__)

    def one(rank):
        names = [("entropy", "lse"), ["lse", "entropy"]][rank]
        classes = [(20, 20), [20, 20]][rank]
        loss = call(rank, stats=(n for n in names), classes=classes, num_items=[6, torch.tensor(6)][rank])[0]
        alone = [dist.new_group([r]) for r in range(2)][rank]
        return loss, call(rank, row_group=alone)

    (a, b), (c, d) = on_ranks(2, one)
    assert torch.equal(a, c) and torch.equal(b, d)
    for sizes, widths in (((4, 6, 2), (2, 4)), ((4, 6, 2), (4, 2)), ((3, 6), (3, 3))):
        x, options = row_problem(sizes, target="indices", k=2, row_weight=True)
        on_ranks(2, lambda r: cross_entropy(x.split(list(widths), 1)[r], **options))  # noqa: B023


def test_a_call_that_was_agreed_on_asks_no_more(monkeypatch):
    asked = []
    kept = dist.all_gather_object
    monkeypatch.setattr(dist, "all_gather_object", lambda *a, **k: (asked.append(1), kept(*a, **k)))

    def one(rank):
        for x in (OWN[rank], OWN[rank] * 2, OWN[rank].clone().requires_grad_()):
            cross_entropy(x, Y)

    on_ranks(2, one)
    assert len(asked) == 2, "each rank, once"


ALIKE = {
    "whole logits": ({"classes": 40, "input": (X,)}, ValueError, "input has all 40 classes, but group has 2"),
    "too many": (
        {"classes": 48},
        ValueError,
        r"classes gives \(24, 24\) to the ranks, but they have \(20, 20\)",
    ),
    "too few": ({"classes": (20, 20, 0)}, ValueError, r"classes gives \(20, 20, 0\) to the ranks"),
    "float": ({"classes": 4.5}, TypeError, "classes must be an int, a sequence of ints or None, got 4.5"),
    "bool": ({"classes": True}, TypeError, "classes must be an int"),
    "names": ({"classes": "ab"}, TypeError, "classes must be an int"),
    "nothing": ({"input": (X[:, :0],)}, ValueError, "the ranks of group have no classes"),
    "weight": (
        {"weight": torch.ones(39)},
        RuntimeError,
        r"each of the 40 classes.*\(20, 20\); got \(39, 39\)",
    ),
    "dtype of the weight": ({"weight": torch.ones(40).double()}, RuntimeError, "expected scalar type"),
    "no weight": ({"weight": [1.0] * 40}, TypeError, "argument 'weight'"),
    "exchange": ({"exchange": "fast"}, ValueError, "exchange must be one of auto, gather, rows, got 'fast'"),
    "row_chunks": ({"row_chunks": 0}, ValueError, "row_chunks must be at least 1, got 0"),
    "row_chunks of a type": ({"row_chunks": 1.0}, TypeError, "row_chunks must be an int, got 1.0"),
    "tiles": (
        {"tiles": 16},
        ValueError,
        "tiles must be a power of two .* got 16 for ranks with 20, 20 of 40",
    ),
    "tiles of a type": ({"tiles": 2.0}, TypeError, "tiles must be an int or None, got 2.0"),
    "reduction": ({"reduction": "average"}, ValueError, "average is not a valid value for reduction"),
    "stats": ({"stats": ("lse", "max")}, ValueError, "stats has the unknown name 'max'"),
    "one name": ({"stats": "lse"}, TypeError, "stats must be a sequence of names, got 'lse'"),
    "no names": ({"stats": 5}, TypeError, "stats must be a sequence of names, got 5"),
    "z_loss": ({"z_loss": torch.nan}, ValueError, "z_loss must be finite, got nan"),
    "smoothing": (
        {"label_smoothing": 1.5},
        RuntimeError,
        r"label_smoothing must be between 0.0 and 1.0. Got: 1.5",
    ),
    "valid_classes": ({"valid_classes": 41}, ValueError, "between 1 and the number of classes, 40; got 41"),
    "no logits": ({"input": (None,)}, TypeError, "logits must be a tensor, got None"),
    "integers": ({"input": (OWN[0].long(),)}, RuntimeError, "logits must be a dense floating-point tensor"),
    "sparse": (
        {"input": (OWN[0].to_sparse(),)},
        RuntimeError,
        "logits must be a dense floating-point tensor",
    ),
    "no dimensions": ({"input": (X.sum(),)}, ValueError, "logits must have a dimension of classes"),
    "target": (
        {"target": Y[:5]},
        ValueError,
        r"Expected input batch_size \(6\) to match target batch_size \(5\)",
    ),
    "whole probabilities": (
        {"target": X},
        RuntimeError,
        r"of this rank's classes, of torch.float32 and shape",
    ),
    "dtype of them": ({"target": OWN[0].double()}, RuntimeError, "got a tensor of torch.float64"),
    "several": ({"target": MANY}, RuntimeError, "0D or 1D target tensor expected|multi-target not supported"),
    "row_weight": (
        {"row_weight": torch.ones(5)},
        ValueError,
        r"row_weight must have the shape \(6,\), got \(5,\)",
    ),
    "num_items": ({"num_items": torch.ones(2)}, ValueError, "num_items must be one number"),
    "log_prob": (
        {"target": MANY, "target_probs": HALVES, "stats": ("log_prob",)},
        ValueError,
        "'log_prob' and 'correct' need a target of one class index a row, got indices",
    ),
    "gradient of a weight": (
        {"weight": torch.ones(40, requires_grad=True)},
        RuntimeError,
        "weight must not need a gradient: only that of input is computed",
    ),
    "gradient of row_weight": ({"row_weight": GRAD}, RuntimeError, "row_weight must not need a gradient"),
    "gradient of probabilities": (
        {"target": OWN[0].softmax(1).requires_grad_()},
        RuntimeError,
        "target must not need a gradient",
    ),
}


@pytest.mark.parametrize("what", ALIKE)
def test_arguments_that_all_ranks_refuse(what):
    options, kind, message = ALIKE[what]
    for error in raised(2, lambda rank: call(rank, **options)):
        assert type(error) is kind, error
        with pytest.raises(kind, match=message):
            raise error


def test_arguments_whose_gradient_is_not_wanted():
    def one(rank):
        with torch.no_grad():
            return call(rank, row_weight=GRAD)

    assert torch.equal(*on_ranks(2, one))


def test_argmax_of_more_classes_than_float32_counts(monkeypatch):
    monkeypatch.setattr("softkern.parallel._call.MOST_SENT_CLASSES", 39)
    for name in ("argmax", "correct"):
        for error in raised(2, lambda rank: call(rank, stats=(name,))):  # noqa: B023
            assert type(error) is ValueError and "take at most 39 classes" in str(error)
    on_ranks(2, lambda rank: call(rank, stats=("lse",)))


def test_a_process_that_is_no_rank():
    def one(rank):
        group = dist.new_group([0])
        return cross_entropy(X, Y, group)

    errors = raised(2, one)
    assert errors[0] is None
    assert type(errors[1]) is ValueError and "this process is no rank of group" in str(errors[1])


@pytest.mark.parametrize("exchange", ("gather", "rows"))
@pytest.mark.parametrize("chunk", range(3))
def test_a_rank_whose_kernel_fails_is_named_by_the_others(chunk, exchange, monkeypatch):
    """In any of the pieces. Then all ranks go on: they have sent and received as often."""
    kept, begun = _rows._own, {}

    def fail(x, parts, shard, form):
        begun[shard.rank] = begun.get(shard.rank, -1) + 1
        if shard.rank == 1 and begun[1] == chunk:
            raise MemoryError("no memory")
        return kept(x, parts, shard, form)

    monkeypatch.setattr(_rows, "_own", fail)

    def one(rank):
        kind = MemoryError if rank == 1 else RemoteError
        message = "no memory" if rank == 1 else "rank 1 of the group has failed"
        part = X.chunk(4, 1)[rank]
        with pytest.raises(kind, match=message):
            cross_entropy(part, Y, exchange=exchange, row_chunks=3, stats=("argmax", "entropy"))
        return cross_entropy(part, Y, exchange=exchange, row_chunks=3)

    losses = on_ranks(4, one)
    assert all(torch.equal(loss, losses[0]) and loss.isfinite() for loss in losses)


def test_targets_that_differ_in_their_values():
    """Values are not compared. One that is out of range fails on its rank, and the others hear of it."""
    errors = raised(2, lambda rank: call(rank, target=Y + 40 * rank))
    assert type(errors[1]) is IndexError and "Target 40 is out of bounds" in str(errors[1])
    assert type(errors[0]) is RemoteError and "rank 1 of the group has failed" in str(errors[0])


def test_second_derivatives_are_refused():
    """They would be silently 0 if the gradient had no graph."""

    def one(rank):
        leaf = OWN[rank].clone().requires_grad_()
        loss = cross_entropy(leaf, Y)
        (dx,) = torch.autograd.grad(loss, leaf, create_graph=True)
        with pytest.raises(RuntimeError, match=r"softkern.parallel computes no second derivatives"):
            (loss + dx.square().sum()).backward()
        return dx.detach(), torch.autograd.grad(cross_entropy(leaf, Y), leaf)[0]

    for graph, plain in on_ranks(2, one):
        assert torch.equal(graph, plain)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch imports its own scripts
def test_transforms_and_forward_mode_are_refused():
    """With one rank: the levels of forward mode belong to the process."""
    from torch.autograd import forward_ad

    def one(rank):
        for transform in (torch.func.grad, torch.func.jacrev, torch.func.vmap):
            with pytest.raises(
                RuntimeError, match=r"softkern.parallel can't be called inside the transforms"
            ):
                transform(lambda x: cross_entropy(x, Y if x.dim() > 1 else Y[0]))(X)
        with forward_ad.dual_level(), pytest.raises(RuntimeError, match="jvp"):
            cross_entropy(forward_ad.make_dual(X, X), Y)

    on_ranks(1, one)


def test_logits_that_need_no_gradient():
    def one(rank):
        loss, stats = call(rank, stats=("lse",))
        assert not loss.requires_grad and not stats.lse.requires_grad
        leaf = OWN[rank].clone().requires_grad_()
        loss, stats = cross_entropy(leaf, Y, stats=("lse", "argmax", "correct"))
        assert loss.requires_grad and stats.lse.requires_grad
        assert not stats.argmax.requires_grad and not stats.correct.requires_grad

    on_ranks(2, one)
