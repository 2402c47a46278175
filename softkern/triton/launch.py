# SPDX-License-Identifier: Apache-2.0
"""Launches the kernels for tensors. Nothing here waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from softkern import _C
from softkern.triton.plan import (
    Layout,
    Plan,
    Walk,
    compute_dtype,
    layout_of,
    make_plan,
    walkable,
)
from softkern.triton.rows import MERGED, PARTS, WHOLE
from softkern.triton.settings import INTERPRETED
from softkern.triton.softmax_kernels import backward_kernel, forward_kernel

# The limit of a launch for the second axis of the grid, which numbers the blocks of a row.
MOST_PARTS = 65535


def on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Makes the device of x the current one, on which Triton launches."""
    if x.device.type in ("cuda", "xpu"):
        return torch.accelerator.device_index(x.device.index)
    return nullcontext()


@cache
def processors(device: torch.device) -> int:
    """The least number of programs that keeps the device busy."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    if device.type == "xpu":
        return int(torch.xpu.get_device_properties(device).gpu_subslice_count)
    return 4


def triton_dtype(dtype: torch.dtype) -> Any:
    return tl.float64 if dtype == torch.float64 else tl.float32


def programs(layout: Layout, plan: Plan) -> int:
    if plan.flat or not plan.behind:
        return -(-layout.rows // plan.block_r)
    return layout.planes * -(-layout.inner // plan.block_r)


def stages(x: Tensor, layout: Layout, plan: Plan) -> tuple[int, list[tuple[int, int]]]:
    """The number of blocks of a row, and the launches: the stage of each, and its number of programs per
    row."""
    parts = -(-layout.classes // plan.block_c)
    few = programs(layout, plan) < processors(x.device)
    if plan.single or not few or parts > MOST_PARTS:
        return parts, [(WHOLE.value, 1)]
    return parts, [(PARTS.value, parts), (MERGED.value, parts)]


def scratch(x: Tensor, fields: int, parts: int, layout: Layout, launches: list[tuple[int, int]]) -> Tensor:
    """Memory for the statistics of the parts of rows."""
    size = fields * parts * layout.rows if len(launches) > 1 else 0
    return torch.empty(size, dtype=compute_dtype(x.dtype), device=x.device)


def units(layout: Layout, plan: Plan, walks: list[Walk]) -> tuple[tuple[int, int], list[int]]:
    """The sizes (classes, inner) and strides that the kernels take, divided by their alignment."""
    strides = []
    for w in walks:
        strides += [w.plane // (plan.align_c * plan.align_r), w.row // plan.align_c, w.cls // plan.align_r]
    return (layout.classes // plan.align_c, layout.inner // plan.align_r), strides


def ran(plan: Plan, launches: list[tuple[int, int]]) -> None:
    path = plan.path.replace("in blocks", "in parts") if len(launches) > 1 else plan.path
    _C.set_last("triton", path)


@cache
def _threads_of_a_warp(device: torch.device) -> int:
    if device.type == "cuda" and torch.version.hip:
        return int(torch.cuda.get_device_properties(device).warp_size)
    return 32


def launch_options(device: torch.device, warps: int = 4, registers: int | None = None) -> dict[str, Any]:
    """Options of a launch with so many warps of 32 threads. Triton must not fuse operations: the kernels do
    this themselves, so that all kernels fuse the same ones. In a kernel with assertions, Triton would also
    assert that integer additions don't wrap, but those on the bits of a NaN do."""
    if INTERPRETED:
        return {}
    nvidia = device.type != "xpu" and not torch.version.hip
    limit = {"maxnreg": registers} if nvidia and registers is not None else {}
    return {
        "num_warps": warps * 32 // _threads_of_a_warp(device),
        "enable_fp_fusion": False,
        "sanitize_overflow": False,
        **limit,
    }


def _classes_in_a_dimension(x: Tensor) -> Tensor:
    return x.view(1) if x.dim() == 0 else x


def run_forward(self: Tensor, dim: int, row_number: Callable[..., Any], value: Callable[..., Any]) -> Tensor:
    output = torch.empty_like(self, memory_format=torch.contiguous_format)
    if self.numel() == 0:
        return output
    x, y = _classes_in_a_dimension(self), _classes_in_a_dimension(output)
    dim %= x.dim()
    layout = layout_of(x, dim)
    (x, x_walk), (y, y_walk) = walkable(x, dim), walkable(y, dim)
    plan = make_plan(layout, [x_walk, y_walk], x.element_size())
    parts, launches = stages(x, layout, plan)
    sizes, strides = units(layout, plan, [x_walk, y_walk])
    with on_device_of(x):
        kept = scratch(x, 3 * plan.lanes, parts, layout, launches)
        for stage, width in launches:
            forward_kernel[(programs(layout, plan), width)](
                x, y, kept, *sizes, layout.rows, parts, *strides,
                ROW_NUMBER=row_number, VALUE=value, DTYPE=triton_dtype(x.dtype), STAGE=stage,
                **plan.constants(), **launch_options(output.device, plan.warps, plan.registers),
            )  # fmt: skip
    ran(plan, launches)
    return output


def run_backward(
    grad_output: Tensor, output: Tensor, dim: int, summand: Callable[..., Any], gradient: Callable[..., Any]
) -> Tensor:
    if grad_output.shape != output.shape or grad_output.dtype != output.dtype:
        raise RuntimeError(
            f"softkern: expected grad_output of shape {list(output.shape)} and dtype {output.dtype} as the "
            f"output has, got {list(grad_output.shape)} and {grad_output.dtype}"
        )
    grad_input = torch.empty_like(output, memory_format=torch.contiguous_format)
    if output.numel() == 0:
        return grad_input
    g, y, dx = map(_classes_in_a_dimension, (grad_output, output, grad_input))
    dim %= y.dim()
    layout = layout_of(y, dim)
    (g, g_walk), (y, y_walk), (dx, dx_walk) = (walkable(t, dim) for t in (g, y, dx))
    plan = make_plan(layout, [g_walk, y_walk, dx_walk], y.element_size(), others=True)
    parts, launches = stages(y, layout, plan)
    sizes, strides = units(layout, plan, [g_walk, y_walk, dx_walk])
    with on_device_of(y):
        kept = scratch(y, plan.lanes, parts, layout, launches)
        for stage, width in launches:
            backward_kernel[(programs(layout, plan), width)](
                g, y, dx, kept, *sizes, layout.rows, parts, *strides,
                SUMMAND=summand, GRADIENT=gradient, DTYPE=triton_dtype(y.dtype), STAGE=stage,
                **plan.constants(), **launch_options(output.device, plan.warps, plan.registers),
            )  # fmt: skip
    ran(plan, launches)
    return grad_input
