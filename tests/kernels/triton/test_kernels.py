# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels in Triton's interpreter: checks beyond the matrix of softkern.verify.

They need a process that has TRITON_INTERPRET=1 from its start: `make triton`. Another run of the suite skips
them but for one, which starts such a process."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from compare import assert_same_bits
from places import SUPPORT

import softkern
from softkern import reference
from softkern.verify.inputs import class_weights, indices, logits, probabilities

pytest.importorskip("triton", reason="the Triton backend needs Triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="not a process with TRITON_INTERPRET=1")

if INTERPRETED:
    import triton_interpreter

    import softkern.triton
    from softkern.triton import launch, plan

    triton_interpreter.look_once()
    softkern.triton.register()

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of infinities
SOFTMAXES = ("softmax", "log_softmax")
inf, nan = math.inf, math.nan


@pytest.fixture
def triton():
    with softkern.use_backend("triton"):
        yield


@pytest.fixture(params=("rows", "lanes"))
def small_blocks(request, monkeypatch):
    """Rows of more than 16 classes are long. A program has blocks of 8 classes of four rows, or of 16 classes
    of one row, in two lanes. One program has all blocks of a row, or only one of them."""
    lanes = request.param == "lanes"
    monkeypatch.setattr(plan, "HELD", 16)
    monkeypatch.setattr(plan, "HELD_WITH_OTHERS", 16)
    monkeypatch.setattr(plan, "HELD_DOUBLE", 16)
    monkeypatch.setattr(plan, "LONG_BLOCK", 16 if lanes else 8)
    monkeypatch.setattr(plan, "SHORT_PROGRAM", 16 if lanes else 32)


@pytest.fixture(params=("in blocks", "in parts"))
def way(request, monkeypatch, small_blocks):
    monkeypatch.setattr(launch, "processors", lambda device: 0 if request.param == "in blocks" else 10**6)
    return request.param


def ran() -> str:
    assert softkern._C.last_isa() == "triton"
    return softkern._C.last_path()


def everything(x, target, **kwargs):
    """All that is computed of some rows: values and gradients of all ops, with the ways that computed
    them."""
    ways, found = [], []
    for op in SOFTMAXES:
        leaf = x.clone().requires_grad_()
        y = getattr(softkern, op)(leaf, 1)
        ways.append(ran())
        found += [y.detach(), *torch.autograd.grad(y, leaf, logits(*y.shape, dtype=y.dtype, seed=7))]
        ways.append(ran())
    leaf = x.clone().requires_grad_()
    loss = softkern.cross_entropy(leaf, target, reduction="none", **kwargs)
    ways.append(ran())
    found += [loss.detach(), *torch.autograd.grad(loss.sum(), leaf)]
    return ways, found


@pytest.mark.skipif(INTERPRETED, reason="a process with TRITON_INTERPRET=1 runs all of them")
def test_a_process_that_interprets_computes_with_triton():
    """One call of each op, so that `make test` too sees the kernels compute."""
    script = "import torch, test_kernels as t, softkern\nwith softkern.use_backend('triton'): t.smoke()\n"
    path = os.pathsep.join((str(SUPPORT), str(Path(__file__).parent)))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    environment.pop("SOFTKERN_CPU_ISA", None)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def smoke():
    x, target = logits(5, 10), indices((5, 10))
    ways, (y, dy, z, dz, loss, dx) = everything(x, target)
    assert set(ways) == {"rows, held"}
    torch.testing.assert_close(y, torch.softmax(x, 1))
    torch.testing.assert_close(z, torch.log_softmax(x, 1))
    torch.testing.assert_close(loss, reference.cross_entropy(x, target, reduction="none"))
    torch.testing.assert_close(dx, torch.softmax(x, 1) - torch.nn.functional.one_hot(target, 10))
    assert dy.shape == dz.shape == x.shape
    stats = softkern.cross_entropy(x, target, stats=("log_prob", "argmax"))[1]
    assert ran() == "rows, held"
    torch.testing.assert_close(stats.log_prob, -loss)
    assert torch.equal(stats.argmax, x.argmax(1))


KINDS = (
    {},
    {"weight": True, "label_smoothing": 0.1},
    {"ignore_index": 1},
)


def options(kind: dict, classes: int, dtype=torch.float32) -> dict:
    kind = dict(kind)
    if kind.pop("weight", False):
        kind["weight"] = class_weights(classes).to(dtype)
    return kind


@interpreted
@pytest.mark.parametrize("kind", KINDS, ids=("plain", "weights", "ignore"))
def test_long_rows_in_blocks_and_in_parts_have_the_same_bits(triton, small_blocks, monkeypatch, kind):
    x, target = logits(3, 37), indices((3, 37))
    x[1, :17] = -inf  # blocks of nothing before the first finite logit
    answers = []
    for busy, way in ((0, "in blocks"), (10**6, "in parts")):
        monkeypatch.setattr(launch, "processors", lambda device, busy=busy: busy)
        ways, found = everything(x, target, **options(kind, 37))
        assert {w.split(", ")[1] for w in ways} == {way}
        answers.append(found)
    for a, b in zip(*answers, strict=True):
        assert_same_bits(a, b)


@interpreted
@pytest.mark.parametrize("classes", (10, 37))
def test_a_row_has_the_same_bits_alone_and_anywhere_in_a_batch(triton, small_blocks, classes):
    x, target = logits(5, classes), indices((5, classes))
    _, together = everything(x, target)
    for i in range(5):
        g = slice(i, i + 1)
        leaf = x[g].clone().requires_grad_()
        loss = softkern.cross_entropy(leaf, target[g], reduction="none")
        assert_same_bits(softkern.softmax(x[g], 1), together[0][g])
        assert_same_bits(softkern.log_softmax(x[g], 1), together[2][g])
        assert_same_bits(loss.detach(), together[4][g])
        assert_same_bits(torch.autograd.grad(loss.sum(), leaf)[0], together[5][g])


@interpreted
@pytest.mark.parametrize("empty", (8, 16, 24))
def test_leading_blocks_of_minus_infinity_are_no_nan(triton, way, empty):
    x = logits(2, 32)
    x[:, :empty] = -inf
    for op in SOFTMAXES:
        y = getattr(softkern, op)(x, 1)
        assert ran() == f"rows, {way}"
        torch.testing.assert_close(y.double(), getattr(reference, op)(x.double(), 1), rtol=1e-6, atol=1e-6)
    for target, smoothing in product((torch.tensor([31, 30]), torch.tensor([0, 31])), (0.0, 0.1)):
        kwargs = {"reduction": "none", "label_smoothing": smoothing}
        loss = softkern.cross_entropy(x, target, **kwargs)
        expected = reference.cross_entropy(x.double(), target, **kwargs)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)


