# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of row_losses in Triton's interpreter, against the float64 oracle: options, layouts,
long rows, several class indices a row. They need a process that has TRITON_INTERPRET=1 from its start:
`make triton`."""

from __future__ import annotations

import math
import os

import pytest
import torch
from cases import logits
from compare import assert_same_bits
from row_losses_cases import ALL, ALONE, over_targets, row_problem
from row_losses_checks import DIFFERENTIABLE, MIXES, check, possible, row_losses

import softkern

pytest.importorskip("triton", reason="the Triton backend needs Triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if INTERPRETED:
    import triton_interpreter

    import softkern.triton
    from softkern.triton import plan
    from softkern.triton import row_losses as step

    triton_interpreter.look_once()
    softkern.triton.register()

pytestmark = [
    pytest.mark.skipif(not INTERPRETED, reason="not a process with TRITON_INTERPRET=1"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # NumPy's, of infinities
    pytest.mark.usefixtures("triton"),
]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LONG = 20  # classes; see small_blocks
inf, nan = math.inf, math.nan


@pytest.fixture
def triton():
    with softkern.use_backend("triton"):
        yield


@pytest.fixture
def small_blocks(monkeypatch):
    """Rows of more than 16 classes are long: several blocks of 8, by one program. Of several class indices of
    a row, a block has 2."""
    for name, value in (
        ("HELD_WITH_OTHERS", 16),
        ("HELD_DOUBLE_IN_ROW_LOSSES", 16),
        ("LONG_BLOCK", 8),
        ("SHORT_PROGRAM", 32),
    ):
        monkeypatch.setattr(plan, name, value)
    monkeypatch.setattr(step, "HOT_BLOCK", 2)


def ran() -> str:
    assert softkern._C.last_isa() == "triton"
    return softkern._C.last_path()


@pytest.mark.parametrize("case", ALONE)
def test_each_option_alone(case):
    x, options = row_problem((5, 7), **ALONE[case])
    check(x, mixes=MIXES[:2], **options)
    assert ran() == "rows, held"


@over_targets
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_options_in_each_dtype(dtype, target):
    x, options = row_problem((5, 33), dtype, target=target, **ALL)
    check(x, mixes=MIXES[:2], **options, reduction="none")


@over_targets
def test_any_upstream_gradients(target):
    """Of the results that the target allows, each combination."""
    x, options = row_problem((3, 9), target=target, **ALL)
    outputs = tuple(name for name in DIFFERENTIABLE if name in possible(x, **options))
    subsets = [
        tuple(name for i, name in enumerate(outputs) if bits >> i & 1) for bits in range(1, 1 << len(outputs))
    ]
    check(x, outputs, tuple(subsets), **options, reduction="none")


@over_targets
@pytest.mark.parametrize("classes", (1, 7, 1000, 5000))
def test_any_number_of_classes(classes, target):
    """5000 of float64 are too many for the registers of a program."""
    for dtype in (torch.float32, torch.float64):
        x, options = row_problem((2, classes), dtype, target=target, k=2, softcap=3.0, smoothing=0.1)
        check(x, mixes=MIXES[1:2], **options, reduction="none")
    assert ran() == ("rows, in blocks" if classes == 5000 else "rows, held")


@over_targets
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_long_rows(small_blocks, dtype, target):
    x, options = row_problem((3, LONG), dtype, target=target, **ALL)
    check(x, mixes=MIXES[1:2], **options, reduction="none")
    assert ran() == "rows, in blocks"


@over_targets
def test_long_rows_without_options(small_blocks, target):
    """Every block may have the maximum, or nothing but -inf, or offsets on both sides of 1024."""
    x, options = row_problem((6, 37), target=target)
    if target == "probs":  # 0 * inf is NaN
        options["target"] = options["target"].clamp(min=0.01)
    x[1, :17] = -inf
    x[2, 20:] = -inf
    x[3] += 1000
    x[3, :20] += 40
    x[4] -= 1040
    x[4, 30:] += 30
    x[5, 9] = 600 if target == "probs" else 2000  # the oracle's scale is that of terms above 0
    if target == "index":
        options["target"] = torch.tensor([0, 30, 3, 19, 36, 9])
    if target == "indices":
        options["target"] = torch.tensor(
            [[0, 36, 8], [30, 30, 18], [3, 0, 3], [19, 5, 36], [36, 0, 7], [9, 9, 9]]
        )
    check(x, mixes=MIXES[1:2], **options, reduction="none")


@over_targets
@pytest.mark.parametrize("shape", ((2, 33, 5), (2, 40, 3, 4), (2, 9, 70)), ids=str)
def test_layouts_are_read_in_place(monkeypatch, shape, target):
    """Classes apart in memory, classes next to each other behind other dimensions, unaligned rows."""
    copied = []

    def walkable(x, dim):
        y, walk = plan.walkable(x, dim)
        copied.extend([] if y is x else [x.stride()])
        return y, walk

    monkeypatch.setattr(step, "walkable", walkable)
    plain, options = row_problem(shape, target=target, weight=True, smoothing=0.1, padding=2)
    layouts = (
        plain,
        plain.movedim(1, -1).contiguous().movedim(-1, 1),
        torch.cat([torch.zeros(1), plain.reshape(-1)])[1:].view(shape),
    )
    for x in layouts:
        check(x, mixes=MIXES[1:2], **options, reduction="none")
    assert not copied


@over_targets
@pytest.mark.parametrize("classes", (10, LONG))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_the_gradient_may_take_the_place_of_the_logits(small_blocks, dtype, classes, target):
    """The loss's in the forward, that of other results in the backward."""
    x, options = row_problem((3, classes), dtype, target=target, k=4, **ALL)
    outputs = possible(x, **options)
    for mix in (("loss",), ("loss", "lse", "log_prob", "entropy")):
        found = []
        for inplace in (False, True) if set(mix) & set(outputs) else ():
            leaf = x.clone().requires_grad_()
            results = row_losses(leaf * 1, outputs, inplace=inplace, **options, reduction="none")
            smooth = [getattr(results, name) for name in mix if name in outputs]
            found += torch.autograd.grad(smooth, leaf, [torch.full_like(y, 0.5) for y in smooth])
        assert_same_bits(*found) if found else None


