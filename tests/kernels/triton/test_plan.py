# SPDX-License-Identifier: Apache-2.0
"""The plans of the Triton kernels: they are chosen without a GPU, and so tested without one."""

from __future__ import annotations

import itertools

import pytest
import torch

pytest.importorskip("triton", reason="the Triton backend needs Triton")
from softkern.triton.launch import stages
from softkern.triton.plan import HELD, Layout, Walk, layout_of, make_plan, walk_of, walkable

DTYPES = (torch.float32, torch.bfloat16, torch.float64)
CLASSES = (1, 2, 10, 32, 33, 64, 65, 1000, 1024, 1025, 4096, 16384, 16385, 50257, 262144)


def plan_of(*tensors: torch.Tensor, dim: int = 1, others: bool = False):
    walks = [walkable(x, dim)[1] for x in tensors]
    return make_plan(layout_of(tensors[0], dim), walks, tensors[0].element_size(), others)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
def test_a_plan_does_not_depend_on_the_batch(classes, dtype):
    """Neither the blocks, nor the warps, nor what the compiler is told of alignment: a row's bits follow
    them."""
    plans = {plan_of(meta(rows, classes, dtype=dtype)) for rows in (1, 2, 3, 7, 16, 64, 1000, 100000)}
    assert len(plans) == 1
    for behind in (2, 7, 16, 63, 64, 65, 196, 4096):
        plans = {plan_of(meta(planes, classes, behind, dtype=dtype)) for planes in (1, 2, 3, 64)}
        assert len(plans) == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
def test_blocks_are_what_triton_takes(classes, dtype):
    """Powers of two, no more elements and warps than a program may have, and a row that is held in one
    block."""
    for x in (
        meta(9, classes, dtype=dtype),
        meta(3, classes, 70, dtype=dtype),
        meta(3, classes, 5, dtype=dtype),
    ):
        for others in (False, True):
            plan = plan_of(x, others=others)
            for n in (plan.block_r, plan.block_c, plan.warps):
                assert n & (n - 1) == 0
            assert plan.block_r * plan.block_c <= HELD
            assert 4 <= plan.warps <= 32
            assert plan.single == (plan.block_c >= classes)


def test_row_losses_holds_shorter_rows():
    for dtype, held, block in ((torch.float32, 8192, 4096), (torch.float64, 2048, 2048)):
        for classes in (held, held + 1, 50257):
            x = meta(9, classes, dtype=dtype)
            plan = make_plan(layout_of(x, 1), [walk_of(x, 1)], x.element_size(), row_losses=True)
            assert (plan.single, plan.block_c) == ((True, held) if classes == held else (False, block))


def test_alignment_is_what_16_bytes_are():
    for dtype, unit in ((torch.float32, 4), (torch.bfloat16, 8), (torch.float64, 2)):
        for classes in range(60, 78):
            assert plan_of(meta(5, classes, dtype=dtype)).align_c == (unit if classes % unit == 0 else 1)
            plan = plan_of(meta(5, 3, 60 + classes, dtype=dtype))
            positions = min(unit, 4)  # more would be too many rows for a thread
            assert (plan.align_c, plan.align_r) == (1, positions if (60 + classes) % positions == 0 else 1)


def test_alignment_is_that_of_every_tensor_and_stride():
    x = meta(8, 64)
    assert plan_of(x).align_c == 4
    assert plan_of(x, meta(8, 66)[:, :64]).align_c == 1
    assert plan_of(meta(8, 68)[:, :64], x).align_c == 4
    assert plan_of(meta(8, 128)[:, ::2]).align_c == 1


def test_columns_beyond_the_reach_of_32_bits_are_reached_with_64():
    assert not plan_of(meta(2**20, 1000).t(), dim=1).wide
    assert plan_of(meta(2**21, 2000).t(), dim=1).wide


@pytest.mark.parametrize(
    ("shape", "dim", "layout"),
    (
        ((6, 10), 1, (1, 6, 10, False)),
        ((6, 10), 0, (1, 10, 6, True)),
        ((10,), 0, (1, 1, 10, False)),
        ((2, 3, 4, 5), 1, (2, 20, 3, True)),
        ((2, 3, 4, 5), 3, (1, 24, 5, False)),
        ((2, 3, 1, 1), 1, (1, 2, 3, False)),
        ((1, 3, 4), 1, (1, 4, 3, True)),
    ),
    ids=str,
)  # fmt: skip
def test_layouts(shape, dim, layout):
    assert layout_of(torch.empty(shape), dim) == Layout(*layout)


@pytest.mark.parametrize("dim", range(4))
def test_a_walk_reaches_every_element_once_and_in_order(dim):
    """Rows are numbered as in a contiguous tensor without the class dimension, whatever the strides."""
    base = torch.arange(2 * 3 * 4 * 5)
    for order in itertools.permutations(range(4)):
        x = base.view(2, 3, 4, 5).permute(order)
        y, walk = walkable(x, dim)
        layout = layout_of(x, dim)
        flat = y.as_strided((y.untyped_storage().size() // 8,), (1,), 0)
        rows = torch.arange(layout.rows)
        plane, position = (rows // layout.inner, rows % layout.inner)
        at = (plane * walk.plane + position * walk.row)[:, None] + torch.arange(layout.classes) * walk.cls
        assert torch.equal(
            flat[at + y.storage_offset()], x.movedim(dim, -1).reshape(layout.rows, layout.classes)
        )


def test_only_what_cannot_be_walked_is_copied():
    x = torch.empty(4, 5, 6, 7)
    assert walkable(x, 1)[0] is x
    assert (
        walkable(x.transpose(1, 3), 1)[0].data_ptr() != x.data_ptr()
    )  # (4, 7, 6, 5): behind it 6x5 out of order
    for kept in (
        x[:, 1:3],
        x[..., 2:3],
        x.transpose(0, 1),
        x[::2],
        x.expand(4, 5, 6, 7),
        x[:1].expand(3, 5, 6, 7),
    ):
        assert walkable(kept, 1)[0] is kept, kept.stride()
    assert walk_of(x[:, :, ::2], 1) is None


def test_few_long_rows_are_computed_in_parts_and_many_are_not(monkeypatch):
    monkeypatch.setattr("softkern.triton.launch.processors", lambda device: 132)
    for rows, width in ((1, 64), (131, 64), (132, 1), (5000, 1)):
        x = meta(rows, 262144)
        plan = plan_of(x)
        parts, launches = stages(x, layout_of(x, 1), plan)
        assert parts == 64
        assert [w for _, w in launches] == ([width] if width == 1 else [width, width])
    x = meta(1, 1000)
    assert stages(x, layout_of(x, 1), plan_of(x))[1] == [(0, 1)]


def test_one_row_is_walked_like_one_of_a_batch():
    """Strides decide which accesses are compiled, and these in which order a row is summed up. A dimension of
    one element may have any stride: one without meaning is not followed."""
    wide = torch.empty(4, 12)[:, :10]
    for batch, dim in (
        (torch.empty(4, 10), 1),
        (wide, 1),
        (torch.empty(4, 10, 6), 1),
        (torch.empty(4, 6, 10), 2),
        (torch.empty(4, 10, 6, 5).to(memory_format=torch.channels_last), 1),
    ):
        whole = walk_of(batch, dim)
        assert walk_of(batch[:1], dim) == whole
        if batch is not wide:
            assert walk_of(torch.empty_like(batch[:1]), dim) == whole
    assert walk_of(torch.empty(10), 0) == walk_of(torch.empty(4, 10), 1)
    assert walk_of(torch.empty_strided((1, 8), (3, 1)), 1) == Walk(0, 8, 1)