@interpreted
@pytest.mark.parametrize("values", ([nan], [inf], [-inf, nan], [inf, inf]), ids=str)
def test_what_is_not_finite_in_one_block_reaches_the_whole_row(triton, way, values):
    x = logits(2, 32)
    x[0, 20 : 20 + len(values)] = torch.tensor(values)
    for op in SOFTMAXES:
        y = getattr(softkern, op)(x, 1)
        assert bool(y[0].isnan().all()) and bool(y[1].isfinite().all())
    assert softkern.cross_entropy(x, torch.tensor([3, 3]), reduction="none").isnan().tolist() == [True, False]


@interpreted
@pytest.mark.parametrize("offset", (0, 1000, 1023, -1030, 1e6))
def test_parts_on_both_sides_of_the_direct_shift_are_merged(triton, way, offset):
    """Maxima above and below 1024 in size have terms of different origins; those of 40 less hardly count."""
    x = logits(3, 32, dtype=torch.float64)
    x[0, :8] += 30
    x[1, 24:] += 60
    x[2, 9] -= 2000
    x = (x + offset).float()
    target = torch.tensor([3, 30, 9])
    for op in SOFTMAXES:
        expected = getattr(reference, op)(x.double(), 1)
        torch.testing.assert_close(getattr(softkern, op)(x, 1).double(), expected, rtol=1e-6, atol=1e-30)
    for smoothing in (0.0, 0.1):
        loss = softkern.cross_entropy(x, target, reduction="none", label_smoothing=smoothing)
        expected = reference.cross_entropy(x.double(), target, reduction="none", label_smoothing=smoothing)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)


@interpreted
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("smoothing", (0.0, 0.1))
def test_the_gradient_of_a_long_row_may_take_the_place_of_the_logits(triton, way, dtype, smoothing):
    """Programs of a row write over logits that others would still need, but for what was kept."""
    x, target = logits(3, 37, dtype=dtype), torch.tensor([36, 0, 20])
    wanted = []
    for inplace in (False, True):
        leaf = x.clone().requires_grad_()
        loss = softkern.cross_entropy(
            leaf * 1, target, reduction="sum", label_smoothing=smoothing, inplace_backward=inplace
        )
        assert ran() == f"rows, {way}"
        wanted.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    for a, b in zip(*wanted, strict=True):
        assert_same_bits(a, b)


