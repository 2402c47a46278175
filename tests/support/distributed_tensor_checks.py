# SPDX-License-Identifier: Apache-2.0
"""softkern on DTensors: what every rank of two checks. torch/test_distributed.py starts them."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from cases import logits, upstream
from compare import assert_same_bits
from cross_entropy_cases import KINDS, problem
from distributed_processes import WAYS, check
from tolerances import DTYPES
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import loss_parallel
from torch.utils._python_dispatch import TorchDispatchMode
from watch import Watch

import softkern

ROWS_WHOLE = ([Shard(0)], [Shard(2)], [Replicate()])  # of (N, C, d)


class Seen(TorchDispatchMode):
    """The ops that were called with plain tensors."""

    def __enter__(self):
        self.ops = set()
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not any(issubclass(t, DTensor) for t in types):
            self.ops.add(func.name())
        return func(*args, **(kwargs or {}))


def near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Within torch's own error: sums of rows in another order."""
    eps = torch.finfo(expected.dtype).eps
    actual = actual.full_tensor() if isinstance(actual, DTensor) else actual
    torch.testing.assert_close(actual, expected, rtol=16 * eps, atol=16 * eps, equal_nan=True)


def gradient(y, x, grad=None, **kwargs):
    return torch.autograd.grad(y, x, grad, **kwargs)[0]


def spread(mesh, x, placements):
    return distribute_tensor(x, mesh, placements)


@check
def softmaxes_have_the_bits_of_the_whole_tensor(mesh):
    """Uneven shares, an empty one, a negative dim, a dtype to convert to."""
    shapes = (((7, 5, 3), 1), ((1, 40, 1), -2))
    for (shape, dim), dtype, placements in itertools.product(shapes, DTYPES, ROWS_WHOLE):
        for op in ("softmax", "log_softmax"):
            whole = logits(*shape, dtype=dtype).requires_grad_()
            x = spread(mesh, whole.detach(), placements).requires_grad_()
            want, torchs = (getattr(ns, op)(whole, dim) for ns in (softkern, F))
            grad = upstream(want, "random")
            with Seen() as seen:
                y = getattr(softkern, op)(x, dim)
                dx = gradient(y, x, spread(mesh, grad, placements))
            assert {f"softkern::{op}", f"softkern::{op}_backward"} <= seen.ops, "not by the kernels"
            assert (y.placements, dx.placements) == (tuple(placements),) * 2
            assert (y.shape, y.stride()) == (torchs.shape, torchs.stride())
            assert_same_bits(y.full_tensor(), want)
            assert_same_bits(dx.full_tensor(), gradient(want, whole, grad))
            wide = getattr(F, op)(whole.detach().double(), dim)
            near(y, wide.to(dtype))
    y = softkern.softmax(spread(mesh, logits(4, 5).half(), [Shard(0)]), 1, dtype=torch.float64)
    assert_same_bits(y.full_tensor(), softkern.softmax(logits(4, 5).half(), 1, dtype=torch.float64))


def _losses(mesh, shape, dtype, kind, placements, reduction):
    """(DTensor's, the whole tensor's) loss and gradient in x."""
    x, target, kwargs = problem(shape, dtype, **kind)
    leaf = spread(mesh, x, placements).requires_grad_()
    options = dict(kwargs)
    if "weight" in kwargs:
        options["weight"] = spread(mesh, kwargs["weight"], [Replicate()])
    # Where the targets lie is not for the caller to know: sharded by rows, or whole everywhere.
    whole = spread(mesh, target, [Replicate()])
    loss = softkern.cross_entropy(leaf, whole, reduction=reduction, **options)
    plain = x.clone().requires_grad_()
    want = softkern.cross_entropy(plain, target, reduction=reduction, **kwargs)
    grad = upstream(want, "random") if reduction == "none" else torch.tensor(0.5, dtype=dtype)
    there = spread(mesh, grad, loss.placements if reduction == "none" else [Replicate()])
    return (loss, gradient(loss, leaf, there)), (want, gradient(want, plain, grad)), (x, target, kwargs)


