# SPDX-License-Identifier: Apache-2.0
"""Compiled and exported graphs with unknown sizes, and their memory."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.nn.functional as F
from cases import logits, name, upstream
from compare import assert_same_bits
from cross_entropy_cases import OPTIONS, REDUCTIONS, class_weights, indices, probabilities, problem
from feature_cases import close, data, f64, over_ops

import softkern

# What torch's own compiler says about itself while it compiles.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.*"),
]

INDUCTOR = pytest.param(
    "inductor",
    marks=[
        pytest.mark.inductor,
        pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs g++"),
    ],
)
over_backends = pytest.mark.parametrize("backend", ("aot_eager", INDUCTOR))
MODES = {"no_grad": torch.no_grad, "inference": torch.inference_mode, "grad": torch.enable_grad}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True):
        yield
    torch._dynamo.reset()


def all_losses(namespace, x, index, mass, weight):
    """Under every option, in one graph: a list."""
    losses = []
    for options in OPTIONS:
        kwargs = {"label_smoothing": options.get("smoothing", 0.0)}
        if "weight" in options:
            kwargs["weight"] = weight
        if "ignore" in options:
            kwargs["ignore_index"] = options["ignore"]
        target = mass if "probs" in options else index
        losses += [namespace.cross_entropy(x, target, reduction=r, **kwargs) for r in REDUCTIONS]
    return losses


def step(namespace, gradient):
    """Losses, or the logits' gradient of all of them."""

    def f(*args):
        losses = all_losses(namespace, *args)
        return sum((loss * (1 + i)).sum() for i, loss in enumerate(losses)) if gradient else losses

    return f


SHAPES = {
    1: ((7,), (9,)),
    2: ((6, 10), (9, 10), (13, 12)),
    3: ((4, 5, 3), (3, 5, 8)),
    4: ((2, 5, 3, 4), (3, 5, 2, 6)),
}


@over_backends
@pytest.mark.parametrize(
    ("rank", "mode"), [(r, m) for r in SHAPES for m in MODES if m == "no_grad" or r in (2, 4)]
)
def test_every_loss_of_sizes_that_are_not_known(rank, mode, backend):
    """One graph with every option, over all sizes; values, shapes and gradients are torch's."""
    gradient = mode == "grad"
    f = torch.compile(step(softkern, gradient), dynamic=True, fullgraph=True, backend=backend)
    for shape in SHAPES[rank]:
        c = shape[min(1, rank - 1)]
        args = indices(shape), probabilities(shape, f64), class_weights(c, f64)
        results = []
        for function in (f, step(F, gradient)):
            x = logits(*shape, dtype=f64).requires_grad_(gradient)
            with MODES[mode]():
                result = function(x, *args)
            results.append(torch.autograd.grad(result, x) if gradient else result)
        close(*results)


@over_backends
@pytest.mark.parametrize("mode", MODES)
def test_an_evaluation_loop_that_meets_another_batch_size(mode, backend):
    """The mean over a mask, of losses for each token: the second size makes the sizes symbols."""

    def masked_mean(namespace):
        def f(x, y, mask):
            losses = namespace.cross_entropy(x.flatten(0, 1), y.flatten(), reduction="none").view(y.shape)
            return (losses * mask).sum() / mask.sum(), losses

        return f

    f = torch.compile(masked_mean(softkern), backend=backend)
    for batch, length in ((4, 6), (3, 6), (5, 9), (4, 7)):
        x, y = logits(batch, length, 10, dtype=f64), indices((batch * length, 10)).view(batch, length)
        mask = (y % 3 != 0).double()
        with MODES[mode]():
            got = f(x, y, mask)
            expected = masked_mean(F)(x, y, mask)
        assert got[0].shape == () and got[1].shape == (batch, length)
        close(got, expected)


class Losses(torch.nn.Module):
    def forward(self, x, index, mass, weight):
        return tuple(all_losses(softkern, x, index, mass, weight))


