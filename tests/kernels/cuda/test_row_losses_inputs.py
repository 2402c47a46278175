# SPDX-License-Identifier: Apache-2.0
"""row_losses by the CUDA kernels: layouts, what is not finite, ignored rows, indices out of range, orders of
threads."""

from __future__ import annotations

import math

import pytest
import torch
from compare import assert_same_bits
from cuda_checks import CLUSTER, by_kernels, emulated, full, logits, tensor, way, with_clusters
from cuda_row_checks import backward, check, check_gradient, forward, problem, upstream
from row_losses_cases import ALL, over_targets
from row_losses_checks import DIFFERENTIABLE

pytestmark = by_kernels
inf, nan = math.inf, math.nan
EVERY = {k: v for k, v in ALL.items() if k != "num_items"}
# Classes for each kind of team: one thread, lanes, a block, a cluster, and a block that reads twice.
TEAMS = (7, 45, 1000, 40001, 140001)


def beside(x, dim, n):
    """The same logits in a larger tensor, n elements before each row."""
    pad = list(x.shape)
    pad[dim] = n
    return torch.cat([x.new_full(pad, 77.0), x], dim).narrow(dim, n, x.shape[dim])


LAYOUTS = {
    "classes last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "beside others": lambda x: beside(x, 1, 4),
    "unaligned": lambda x: beside(x, 1, 1),
    "every other": lambda x: x.repeat_interleave(2, 1)[:, ::2],
}


@over_targets
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", ((3, 10), (3, 48), (2, 640), (2, 40, 3), (2, 9, 3)), ids=str)
def test_layouts(shape, layout, target):
    """And in place, what lies between the logits stays as it is."""
    plain, options = problem(shape, target=target, **EVERY)
    x = LAYOUTS[layout](plain)
    if target == "probs":
        options["target"] = LAYOUTS[layout](options["target"])
    check(x, **options)
    found, _ = forward(x, **options)
    grads = upstream(found, DIFFERENTIABLE)
    whole = full((4 * x.numel() + 64,), 77.0)
    place = (x.shape, x.stride(), x.storage_offset())
    whole.as_strided(*place).copy_(x)
    around = whole.clone()
    dx = backward(grads, whole.as_strided(*place), inplace=True, **options)
    check_gradient(dx, grads, x, **options)
    around.as_strided(*place).copy_(dx)
    assert_same_bits(whole, around)