@check
def losses_of_rows(mesh):
    for shape, dtype, kind, placements in itertools.product(
        ((7, 5, 3), (1, 9, 1)), DTYPES, KINDS, ROWS_WHOLE
    ):
        with Seen() as seen:
            got, want, _ = _losses(mesh, shape, dtype, kind, placements, "none")
        assert "softkern::cross_entropy_forward" in seen.ops, "not by the kernels"
        assert got[0].shape == want[0].shape and got[0].stride() == want[0].stride()
        rows = {0: [Shard(0)], 2: [Shard(1)]}.get(getattr(placements[0], "dim", None), [Replicate()])
        assert got[0].placements == tuple(rows) and got[1].placements == tuple(placements)
        for a, b in zip(got, want, strict=True):
            assert_same_bits(a.full_tensor(), b.detach())


@check
def sums_and_means(mesh):
    """Means of shares that are uneven and differ in their ignored rows and weights."""
    for shape, dtype, kind, placements, reduction in itertools.product(
        ((7, 5, 3), (1, 9, 1)), DTYPES, KINDS, ROWS_WHOLE, ("sum", "mean")
    ):
        got, want, (x, target, kwargs) = _losses(mesh, shape, dtype, kind, placements, reduction)
        pending = Replicate() if placements[0].is_replicate() else Partial()
        assert got[0].placements == (pending,) and got[0].dtype == dtype
        for a, b in zip(got, want, strict=True):
            near(a, b.detach())
        wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
        target = target.double() if target.is_floating_point() else target
        near(got[0], F.cross_entropy(x.double(), target, reduction=reduction, **wide).to(dtype))


def sent(call):
    """The result, and how many messages of each kind it took."""
    with CommDebugMode() as mode:
        result = call()
    return result, {kind: n for kind, n in mode.get_comm_counts().items() if n}


@check
def a_mean_sends_nothing_where_the_targets_are_whole(mesh):
    """One sum where they are not, and none of those that torch needs not either."""
    grid = torch.distributed.init_device_mesh("cpu", (2, 1))
    x, target, kwargs = problem((7, 5, 3), weight=True, smoothing=0.1)
    target[:5] = -100
    for there, placements, targets, messages in (
        (mesh, [Shard(0)], [Replicate()], 0),
        (mesh, [Shard(2)], [Replicate()], 0),
        (mesh, [Shard(0)], [Shard(0)], 1),
        (mesh, [Replicate()], [Replicate()], 0),
        (grid, [Shard(0), Shard(2)], [Replicate(), Replicate()], 0),
        (grid, [Shard(0), Shard(2)], [Shard(0), Replicate()], 1),
    ):
        for names in ((), ("weight",), ("weight", "label_smoothing")):
            options = {name: kwargs[name] for name in names}
            plain = x.clone().requires_grad_()
            want = F.cross_entropy(plain, target, **options)
            leaf, y = spread(there, x, placements).requires_grad_(), spread(there, target, targets)
            if names:
                options["weight"] = spread(there, options["weight"], [Replicate()] * len(placements))
            loss, counts = sent(lambda: softkern.cross_entropy(leaf, y, **options))  # noqa: B023
            assert sum(counts.values()) == messages, (placements, targets, counts)
            dx, counts = sent(lambda: gradient(loss, leaf))  # noqa: B023
            assert not counts, (placements, targets, counts)
            near(loss, want.detach())
            near(dx, gradient(want, plain))


@check
def a_float16_mean_of_a_sum_that_float16_cannot_hold(mesh):
    x = spread(mesh, torch.zeros(30000, 8, dtype=torch.half), [Shard(0)])
    target = spread(mesh, torch.zeros(30000, dtype=torch.long), [Shard(0)])
    near(softkern.cross_entropy(x, target), torch.tensor(8.0).log().half())


@check
def ignored_rows_on_one_rank_and_on_both(mesh):
    x, target = logits(6, 5), torch.tensor([-100, -100, -100, 0, 4, 2])
    for y in (target, torch.full_like(target, -100)):
        leaf, plain = spread(mesh, x, [Shard(0)]).requires_grad_(), x.clone().requires_grad_()
        ours = softkern.cross_entropy(leaf, spread(mesh, y, [Shard(0)]))
        theirs = F.cross_entropy(plain, y)
        near(ours, theirs.detach())
        dx = gradient(ours, leaf).full_tensor()
        near(dx[3:], gradient(theirs, plain)[3:])
        assert_same_bits(dx[y == -100], torch.zeros_like(dx[y == -100]))


