# SPDX-License-Identifier: Apache-2.0
"""How many kernels a call of cross_entropy launches, and how many tensors it makes: for a small loss, these
are its time. The emulator writes its launches to a file."""

from __future__ import annotations

import pytest
import torch
from compare import assert_same_bits
from cuda_checks import by_kernels, class_weights, close, emulated, indices, logits, probabilities, tensor

import softkern
from softkern import reference

pytestmark = [*by_kernels, emulated]
half, float32 = torch.float16, torch.float32


@pytest.fixture
def counted(tmp_path, monkeypatch):
    file = tmp_path / "launches"
    monkeypatch.setenv("SIMT_LAUNCHES", str(file))

    def count(call):
        """What the call returns; its launches, "early" or ""; and the number of its tensors."""
        file.write_text("")
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            result = call()
        launches = [line.partition(", ")[2] for line in file.read_text().splitlines()]
        made = [e for e in profile.events() if e.name in ("aten::empty", "aten::empty_strided")]
        return result, launches, len(made)

    return count


EARLY = "early"
# Launches: weight of the targets, rows, sum of the losses. float16 gradients are stored at a scale of their
# own, so that the weight is needed after the rows.
FORWARD = (
    ("mean", float32, False, ["", EARLY], 2),
    ("mean", half, False, ["", EARLY], 2),
    ("sum", float32, False, ["", EARLY], 2),
    ("none", float32, False, [""], 1),
    ("none", half, False, [""], 1),
    ("mean", float32, True, ["", EARLY, EARLY], 4),
    ("mean", half, True, ["", EARLY], 4),
    ("sum", float32, True, ["", EARLY], 4),
    ("none", float32, True, [""], 3),
    ("none", half, True, [""], 3),
)


@pytest.mark.parametrize("rows", (101, 16384))
@pytest.mark.parametrize(("reduction", "dtype", "need_grad", "launches", "tensors"), FORWARD, ids=str)
def test_a_loss(counted, reduction, dtype, need_grad, launches, tensors, rows):
    x, target = logits(rows, 7, dtype=dtype), indices((rows, 7))
    leaf = x.requires_grad_(need_grad)
    loss, *found = counted(lambda: softkern.cross_entropy(leaf, target, reduction=reduction))
    assert found == [launches, tensors]
    if need_grad:
        g = torch.ones_like(loss) / 2
        _, *found = counted(lambda: torch.autograd.grad(loss, leaf, g, retain_graph=True))
        assert found == [[EARLY], 1]
        _, *found = counted(lambda: torch.autograd.grad(loss, leaf, g))
        assert found == [[EARLY], 0]  # in place


def test_probabilities_need_no_weight(counted):
    x, target = logits(101, 7).requires_grad_(), probabilities((101, 7), torch.float32)
    loss, *found = counted(lambda: softkern.cross_entropy(x, target))
    assert found == [["", EARLY], 4]
    (dx,) = torch.autograd.grad(loss, x)
    wide = x.detach().double(), target.double()
    close(loss.detach(), reference.cross_entropy(*wide))
    close(dx, reference.cross_entropy_backward(tensor(1.0).double(), *wide), scale=2, atol=1e-9)


def test_more_rows_than_one_block_adds(counted):
    """Sums of two launches each."""
    x, target = logits(16385, 2), indices((16385, 2))
    _, *found = counted(lambda: softkern.cross_entropy(x, target))
    assert found == [["", EARLY, EARLY], 2]
    _, *found = counted(lambda: softkern.cross_entropy(x.requires_grad_(), target))
    assert found == [["", EARLY, EARLY, EARLY, EARLY], 4]


def test_older_devices_begin_no_kernel_early(counted, monkeypatch):
    monkeypatch.setenv("SIMT_CLUSTERS", "0")
    x, target = logits(101, 7).requires_grad_(), indices((101, 7))
    loss, launches, _ = counted(lambda: softkern.cross_entropy(x, target))
    assert launches == [""] * 3
    assert counted(lambda: torch.autograd.grad(loss, x, tensor(0.5)))[1] == [""]


@pytest.mark.parametrize("rows", (101, 5000, 40000))
@pytest.mark.parametrize("dtype", (float32, torch.float64, half), ids=str)
def test_the_weight_of_the_targets_has_the_same_bits_before_and_after_the_rows(dtype, rows):
    x, target, weight = logits(rows, 5, dtype=dtype), indices((rows, 5)), class_weights(5).to(dtype)
    target[::7] = -100
    for w in (None, weight, weight * 0):
        for y in (target, torch.full_like(target, -100)):
            without = softkern.cross_entropy(x, y, w)
            loss, _, _ = torch.ops.softkern.cross_entropy_forward(x, y, w, 1, -100, 0.0, True)
            assert_same_bits(without, loss)
            assert bool(without.isnan()) == ((w is not None and not w.any()) or y is not target)