@pytest.mark.parametrize("indices", (1, 5))
def test_equal_indices_of_a_row_add_up(small_blocks, indices):
    """Three blocks of them; the last row has one class only."""
    target = torch.arange(3 * indices).reshape(3, indices) * 5 % 4
    target[2] = 17
    options = {"softcap": 3.0, "label_smoothing": 0.1, "target": target, "reduction": "none"}
    for probs in (logits(3, indices).sigmoid(), None):
        check(logits(3, LONG), mixes=MIXES[1:2], **options, target_probs=probs)


def test_a_dominant_share_leaves_the_others_their_digits():
    """The other classes' pull on a class is summed without the class itself."""
    x = torch.tensor([[30.0, 0.0, -3.0, 1.0]])
    probs = torch.tensor([[1.0, 1e-9]])
    check(x, mixes=MIXES[:1], target=torch.tensor([[0, 1]]), target_probs=probs, reduction="sum")


def test_a_cap_keeps_minus_infinity(small_blocks):
    x = logits(3, LONG)
    x[:, 1::3] = -inf
    options = {"softcap": 2.0, "logit_scale": 1.5, "z_loss": 0.1, "reduction": "none"}
    for target in (torch.tensor([0, 2, 18]), torch.tensor([[0, 2], [3, 3], [18, 0]])):
        probs = torch.rand(3, 2) if target.dim() == 2 else None
        dx = check(x, mixes=MIXES[1:2], target=target, target_probs=probs, **options)
        assert not dx[:, 1::3].any() and dx[:, 0].any()


@pytest.mark.parametrize("classes", (10, LONG))
def test_ignored_rows_are_nothing_whatever_their_logits(small_blocks, classes):
    x = logits(4, classes)
    for row, value in zip(x, (nan, inf, -inf), strict=False):
        row[:] = value
    target = torch.tensor([-100, -100, -100, 3])
    dx = check(x, target=target, z_loss=0.1, label_smoothing=0.1, reduction="none")
    assert not dx[:3].any() and dx[3].all()


def test_the_best_class_is_the_first_of_equal_ones_and_nan_is_above_all(small_blocks):
    x = torch.zeros(7, 37)
    x[1, [20, 21, 36]] = 1
    x[2, [3, 30]] = -1
    x[3, :9] = -inf
    x[4, [25, 30]] = nan
    x[4, 2] = inf
    x[5] = -inf
    x[6] = nan
    for target in (torch.zeros(7, dtype=torch.long), torch.tensor([0, 20, 1, 9, 25, 5, -100])):
        found = row_losses(x, ("argmax", "correct"), target=target)
        assert found.argmax.tolist() == [0, 20, 0, 9, 25, 0, -1 if target[6] < 0 else 0]
        assert torch.equal(found.correct, found.argmax == target)