@check
def a_mesh_of_two_dimensions(mesh):
    grid = torch.distributed.init_device_mesh("cpu", (2, 1))
    x, target, kwargs = problem((5, 7, 3), smoothing=0.1)
    plain = x.clone().requires_grad_()
    want = softkern.cross_entropy(plain, target, **kwargs)
    for placements in ([Shard(0), Shard(2)], [Replicate(), Shard(0)], [Shard(2), Replicate()]):
        leaf = spread(grid, x, placements).requires_grad_()
        y = spread(grid, target, [Replicate(), Replicate()])
        loss = softkern.cross_entropy(leaf, y, **kwargs)
        near(loss, want.detach())
        near(gradient(loss, leaf), gradient(want, plain, retain_graph=True))
        assert_same_bits(softkern.softmax(leaf, 1).full_tensor(), softkern.softmax(plain, 1))


@check
def second_derivatives(mesh):
    """Of sin of the gradient, so that none of them vanishes."""
    x, target, kwargs = problem((5, 7), torch.float64, weight=True, smoothing=0.1)
    y = spread(mesh, target, [Shard(0)])
    options = {**kwargs, "weight": spread(mesh, kwargs["weight"], [Replicate()])}
    calls = [
        (lambda ns, x, d: ns.softmax(x, 1).square().sum()),
        (lambda ns, x, d: ns.log_softmax(x, 1).square().sum()),
        (lambda ns, x, d: ns.cross_entropy(x, *((y,) if d else (target,)), **(options if d else kwargs))),
    ]
    for call in calls:
        leaf, plain = spread(mesh, x, [Shard(0)]).requires_grad_(), x.clone().requires_grad_()
        got = gradient(call(softkern, leaf, True), leaf, create_graph=True)
        want = gradient(call(F, plain, False), plain, create_graph=True)
        second, expected = gradient(got.sin().sum(), leaf), gradient(want.sin().sum(), plain)
        torch.testing.assert_close(second.full_tensor(), expected, rtol=1e-10, atol=1e-10)


@check
def pending_sums_are_torchs(mesh):
    x, target, _ = problem((6, 8))
    y = spread(mesh, target, [Replicate()])
    for call in (
        lambda ns, x: ns.softmax(x, 1),
        lambda ns, x: ns.log_softmax(x, -1),
        lambda ns, x: ns.cross_entropy(x, y),
    ):
        leaf = DTensor.from_local(x / 2, mesh, [Partial()]).requires_grad_()
        got, want = call(softkern, leaf), call(F, leaf)
        assert got.placements == want.placements
        assert_same_bits(got.full_tensor(), want.full_tensor())
        da, db = (gradient(t.square().sum(), leaf).full_tensor() for t in (got, want))
        assert_same_bits(da, db)


@check
def loss_parallel_changes_nothing(mesh):
    """Its context is not needed, and disturbs nothing."""
    x, target, _ = problem((6, 8))
    y = spread(mesh, target, [Replicate()])
    plain = x.clone().requires_grad_()
    want = F.cross_entropy(plain, target)
    with loss_parallel():
        leaf = spread(mesh, x, [Shard(1)]).requires_grad_()
        loss = softkern.cross_entropy(leaf, y)
        loss.backward()
    near(loss, want.detach())
    assert leaf.grad.placements == (Shard(1),), "the classes were gathered"
    near(leaf.grad, gradient(want, plain))