@pytest.mark.parametrize("strict", (False, True))
@pytest.mark.parametrize("rank", (2, 4))
def test_export_with_a_dynamic_batch(rank, strict):
    def arguments(shape):
        return logits(*shape), indices(shape), probabilities(shape), class_weights(shape[1])

    batch = {0: torch.export.Dim("batch", min=2)}
    first, *others = SHAPES[rank]
    dynamic = {"x": batch, "index": batch, "mass": batch, "weight": None}
    program = torch.export.export(Losses(), arguments(first), dynamic_shapes=dynamic, strict=strict)
    shapes = [node.meta["val"].shape for node in program.graph.nodes if "cross_entropy" in node.name]
    rows = (first[0], *first[2:])
    assert [len(s) for s in shapes] == [len(rows) if r == "none" else 0 for _ in OPTIONS for r in REDUCTIONS]
    for shape in (first, *(s for s in others if s[1:] == first[1:]), (17, *first[1:])):
        args = arguments(shape)
        torch.testing.assert_close(program.module()(*args), tuple(all_losses(softkern, *args)))


def by_mask(x, y, mask):
    return x[mask], y[mask]


def by_two_masks(x, y, mask):
    return x[mask], y[mask.logical_not().logical_not()]


def by_positions(x, y, mask):
    rows = mask.nonzero().squeeze(1)
    return x.index_select(0, rows), y.index_select(0, rows)


def by_count(x, y, mask):
    n = mask.sum().item()
    return x[:n], y[:n]


SELECTIONS = (by_mask, by_two_masks, by_positions, by_count)
# Of targets with as many dims as the logits, torch has to know whether they have the same shape, too.
KNOWN = ((by_mask, OPTIONS[-1]), (by_positions, OPTIONS[-1]))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    ("select", "options"), [(s, o) for s in SELECTIONS for o in (OPTIONS[0], OPTIONS[7])] + [*KNOWN], ids=name
)
def test_rows_that_data_select(select, options, reduction):
    """Compiled with and without gradient, and exported; no row selected, some, and all."""
    for shape in ((16, 10), (16, 5, 3)):
        x, y, kwargs = problem(shape, f64, **options)

        def loss(namespace, x, y, mask, kwargs=kwargs):
            return namespace.cross_entropy(*select(x, y, mask), reduction=reduction, **kwargs)

        class Module(torch.nn.Module):
            def forward(self, x, y, mask, loss=loss):
                return loss(softkern, x, y, mask)

        masks = [
            torch.arange(16) % 3 != 0,
            torch.ones(16, dtype=torch.bool),
            torch.zeros(16, dtype=torch.bool),
        ]
        torch._dynamo.reset()
        compiled = torch.compile(Module(), backend="aot_eager", fullgraph=True)
        exported = torch.export.export(Module(), (x, y, masks[0])).module()
        for mask in masks:
            expected = loss(F, x, y, mask)
            for f in (compiled, exported):
                torch.testing.assert_close(f(x, y, mask), expected, rtol=1e-9, atol=1e-11, equal_nan=True)
            got, want = x.clone().requires_grad_(), x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(compiled(got, y, mask).sum(), got)
            (expected,) = torch.autograd.grad(loss(F, want, y, mask).sum(), want)
            torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-11, equal_nan=True)


@pytest.mark.feature("torch.compile(fullgraph) and torch.export of rows that a mask selects")
@over_ops
def test_rows_that_a_mask_selects(op, watch):
    x, y = data(), indices((6, 10))
    mask = torch.arange(6) % 3 != 0

    def f(namespace, x, y, mask):
        function = getattr(namespace, op)
        return function(x[mask], y[mask]) if op == "cross_entropy" else function(x[mask], 1)

    class Module(torch.nn.Module):
        def forward(self, x, y, mask):
            return f(softkern, x, y, mask)

    compiled = torch.compile(Module(), backend="aot_eager", fullgraph=True)
    exported = torch.export.export(Module(), (x, y, mask)).module()
    compiled(x, y, mask)
    with watch:
        got = compiled(x, y, mask), exported(x, y, mask)
    close(got, (f(F, x, y, mask),) * 2)