@pytest.mark.parametrize("classes", TEAMS)
def test_argmax_is_the_first_maximum_or_nan(classes):
    x = logits(7, classes)
    x[0, 3] = x[0, 5] = nan
    x[0, 1] = 100
    x[1, 4] = x[1, classes - 1] = inf
    x[2, : classes // 2] = -inf
    x[3] = -inf
    x[4, classes - 2] = x[4, 2] = 50
    x[5] = nan
    x[6] = -torch.arange(classes).remainder(2).to(x)  # -0 and -1
    target = tensor([3, 4, classes - 1, 0, 2, 0, 2])
    for outputs in (("argmax", "correct"), ("argmax", "entropy")):
        found, _ = forward(x, outputs=outputs, target=target)
        assert found.argmax.tolist() == x.argmax(1).tolist()
    (*_, correct), _ = forward(x, outputs=("correct",), target=target)
    assert correct.tolist() == [True, True, bool(x[2, -1] == x[2].max()), True, True, True, False]


def test_argmax_of_more_classes_than_a_float_counts():
    """A float tells apart whole numbers up to 2^24; the kernel reduces them in two parts of 22 bits."""
    x = full((1, 2**22 + 5000), -1.0)
    for first, second in ((2**22 + 4097, 2**22 + 4999), (4097, 2**22 + 1), (2**22 - 1, 2**22)):
        x[0, first] = x[0, second] = 3
        found, _ = forward(x, outputs=("argmax",))
        assert found.argmax.tolist() == [first]
        x[0, first] = x[0, second] = -1


@pytest.mark.parametrize("options", ({"softcap": 2.0}, {"logit_scale": -2.0}, {"temperature": 0.5}), ids=str)
@pytest.mark.parametrize("classes", TEAMS)
def test_padding_stays_padding(classes, options):
    """Logits of -inf stay -inf, whatever comes of the others; a target there has no probability."""
    x = logits(3, classes)
    x[:, 1::2] = -inf
    check(x, target=tensor([0, 2, 4]), reduction="none", **options)
    found, _ = forward(x, target=tensor([1, 3, 5]), reduction="none", **options)
    assert found.log_prob.tolist() == [-inf] * 3 and found.loss.tolist() == [inf] * 3
    dx = backward({"loss": tensor([1.0, 1.0, 1.0])}, x, target=tensor([1, 3, 5]), reduction="none", **options)
    assert bool(dx.isfinite().all())


@pytest.mark.parametrize("smoothing", (0.0, 0.1))
@pytest.mark.parametrize("classes", TEAMS[:4])
def test_ignored_rows_are_zeros_without_a_sign(classes, smoothing):
    x, target = logits(3, classes), tensor([1, -100, 2])
    x[1] = nan
    for kwargs in ({}, {"logit_scale": -2.0, "softcap": 3.0}):
        options = {"target": target, "label_smoothing": smoothing, "reduction": "none", **kwargs}
        found, dx = forward(x, True, **options)
        mixed = backward(upstream(found, DIFFERENTIABLE), x, **options)
        for numbers in (*found[:4], dx, mixed):
            assert_same_bits(numbers[1], torch.zeros_like(numbers[1]))
            assert bool(numbers[::2].isfinite().all())
        assert found.argmax[1] == -1 and not found.correct[1]


@emulated  # where the kernels can raise
@pytest.mark.parametrize("wrong", (-1, 40, 42, 10**6, -(2**40), 2**62))
def test_an_index_out_of_range_stops_the_kernel(wrong):
    """42 is a class, but none of the valid ones; -100 is ignored with one index a row alone."""
    x = logits(3, 45)
    one, several = tensor([2, wrong, 5]), tensor([[2, 3], [3, wrong], [5, 5]])
    for kwargs in ({}, {"label_smoothing": 0.1}, {"softcap": 2.0}):
        with pytest.raises(IndexError, match=f"Target {wrong} is out of bounds"):
            forward(x, target=one, valid_classes=40, **kwargs)
        for given in (several, several.masked_fill(several == wrong, -100)):
            with pytest.raises(IndexError, match=f"Target {int(given[1, 1])} is out of bounds"):
                forward(x, target=given, target_probs=tensor([[0.5, 0.5]] * 3), valid_classes=40, **kwargs)


ORDERS = ("forward", "reverse", "warps", "warps-reverse")


@emulated
@over_targets
@pytest.mark.parametrize(
    ("classes", "there"), ((10, True), (45, True), (1000, True), (17000, True), (17000, False)), ids=str
)
def test_every_order_of_threads_gives_the_same_bits(monkeypatch, classes, there, target):
    """A barrier that is missing leaves one order with numbers that are not there yet."""
    with_clusters(monkeypatch, there)
    x, options = problem((2, classes), target=target, k=5, **EVERY)
    answers = []
    for order in ORDERS:
        monkeypatch.setenv("SIMT_ORDER", order)
        found, _ = forward(x, **options)
        dx = backward(upstream(found, DIFFERENTIABLE), x.clone(), inplace=True, **options)
        answers.append([t for t in (*found, dx) if t is not None])
    for other in answers[1:]:
        for a, b in zip(answers[0], other, strict=True):
            assert_same_bits(a, b)


@emulated
def test_rows_go_without_clusters_where_none_fits(monkeypatch):
    x, options = problem((2, 40000), softcap=8.0)
    assert check(x, **options) == CLUSTER
    monkeypatch.setenv("SIMT_CLUSTERS", "0")
    without, _ = forward(x, **options)
    monkeypatch.setenv("SIMT_CLUSTERS", "1")
    monkeypatch.setenv("SIMT_CLUSTER_ROOM", "1")
    found, _ = forward(x, **options)
    assert way() != CLUSTER
    for a, b in zip(found, without, strict=True):
        assert_same_bits(a, b)


@over_targets
@pytest.mark.parametrize("shape", ((5, 10), (5, 45), (3, 1000), (3, 60, 5)), ids=str)
def test_a_row_has_the_same_bits_alone_and_anywhere_in_a_batch(shape, target):
    x, options = problem(shape, target=target, softcap=8.0, smoothing=0.1)
    together, dx = forward(x, target != "none", **options)
    for i in range(shape[0]):
        own = {n: t[i : i + 1] if isinstance(t, torch.Tensor) else t for n, t in options.items()}
        alone, dx_alone = forward(x[i : i + 1].clone(), target != "none", **own)
        for a, b in zip(alone, together, strict=True):
            assert a is b or (a.numel() > 0 and torch.equal(a, b[i : i + 1]))
        assert_same_bits(dx_alone, dx[i : i + 1] if target != "none" else dx)