def _raised(f, *args, **kwargs):
    try:
        f(*args, **kwargs)
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@check
def bad_arguments_are_refused_as_torch_does(mesh):
    x, target, _ = problem((6, 8))
    rows = [Shard(0)]
    xs, ys, ws = spread(mesh, x, rows), spread(mesh, target, rows), spread(mesh, torch.ones(8), [Replicate()])
    whole, far = spread(mesh, x, [Replicate()]), spread(mesh, target + 8, [Replicate()])
    few = spread(mesh, target[:4], rows)
    short = spread(mesh, torch.ones(7), [Replicate()])
    for call in (
        lambda ns: ns.softmax(xs, 2),
        lambda ns: ns.cross_entropy(xs, target),  # a plain tensor beside a DTensor
        lambda ns: ns.cross_entropy(xs, ys, torch.ones(8)),
        lambda ns: ns.cross_entropy(xs, few),
        lambda ns: ns.cross_entropy(xs, ys, short),
        lambda ns: ns.cross_entropy(whole, far),
        lambda ns: ns.cross_entropy(xs, ys, ws, reduction="average"),
    ):
        got, want = _raised(call, softkern), _raised(call, F)
        assert type(got) is type(want), (got, want)
        assert str(got).split("\n")[0] == str(want).split("\n")[0]


@check
def a_backend_that_was_named_computes_rows_and_refuses_pending_sums(mesh):
    x = logits(6, 8)
    for placement in (Shard(0), Shard(1)):
        leaf = spread(mesh, x, [placement])
        softkern.softmax(x, 1)
        with softkern.use_backend("portable"):
            y = softkern.softmax(leaf, 1)
            assert softkern._C.last_isa() == "portable"
        near(y, softkern.softmax(x, 1))
    with softkern.use_backend("portable"):
        error = _raised(softkern.softmax, DTensor.from_local(x, mesh, [Partial()]), 1)
    assert type(error) is RuntimeError and "'portable' was asked for" in str(error)


@check
def targets_and_weights_that_need_a_gradient(mesh):
    x, target, _ = problem((6, 8), probs=True)
    w = torch.linspace(0.5, 2, 8)
    for needs in ("target", "weight"):
        plain = {"target": target.clone(), "weight": w.clone()}
        spreads = {
            "target": spread(mesh, target, [Shard(0)]),
            "weight": spread(mesh, w, [Replicate()]),
        }
        plain[needs].requires_grad_()
        spreads[needs].requires_grad_()
        leaf, whole = spread(mesh, x, [Shard(0)]), x
        got = softkern.cross_entropy(leaf, reduction="sum", **spreads)
        want = F.cross_entropy(whole, reduction="sum", **plain)
        near(gradient(got, spreads[needs]), gradient(want, plain[needs]))


@check
def compiled_without_a_break(mesh):
    x, target, _ = problem((6, 8))
    y = spread(mesh, target, [Shard(0)])

    def both(x):
        return softkern.log_softmax(x, 1), softkern.cross_entropy(x, y)

    for placements in ([Shard(0)], [Shard(1)]):
        leaf = spread(mesh, x, placements).requires_grad_()
        got, want = torch.compile(both, backend="aot_eager", fullgraph=True)(leaf), both(leaf)
        for a, b in zip(got, want, strict=True):
            assert_same_bits(a.full_tensor(), b.full_tensor())
        da, db = (gradient(ys, leaf, [torch.ones_like(y) for y in ys]) for ys in (got, want))
        assert_same_bits(da.full_tensor(), db.full_tensor())


@check
def who_computes(mesh):
    x, target, _ = problem((6, 8))
    calls = {
        "softmax": lambda leaf: softkern.softmax(leaf, 1).square().sum(),
        "log_softmax": lambda leaf: softkern.log_softmax(leaf, 1).square().sum(),
        "cross_entropy": lambda leaf: softkern.cross_entropy(leaf, spread(mesh, target, [Replicate()])),
    }
    for op, call in calls.items():
        for kind, placements in (("rows", ([Shard(0)], [Replicate()])), ("classes", ([Shard(1)],))):
            seen = []
            for placement in placements:
                leaf = spread(mesh, x, placement).requires_grad_()
                with Watch() as watch:
                    gradient(call(leaf), leaf)
                seen.append(watch.kernels_and_torchs)
            assert len(set(seen)) == 1, "rows that are sharded and rows that are not go different ways"
            WAYS[kind, op] = seen[0]


@check
def planted(mesh):
    """Must fail, or the checks above can't: torch/test_distributed.py looks."""
    y = softkern.softmax(spread(mesh, logits(4, 5), [Shard(0)]), 1)
    assert_same_bits(y.full_tensor(), softkern.softmax(logits(4, 5).flip(0), 1))