@pytest.mark.inductor
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs g++")
def test_rows_that_a_mask_selects_by_inductor():
    def f(namespace):
        return lambda x, y, mask: sum(
            namespace.cross_entropy(x[mask], y[mask], reduction=r).sum() for r in REDUCTIONS
        )

    compiled = torch.compile(f(softkern), fullgraph=True)
    for n in (16, 9):
        y, mask = indices((n, 10)), torch.arange(n) % 3 != 0
        results = []
        for function in (compiled, f(F)):
            x = logits(n, 10, dtype=f64).requires_grad_()
            loss = function(x, y, mask)
            results.append((loss.detach(), *torch.autograd.grad(loss, x)))
        close(*results)


def peak(f, *args) -> int:
    """Bytes that were allocated at a time, above those before."""
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        f(*args)
    changes = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(changes, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.inductor
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs g++")
@pytest.mark.parametrize(
    ("dtype", "dynamic"),
    [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False), (torch.float16, False)],
    ids=name,
)
@pytest.mark.parametrize("options", (OPTIONS[7], OPTIONS[-1]), ids=name)
def test_the_gradient_takes_the_place_of_the_forwards(options, dtype, dynamic):
    """What the forward has stored is scaled where it is, as in eager mode."""
    for shape in ((128, 1024), (2, 256, 16, 16)):
        x, target, kwargs = problem(shape, dtype, **options)
        weight = kwargs.pop("weight", None)
        for reduction in ("none", "mean"):
            compare_compiled_gradients(x, target, weight, dynamic, reduction=reduction, **kwargs)


def compare_compiled_gradients(x, target, weight, dynamic, **kwargs):
    def f(x, target, weight):
        return softkern.cross_entropy(x, target, weight, **kwargs)

    def gradient(f, g):
        return torch.autograd.grad(f(x, target, weight), x, g)[0]

    torch._dynamo.reset()
    compiled = torch.compile(f, dynamic=dynamic, fullgraph=True)
    loss = f(x.requires_grad_(), target, weight).detach()
    for g in (torch.ones_like(loss), upstream(loss, "random")):
        assert_same_bits(gradient(compiled, g), gradient(f, g))
        eager, extra = (peak(gradient, function, g) / x.nbytes for function in (f, compiled))
        assert extra < eager + 0.1, f"{extra:.2f} times the logits, eager {eager:.2f}: {kwargs}"


@pytest.mark.inductor
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs g++")
def test_ignored_rows_stay_zeros_in_compiled_backwards():
    """Whatever comes from above, and whatever their logits are."""
    x, target, _ = problem((6, 10), ignore=-100)
    x[1] = torch.nan
    x = x.requires_grad_()
    ignored = target == -100
    for reduction in REDUCTIONS:
        f = torch.compile(
            lambda x, r=reduction: softkern.cross_entropy(x, target, reduction=r), fullgraph=True
        )
        for value in (1.0, -3.0, torch.inf, torch.nan):
            loss = f(x)
            (dx,) = torch.autograd.grad(loss, x, torch.full_like(loss, value))
            assert (dx[ignored] == 0).all(), (reduction, value)
            assert ignored.any() and dx[~ignored].isfinite().all() == (abs(value) < 4)


@over_backends
def test_backward_twice_through_a_compiled_loss(backend):
    """Buffers are not given away where the graph is kept."""
    x, target, _ = problem((6, 10), f64)
    x.requires_grad_()
    f = torch.compile(lambda x: softkern.cross_entropy(x, target), backend=backend, fullgraph=True)
    with torch._functorch.config.patch(donated_buffer=False):
        loss = f(x)
        first = torch.autograd.grad(loss, x, torch.tensor(3.0, dtype=f64), retain_graph=True)
        second = torch.autograd.grad(loss, x, torch.tensor(3.0, dtype=f64))
    close(second, first)
    close(first[0], 3 * torch.autograd.grad(F.cross_entropy(x, target), x)[0])
