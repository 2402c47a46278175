# SPDX-License-Identifier: Apache-2.0
"""Some classes of rows in Triton's interpreter: the numbers that are merged with those of other classes, and
the gradient from the numbers of whole rows. `make triton` runs them."""

from __future__ import annotations

import math
import os
import re

import pytest
import torch
from cases import logits
from compare import assert_gradient, assert_same_bits
from places import ROOT
from row_losses_cases import ALL, TARGETS, over_targets, row_problem
from row_losses_checks import DIFFERENTIABLE, compute, in_float64
from row_losses_scales import scales

from softkern import reference
from softkern import reference_rows as plain
from softkern.options import OUTPUTS, RowOptions

pytest.importorskip("triton", reason="the Triton backend needs Triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if INTERPRETED:
    import triton_interpreter

    import softkern.triton
    from softkern.triton import plan, row_parts_kernels
    from softkern.triton import row_losses as step

    triton_interpreter.look_once()
    softkern.triton.register()

pytestmark = [
    pytest.mark.skipif(not INTERPRETED, reason="not a process with TRITON_INTERPRET=1"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # NumPy's, of infinities
]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MAX, TIES, REST, TERMS_BELOW, MASS, MASS_BELOW, HOT_Z = range(7)
CLASSES = 29  # an odd number, with 3 of padding
WINDOWS = ((0, 11), (11, 29))
inf, nan = math.inf, math.nan


@pytest.fixture
def small_blocks(monkeypatch):
    """Rows of more than 8 classes are long: blocks of 8 by one program each, of which a row has at most 2. A
    block of class indices has 2."""
    names = ("HELD_WITH_OTHERS", "HELD_DOUBLE_IN_ROW_LOSSES", "LONG_BLOCK")
    for name in names:
        monkeypatch.setattr(plan, name, 8)
    monkeypatch.setattr(plan, "SHORT_PROGRAM", 16)
    monkeypatch.setattr(step, "MOST_PARTS", 2)
    monkeypatch.setattr(step, "HOT_BLOCK", 2)


class Rows:
    """A problem of row_problem, as the step takes it."""

    def __init__(self, x, target=None, target_probs=None, weight=None, row_weight=None, **options):
        self.x, self.weight = x, weight
        rows, wide = x.select(1, 0).numel(), compute(x.dtype)
        self.indices = self.probabilities = self.target_probs = self.log_prob_shape = None
        if target is not None and target.is_floating_point():
            self.probabilities = target
        elif target is not None and target.dim() < x.dim():
            self.indices = target.reshape(rows)
        elif target is not None:
            self.indices = target.movedim(1, -1).reshape(rows, -1)
        if target_probs is not None:
            self.target_probs = target_probs.movedim(1, -1).reshape(rows, -1).to(wide)
        self.row_weight = None if row_weight is None else row_weight.reshape(rows).to(wide)
        self.options = RowOptions(
            reduction=0,
            ignore_index=options.get("ignore_index", -100),
            label_smoothing=options.get("label_smoothing", 0.0),
            valid_classes=options.get("valid_classes", x.shape[1]),
            logit_scale=options.get("logit_scale", 1.0),
            softcap=options.get("softcap", 0.0),
            temperature=options.get("temperature", 1.0),
            z_loss=options.get("z_loss", 0.0),
            outputs=sum(OUTPUTS.values()),
        )
        self.rows, self.wide = rows, wide

    def call(self, window=None, *, whole=None, factor=0.0, on_device=None, parts=None, grad=None, **upstream):
        first, end = window or (0, self.x.shape[1])
        t = self.probabilities
        torch.ops.softkern_triton.row_losses(
            self.x[:, first:end], self.indices, self.target_probs, None if t is None else t[:, first:end],
            self.weight, self.row_weight, *self.options, first, whole, factor, on_device,
            *(upstream.get(name) for name in DIFFERENTIABLE), *[None] * 6, parts, None, grad,
        )  # fmt: skip

    def parts(self, window=None):
        """A step from one number to the next that is not the number of rows."""
        parts = torch.full((7, self.rows + 2), nan, dtype=self.wide)[:, 1:-1]
        self.call(window, parts=parts)
        return parts

    def upstream(self):
        shapes = {name: (self.rows,) for name in DIFFERENTIABLE}
        if self.indices is None:
            del shapes["log_prob"]
        else:
            shapes["log_prob"] = tuple(self.indices.shape)
        if self.indices is None and self.probabilities is None:
            del shapes["loss"]
        return {n: logits(*s, seed=i, dtype=self.wide) / 8 for i, (n, s) in enumerate(shapes.items())}

    def gradient(self, whole=None, windows=((0, None),), inplace=False, **options):
        """Of all results; that of windows side by side."""
        grad = self.x.clone() if inplace else torch.full_like(self.x, nan)
        kept, upstream = self.x, self.upstream()
        if inplace:
            self.x = grad
        for first, end in windows:
            end = end or grad.shape[1]
            self.call(
                (first, end), whole=whole, grad=grad[:, first:end], factor=float("loss" in upstream),
                **upstream, **options,
            )  # fmt: skip
        self.x = kept
        return grad


def statistics(x, window, options):
    """The numbers of the rows of these classes in float64, the sums divided by d: m, log d, mean of m - z,
    the spread mass, that times m - z, and z of the class index; and what is not ignored."""
    x, given = in_float64(x, options)
    first, end = window[0], min(window[1], given.pop("valid_classes", x.shape[1]))
    transform = [given.pop(name, value) for name, value in
                 (("logit_scale", 1.0), ("softcap", None), ("temperature", 1.0))]  # fmt: skip
    given.pop("z_loss", None)
    ignore, smoothing = given.pop("ignore_index", -100), given.pop("label_smoothing", 0.0)
    whole = plain.classes_last(x)[..., : options.get("valid_classes", x.shape[1])]
    names = ("target", "weight", "row_weight", "target_probs")
    a = plain.masses(whole, *map(given.get, names), ignore, smoothing)
    z = plain.transformed(torch.where(a.valid.unsqueeze(-1), whole, 0), *transform)
    none = a.spread is None or given.get("target") is None
    spread = torch.zeros_like(z) if none else a.spread
    hot_z = torch.zeros_like(z[..., 0])
    if plain.has_one_index(given.get("target"), a.r):
        hot_z = z.gather(-1, a.y)[..., 0] * ((a.y >= first) & (a.y < end))[..., 0]
    z, spread = z[..., first:end], spread[..., first:end]
    s = plain.statistics(z)
    sums = (s.m, s.log_d, s.mean, spread.sum(-1, True), (spread * s.below).sum(-1, True))
    numbers = torch.stack([*(n.squeeze(-1) for n in sums), hot_z])
    return numbers.flatten(1), a.valid.flatten()


def assert_parts(parts, x, window, options):
    expected, valid = statistics(x, window, options)
    assert not parts[:, ~valid].any()
    found = parts[:, valid].double()
    m = found[MAX]
    power = torch.where(m.abs() < 1024, (m.to(parts.dtype) * (1 / math.log(2))).round().double(), 0)
    top = torch.where(m.abs() < 1024, m - power * math.log(2), 0).exp()
    d = found[TIES] + found[REST] / top
    got = torch.stack([m, d.log(), found[TERMS_BELOW] / (d * top), *found[MASS:]])
    close = {"rtol": 1e-13, "atol": 1e-13} if parts.dtype == torch.float64 else {"rtol": 4e-6, "atol": 4e-6}
    torch.testing.assert_close(got, expected[:, valid], **close)


def assert_gradients(rows, options, inplace=False, windows=WINDOWS):
    """Of windows: with the bits of the gradient of whole rows, which is near that of float64."""
    whole = rows.parts()
    together = rows.gradient()
    assert_same_bits(rows.gradient(whole, windows, inplace), together)
    x, kwargs = in_float64(rows.x, options)
    shape = rows.x.select(1, 0).shape
    upstream = {}
    for name, g in rows.upstream().items():
        several = g.dim() == 2
        g = g.double().reshape(*shape, *g.shape[1:])
        upstream[name] = g.movedim(-1, 1) if several else g
    expected = reference.row_losses_backward(
        *map(upstream.get, DIFFERENTIABLE), x, **kwargs, reduction="none"
    )
    _, scale = scales(x, upstream, **kwargs, reduction="none")
    assert_gradient(together, expected, rows.x.dtype, dim=1, scale=scale, roundings=2)


@over_targets
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_options_in_each_dtype(dtype, target):
    x, options = row_problem((5, CLASSES), dtype, target=target, **ALL)
    del options["num_items"]
    rows = Rows(x, **options)
    for window in (*WINDOWS, (0, CLASSES)):
        assert_parts(rows.parts(window), x, window, options)
    assert_gradients(rows, options, inplace=dtype in (torch.float32, torch.bfloat16))


@over_targets
def test_no_options(target):
    x, options = row_problem((5, 10), target=target)
    rows = Rows(x, **options)
    for window in ((0, 3), (3, 10)):
        assert_parts(rows.parts(window), x, window, options)
    assert_gradients(rows, options, windows=((0, 3), (3, 4), (4, 10)))


@over_targets
def test_long_rows(small_blocks, target):
    """The second window has 3 blocks of classes, and more indices than a block."""
    x, options = row_problem((2, CLASSES), target=target, weight=True, smoothing=0.1, softcap=3.0)
    rows = Rows(x, **options)
    assert_parts(rows.parts(WINDOWS[1]), x, WINDOWS[1], options)
    assert_gradients(rows, options, inplace=True)


@over_targets
@pytest.mark.parametrize("shape", ((2, CLASSES, 5), (2, CLASSES, 66)), ids=str)
def test_classes_apart_in_memory(shape, target):
    x, options = row_problem(shape, target=target, weight=True, smoothing=0.1, row_weight=True)
    rows = Rows(x, **options)
    assert_parts(rows.parts(WINDOWS[1]), x, WINDOWS[1], options)
    assert_gradients(rows, options)


def test_a_window_behind_the_valid_classes():
    """It has nothing to add, and its gradient is 0."""
    x, options = row_problem((5, CLASSES), **ALL)
    rows = Rows(x, **options)
    ignored = options["target"] == options["ignore_index"]
    for window in ((26, 29), (29, 29)):
        parts = rows.parts(window)
        assert not parts[1:].any()
        assert parts[MAX].tolist() == torch.where(ignored, 0, -inf).tolist()
    grad = torch.full((5, 3), nan)
    rows.call((26, 29), whole=rows.parts(), grad=grad, factor=1.0)
    assert not grad.any()


def test_entropy_is_not_summed_unless_it_is_wanted():
    x, options = row_problem((3, 10))
    rows = Rows(x, **options)
    with_entropy = rows.parts()
    rows.options = rows.options._replace(outputs=OUTPUTS["loss"])
    without = rows.parts()
    assert with_entropy[TERMS_BELOW].all() and not without[TERMS_BELOW].any()
    with_entropy[TERMS_BELOW] = 0
    assert_same_bits(without, with_entropy)


def test_the_class_index_has_the_logit_of_the_whole_row():
    """p - 1 of a confident row is as small as the other classes' terms, whatever logit is read now."""
    for softcap in (0.0, 40.0):
        x = logits(3, 12)
        target = torch.tensor([1, 5, 9])
        x[[0, 1, 2], target] = 30
        rows = Rows(x, target=target, softcap=softcap)
        whole, expected = rows.parts(), rows.gradient()
        rows.x = x.clone()
        rows.x[[0, 1, 2], target] += 0.125
        assert_same_bits(rows.gradient(whole, ((0, 4), (4, 12))), expected)


def test_one_index_in_a_dimension_of_its_own():
    """Without masses, as selective_log_softmax has it."""
    x, target = logits(4, 9), torch.tensor([[3], [8], [0], [4]])
    rows, alone = Rows(x, target=target), Rows(x, target=target[:, 0])
    whole = alone.parts()
    for window in ((0, 4), (4, 9)):
        assert_same_bits(rows.parts(window), alone.parts(window))
    upstream = torch.rand(4)
    found, expected = torch.empty_like(x), torch.empty_like(x)
    for first, end in ((0, 4), (4, 9)):
        rows.call((first, end), whole=whole, log_prob=upstream[:, None], grad=found[:, first:end])
    alone.call(log_prob=upstream, grad=expected)
    assert_same_bits(found, expected)


def test_the_factor_may_be_on_the_device():
    x, options = row_problem((3, 9))
    rows = Rows(x, **options)
    grads = []
    for factor, on_device in ((0.375, None), (1.0, torch.tensor(0.375))):
        grads.append(torch.empty_like(x))
        rows.call(whole=rows.parts(), factor=factor, on_device=on_device, grad=grads[-1])
    assert_same_bits(*grads)
    torch.testing.assert_close(grads[0], 0.375 * (x.softmax(1) - torch.eye(9)[options["target"]]))


def test_masses_are_nothing_to_the_gradients_of_statistics():
    """A loss that has no upstream gradient must not become 0 * inf."""
    for target in TARGETS:
        x, options = row_problem((3, 9), target=target)
        rows = Rows(x, **options)
        heavy = Rows(x, **options, weight=torch.full((9,), inf), row_weight=torch.full((3,), inf))
        whole, found = rows.parts(), []
        for one in (rows, heavy):
            found.append(torch.empty_like(x))
            one.call(whole=whole, lse=torch.ones(3), entropy=-torch.ones(3), grad=found[-1])
        assert_same_bits(*found)
        assert bool(found[0].isfinite().all())


@pytest.mark.parametrize("wrong", (-1, 12, 10**6, -(2**40), 2**62))
def test_a_target_out_of_range_reads_and_writes_nothing_outside(wrong):
    """In a row of 12 classes; the kernels are not spared the target."""
    around = torch.full((9, 40), 77.0)
    x = around[3:6, 7:19]
    x.copy_(logits(3, 12))
    for target, probs in (
        (torch.tensor([2, wrong, 5]), None),
        (torch.tensor([[2, 3], [1, wrong], [5, 5]]), torch.rand(3, 2)),
    ):
        rows = Rows(x, target=target, target_probs=probs, weight=torch.rand(12))
        parts = rows.parts((4, 12))
        if probs is None:
            assert parts.isnan().all(0).tolist() == [False, True, False]
        before = around.clone()
        grad = rows.gradient(rows.parts(), ((0, 4), (4, 12)))
        assert bool(grad[1].isnan().all()) and bool(grad[[0, 2]].isfinite().all())
        assert_same_bits(around, before)
        for first, end in ((0, 4), (4, 12)):
            rows.call((first, end), whole=torch.ones(7, 3), factor=1.0, grad=x[:, first:end])
        x.fill_(77)
        assert bool((around == 77).all()), "written beside the logits"
        x.copy_(before[3:6, 7:19])


def test_the_numbers_are_those_of_cpp():
    (found,) = re.findall(
        r"^enum PartNumber : int64_t {(.*?)};",
        (ROOT / "csrc/common/options.h").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    names = [re.sub(r"(?<!^)(?=[A-Z])", "_", n.strip().removeprefix("k")).upper() for n in found.split(",")]
    ours = {n: v.value for n, v in vars(row_parts_kernels).items() if n.startswith("PART_")}
    assert ours == {n: i for i, n in enumerate(names) if n != "PART_NUMBERS"}