@pytest.mark.parametrize("dtype", (torch.int32, torch.uint8), ids=str)
def test_narrow_indices(small_blocks, dtype):
    for name in ("index", "indices"):
        x, options = row_problem((3, LONG), target=name)
        options["target"] = options["target"].to(dtype)
        check(x, mixes=MIXES[1:2], **options)


@over_targets
@pytest.mark.parametrize("classes", (10, LONG))
def test_a_row_has_the_same_bits_alone_and_anywhere_in_a_batch(small_blocks, classes, target):
    x, options = row_problem((7, classes), target=target, smoothing=0.1, softcap=3.0)
    outputs = possible(x, **options)

    def everything(rows):
        given = {k: v[rows] if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        leaf = x[rows].clone().requires_grad_()
        found = [y for y in row_losses(leaf, outputs, **given, reduction="none") if y is not None]
        smooth = [y for y in found if y.requires_grad]
        return [*found, *torch.autograd.grad(smooth, leaf, [torch.full_like(y, 0.7) for y in smooth])]

    together = everything(slice(0, 7))
    for i in (0, 5):
        for a, b in zip(everything(slice(i, i + 1)), together, strict=True):
            assert_same_bits(a.detach(), b[i : i + 1].detach())


@pytest.mark.parametrize("wrong", (-1, 7, 10**6, -(2**40), 2**62))
def test_a_target_out_of_range_reads_and_writes_nothing_outside(wrong):
    """The logits lie between numbers that nobody may touch, and the kernels are not spared the target."""
    around = torch.full((9, 21), 77.0)
    x = around[3:6, 7:14]
    x.copy_(logits(3, 7))
    before = around.clone()
    options = softkern.options.RowOptions(valid_classes=7, reduction=0)
    for target, probs in (
        (torch.tensor([2, wrong, 5]), None),
        (torch.tensor([[2, 3], [1, wrong], [5, 5]]), torch.rand(3, 2)),
    ):
        given = (target, probs, None, torch.rand(7), None, *options, 0, None, 1.0, *[None] * 5)
        results = step.Results(*[None] * len(step.Results._fields))
        for grad in (torch.empty(3, 7), x):
            loss, log_prob = torch.empty(3), torch.empty(target.shape)
            step.row_losses(x, *given, *results._replace(loss=loss, log_prob=log_prob), grad)
            assert loss.isnan().tolist() == [False, True, False]
            assert log_prob.reshape(3, -1).isnan().any(1).tolist() == [False, True, False]
            assert bool(grad[1].isnan().all()) and bool(grad[[0, 2]].isfinite().all())
            if grad is not x:
                assert_same_bits(around, before)
        x.fill_(77)
        assert bool((around == 77).all()), "written beside the logits"
        x.copy_(before[3:6, 7:14])


def test_the_factor_of_the_losses_gradient_may_be_on_the_device():
    """A kernel multiplies it, so that the host does not wait for it."""
    x, target = logits(4, 9), torch.tensor([0, 8, 3, 3])
    options = softkern.options.RowOptions(valid_classes=9, reduction=0)
    results = step.Results(*[None] * len(step.Results._fields))
    grads = []
    for factor, on_device in ((0.375, None), (1.0, torch.tensor(0.375))):
        upstream = step.Upstream(factor, on_device, *[None] * (len(step.Upstream._fields) - 2))
        grads.append(torch.empty_like(x))
        step.row_losses(x, target, *[None] * 4, *options, 0, None, *upstream, *results, grads[-1])
    assert_same_bits(*grads)
    torch.testing.assert_close(grads[0], 0.375 * (x.softmax(1) - torch.eye(9)[target]))


@over_targets
def test_masses_are_nothing_to_the_gradients_of_statistics(target):
    """A loss that has no upstream gradient must not become 0 * inf."""
    x, options = row_problem((3, 9), target=target)
    heavy = {"weight": torch.full((9,), inf), "row_weight": torch.full((3,), inf)}
    found = []
    for more in ({}, heavy):
        leaf = x.clone().requires_grad_()
        results = row_losses(leaf, ("lse", "entropy"), **options, **more)
        found += torch.autograd.grad([results.lse, results.entropy], leaf, [torch.ones(3), -torch.ones(3)])
    assert_same_bits(*found)
    assert bool(found[0].isfinite().all())