@interpreted
@pytest.mark.parametrize("wrong", (-1, 7, 10**6, -(2**40), 2**62))
def test_a_target_out_of_range_reads_and_writes_nothing_outside(triton, wrong):
    """The logits lie between numbers that nobody may touch, and the kernels are not spared the target."""
    around = torch.full((9, 21), 77.0)
    x = around[3:6, 7:14]
    x.copy_(logits(3, 7))
    target = torch.tensor([2, wrong, 5])
    rows = torch.ops.softkern_triton.cross_entropy_rows
    for weight, smoothing in ((None, 0.0), (class_weights(7), 0.0), (None, 0.1)):
        before = around.clone()
        loss, grad = x.new_empty(3), torch.empty(3, 7)
        rows(x, target, weight, 0, -100, smoothing, 1.0, None, loss, grad)
        assert_same_bits(around, before)
        assert loss.isnan().tolist() == [False, True, False]
        assert bool(grad[1].isnan().all()) and bool(grad[[0, 2]].isfinite().all())
        rows(x, target, weight, 0, -100, smoothing, 1.0, None, loss, x)
        x.fill_(77)
        assert bool((around == 77).all()), "written beside the logits"
        x.copy_(before[3:6, 7:14])


@interpreted
@pytest.mark.parametrize("shape", ((6, 10), (3, 40, 7), (2, 10, 3, 5)), ids=str)
def test_layouts_are_read_in_place(triton, monkeypatch, shape):
    """Nothing that can be walked is copied, and every layout gives the same numbers."""
    copied = []
    monkeypatch.setattr(launch, "walkable", lambda x, dim: _walked(x, dim, copied))
    target = indices(shape)
    plain = logits(*shape)
    layouts = {
        "transposed": plain.transpose(0, 1).contiguous().transpose(0, 1),
        "classes last": plain.movedim(1, -1).contiguous().movedim(-1, 1),
        "sliced": torch.cat([plain, plain], 1)[:, : shape[1]],
        "every other": plain.repeat_interleave(2, 1)[:, ::2],
        "unaligned": torch.cat([torch.zeros(1), plain.reshape(-1)])[1:].view(shape),
    }
    for name, x in layouts.items():
        for op in SOFTMAXES:
            expected = getattr(reference, op)(plain.double(), 1)
            y = getattr(softkern, op)(x, 1)
            assert y.is_contiguous()
            torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=1e-6, msg=f"{name}: {op}")
        loss = softkern.cross_entropy(x, target, reduction="none")
        expected = reference.cross_entropy(plain.double(), target, reduction="none")
        torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6, msg=name)
    assert not copied


def _walked(x, dim, copied):
    y, walk = plan.walkable(x, dim)
    if y is not x:
        copied.append(x.stride())
    return y, walk


@interpreted
def test_sums_of_more_rows_than_one_program_adds(triton, monkeypatch):
    monkeypatch.setattr("softkern.triton.cross_entropy.ROWS_ALONE", 4096)
    x, target = logits(9000, 2), indices((9000, 2))
    weight = class_weights(2)
    for kwargs in ({}, {"weight": weight, "ignore_index": 1}):
        loss = softkern.cross_entropy(x, target, **kwargs)
        wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
        torch.testing.assert_close(loss.double(), reference.cross_entropy(x.double(), target, **wide))


@interpreted
@pytest.mark.parametrize("upstream", (1.0, 0.5, inf, nan), ids=str)
def test_an_upstream_gradient_scales_once_and_spares_ignored_rows(triton, upstream):
    x, target = logits(4, 6), torch.tensor([1, -100, 3, 5])
    leaf = x.clone().requires_grad_()
    loss = softkern.cross_entropy(leaf, target, reduction="sum")
    (dx,) = torch.autograd.grad(loss, leaf, torch.tensor(upstream))
    expected = reference.cross_entropy_backward(torch.tensor(1.0), x.double(), target, reduction="sum")
    assert bool((dx[1] == 0).all())
    rows = [0, 2, 3]
    torch.testing.assert_close(
        dx[rows].double(), expected[rows] * upstream, equal_nan=True, rtol=1e-5, atol=1e-6
    )


@interpreted
def test_probabilities_are_read_in_their_own_layout(triton):
    x, soft = logits(3, 20, 5), probabilities((3, 20, 5))
    expected = reference.cross_entropy(x.double(), soft.double())
    for place in (lambda t: t, lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1)):
        loss = softkern.cross_entropy(x, place(soft))
        torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
