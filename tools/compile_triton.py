# SPDX-License-Identifier: Apache-2.0
"""Compile the Triton kernels without a GPU, and report registers, memory and loads of the result.

The launches are softkern's own: its functions are called with tensors of the meta device, which have shapes
and dtypes but no memory, and the kernels that they would launch are compiled. A call that waits for a number
from the device raises an error here.

    python tools/compile_triton.py            # print the table of docs/triton.md
    python tools/compile_triton.py --write    # compile, write docs/triton.json and the table
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from softkern.options import OUTPUTS, CrossEntropyOptions, RowOptions
from softkern.triton import (
    cross_entropy,
    cross_entropy_kernels,
    launch,
    log_softmax,
    row_losses,
    row_losses_hot_kernels,
    row_losses_kernels,
    row_merge,
    row_merge_kernels,
    row_parts_kernels,
    softmax,
    softmax_kernels,
)
from softkern.triton.plan import compute_dtype

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = (80, 90, 100)
KERNELS = (
    softmax_kernels.forward_kernel,
    softmax_kernels.backward_kernel,
    cross_entropy_kernels.cross_entropy_kernel,
    cross_entropy_kernels.scale_kernel,
    row_losses_kernels.row_losses_kernel,
    row_parts_kernels.part_gradient_kernel,
    row_merge_kernels.row_merge_kernel,
    row_losses_hot_kernels.gather_kernel,
    row_losses_hot_kernels.scatter_kernel,
)
TYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
}


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: the inputs of its compilation."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]

    @property
    def warps(self) -> int:
        return int(self.options.get("num_warps", 4))

    @property
    def of_classes(self) -> bool:
        """Whether the blocks are of classes, not of a row's class indices."""
        return "BLOCK_C" in self.arguments


@dataclass(frozen=True)
class Made:
    """The compiler's report on a kernel."""

    registers: int
    stack: int  # bytes of stack of a thread, which holds spilled registers
    local: int
    shared: int  # bytes of shared memory of a program
    loads: list[str]  # widths of the global loads, ld.global.* without the prefix
    stores: list[str]


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Record launches instead of running them."""
    launches: list[Launch] = []

    def instead_of(kernel: Any) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> None:
            given = {k: v for k, v in kwargs.items() if k not in kernel.arg_names}
            named = {k: v for k, v in kwargs.items() if k in kernel.arg_names}
            launches.append(Launch(kernel, dict(zip(kernel.arg_names, args, strict=False)) | named, given))

        return run

    class Stand:
        def __init__(self, kernel: Any) -> None:
            self.run = instead_of(kernel)

        def __getitem__(self, grid: Any) -> Callable[..., Any]:
            return self.run

    with ExitStack() as stack:
        for module in (launch, cross_entropy, row_losses, row_merge):
            for name, value in list(vars(module).items()):
                if isinstance(value, triton.JITFunction) and name.endswith("_kernel"):
                    stack.enter_context(mock.patch.object(module, name, Stand(value)))
            if hasattr(module, "ran"):
                stack.enter_context(mock.patch.object(module, "ran", lambda *_: None))
        yield launches


def source_of(made: Launch) -> ASTSource:
    """The specialisation of arguments that Triton's launcher makes for aligned tensors."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for i, parameter in enumerate(made.kernel.params):
        value = made.arguments[parameter.name]
        annotated = inspect.signature(made.kernel.fn).parameters[parameter.name].annotation
        specialised = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (specialised and isinstance(value, int) and value == 1):
            signature[parameter.name], constants[(i,)] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[parameter.name] = "*" + TYPES[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = annotated.strip("'\"")
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if specialised and value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(made.kernel, signature, constants, attributes)


def binary_of(made: Launch, architecture: int) -> Any:
    """Compile as the launch would, with the assertions that the kernel declares."""
    target = GPUTarget("cuda", architecture, 32)
    return triton.compile(
        source_of(made), target=target, options={"debug": made.kernel.debug, **made.options}
    )


def compile_for(made: Launch, architecture: int) -> Made:
    binary = binary_of(made, architecture)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        command = [tool, "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    numbers = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", said)
    assert numbers is not None, said
    registers, stack, shared, local = map(int, numbers.groups())
    text = binary.asm["ptx"]
    loads, stores = (sorted(set(re.findall(rf"{verb}\.global\.(\S+)", text))) for verb in ("ld", "st"))
    return Made(registers, stack, local, shared, loads, stores)


@dataclass(frozen=True)
class Case:
    """A call of softkern whose launches are compiled."""

    op: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return " ".join([self.op, *self.options, dtype, "x".join(map(str, self.shape))])


def launches_of(case: Case) -> list[Launch]:
    """The launches of the op's own kernel, without the sums over rows: no tensor size changes these."""
    x = torch.empty(case.shape, dtype=case.dtype, device="meta")
    with recorded() as launches:
        if case.op == "softmax":
            softmax.softmax(x, 1)
        elif case.op == "log_softmax":
            log_softmax.log_softmax(x, 1)
        elif case.op == "softmax_backward":
            softmax.softmax_backward(x, x, 1)
        elif case.op == "log_softmax_backward":
            log_softmax.log_softmax_backward(x, x, 1)
        elif case.op == "row_losses":
            _row_losses(case, x)
        elif case.op == "merge_rows":
            _merge_rows(case, x)
        else:
            _cross_entropy(case, x)
    return [made for made in launches if made.kernel in KERNELS]


def _cross_entropy(case: Case, x: Tensor) -> None:
    """The steps of a mean, with the arguments that csrc/ops/cross_entropy/forward.cpp gives them."""
    rows = [size for i, size in enumerate(case.shape) if i != 1]
    probabilities = "probabilities" in case.options
    target = x if probabilities else torch.empty(rows, dtype=torch.int64, device="meta")
    number = torch.empty((), dtype=compute_dtype(x.dtype), device="meta")
    if case.op == "cross_entropy_backward":
        out = torch.empty_like(x)
        index = None if probabilities else target
        cross_entropy.scale_gradient(number.to(x.dtype), x, number, index, -100, out)
        return
    weight = x.new_empty(case.shape[1]) if "weight" in case.options else None
    smoothing = 0.1 if "smoothing" in case.options else 0.0
    options = CrossEntropyOptions(label_smoothing=smoothing)
    grad = torch.empty_like(x) if "gradient" in case.options else None
    half = grad is not None and x.dtype == torch.float16
    plain = not probabilities and weight is None
    sum_of_weights = None if probabilities else number.double()
    if sum_of_weights is not None:
        cross_entropy.target_weight(target, weight, case.shape[1], -100, sum_of_weights, number)
    factor = None if (plain if half else probabilities) else number
    losses = x.new_empty(math.prod(rows), dtype=number.dtype)
    cross_entropy.cross_entropy_rows(x, target, weight, *options, 1.0, factor, losses, grad)
    storage = number if half and not plain else None
    scale = number if grad is not None else None
    cross_entropy.reduce_losses(losses, 1.0, sum_of_weights, 1.0, storage, x.new_empty(()), scale)


def _row_losses(case: Case, x: Tensor) -> None:
    """The step, with the arguments that csrc/ops/row_losses/forward.cpp gives it: with "statistics" all
    results, with "upstream" a backward with the gradients of all of them, with "whole" that of some classes,
    with "parts" the numbers of some classes, otherwise the loss."""
    rows = math.prod(case.shape) // case.shape[1]
    compute = compute_dtype(x.dtype)

    def numbers(*sizes: int, dtype: torch.dtype = compute) -> Tensor:
        return torch.empty(rows, *sizes, dtype=dtype, device="meta")

    has = case.options.__contains__
    several = (8,) if has("indices") else ()
    probabilities = x if has("probabilities") else None
    target = None if has("probabilities") else numbers(*several, dtype=torch.int64)
    begin = case.shape[1] if has("whole") or has("parts") else 0
    weights = (x.new_empty(begin + case.shape[1]), numbers()) if has("weight") else (None, None)
    options = RowOptions(
        label_smoothing=0.1 if has("smoothing") else 0.0,
        valid_classes=begin + case.shape[1],
        softcap=30.0 if has("softcap") else 0.0,
        z_loss=1e-4,
        outputs=sum(OUTPUTS.values()),
    )
    log_prob = None if target is None else numbers(*several)
    backward = has("upstream") or has("whole")
    upstream = (numbers(), log_prob, numbers(), numbers()) if backward else (None,) * 4
    part = torch.empty(7, rows, dtype=compute, device="meta")
    results: list[Tensor | None] = [None if backward or has("parts") else numbers(), *[None] * 7]
    if has("parts"):
        results[6] = part
    if has("statistics"):
        results[1:5] = [log_prob, numbers(), numbers(), numbers(dtype=torch.int64)]
        if target is not None and not several:
            results[5] = numbers(dtype=torch.bool)
    grad = torch.empty_like(x) if has("gradient") else None
    factor = torch.empty((), dtype=compute, device="meta") if has("gradient") else None
    probs = numbers(*several) if several else None
    row_losses.row_losses(
        x, target, probs, probabilities, *weights, *options, begin, part if has("whole") else None,
        float(factor is not None), factor, *upstream, *results, grad,
    )  # fmt: skip


def _merge_rows(case: Case, x: Tensor) -> None:
    """The step of row_parts_results: all results and the merged numbers, from parts of the case's shape."""
    compute = compute_dtype(x.dtype)
    parts = torch.empty(case.shape, dtype=compute, device="meta")
    rows = case.shape[2]
    several = (8,) if "indices" in case.options else ()

    def numbers(*sizes: int, dtype: torch.dtype = compute) -> Tensor:
        return torch.empty(rows, *sizes, dtype=dtype, device="meta")

    hot_z, probs = (numbers(8), numbers(8)) if several else (None, None)
    row_merge.merge_rows(
        parts, hot_z, numbers(*several, dtype=torch.int64), probs, x.new_empty(1000), numbers(),
        *RowOptions(label_smoothing=0.1, valid_classes=1000, z_loss=1e-4), numbers(), numbers(*several),
        numbers(), numbers(), parts[:, 0],
    )  # fmt: skip


OPTIONS: tuple[tuple[str, ...], ...] = (
    (),
    ("gradient",),
    ("gradient", "smoothing"),
    ("gradient", "smoothing", "weight"),
    ("gradient", "smoothing", "weight", "probabilities"),
)
ROW_OPTIONS: tuple[tuple[str, ...], ...] = (
    ("statistics",),
    ("gradient", "statistics", "softcap", "indices"),
    ("gradient", "upstream", "softcap", "smoothing", "weight"),
    ("gradient", "upstream", "softcap", "smoothing", "weight", "probabilities"),
    ("parts", "softcap", "smoothing", "weight"),
    ("parts", "softcap", "smoothing", "weight", "probabilities"),
    ("gradient", "whole", "softcap", "indices"),
    ("gradient", "whole", "softcap", "smoothing", "weight"),
    ("gradient", "whole", "softcap", "smoothing", "weight", "probabilities"),
)
SOFTMAXES = ("softmax", "log_softmax", "softmax_backward", "log_softmax_backward")


def cases(dtypes: tuple[torch.dtype, ...], shapes: tuple[tuple[int, ...], ...]) -> list[Case]:
    found = [Case(op, dtype, shape) for op in SOFTMAXES for dtype in dtypes for shape in shapes]
    for dtype in dtypes:
        for shape in shapes:
            found += [Case("cross_entropy", dtype, shape, options) for options in OPTIONS]
            found.append(Case("cross_entropy_backward", dtype, shape))
            found += [Case("row_losses", dtype, shape, options) for options in ROW_OPTIONS]
    return found


# Numbers, parts, rows: of the parts of one program, and of more.
MERGES = tuple(
    Case("merge_rows", dtype, (7, parts, 4096), options)
    for dtype in (torch.float32, torch.bfloat16, torch.float64)
    for parts in (1, 8, 512)
    for options in ((), ("indices",))
)


# Shapes for each kind of program (docs/triton.md), aligned to 16 bytes and unaligned; few rows, which are
# computed in parts; classes that are apart in memory.
SHAPES = (
    (65536, 10),
    (65536, 64),
    (4096, 1000),
    (4096, 1025),
    (4096, 4096),
    (4096, 8192),
    (4096, 16384),
    (4096, 50257),
    (4096, 131072),
    (1, 131072),
    (64, 100, 196),
    (64, 1000, 4096),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def report_of(case: Case) -> list[dict[str, Any]]:
    rows = []
    for made in (made for made in launches_of(case) if made.of_classes):
        stage = ("", "parts", "merged")[made.arguments.get("STAGE", 0)]
        for architecture in ARCHITECTURES:
            what = {
                "op": case.op,
                "options": list(case.options),
                "dtype": str(case.dtype).removeprefix("torch."),
                "shape": list(case.shape),
                "stage": stage,
                "sm": architecture,
                "block": [made.arguments["BLOCK_R"], made.arguments["BLOCK_C"]],
                "warps": made.warps,
            }
            rows.append(what | asdict(compile_for(made, architecture)))
    return rows


def report() -> dict[str, Any]:
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        rows = [row for found in pool.map(report_of, cases(DTYPES, SHAPES)) for row in found]
    return {"triton": triton.__version__, "rows": rows}


def wide(row: dict[str, Any]) -> bool:
    """Whether the kernel has 16-byte loads."""
    return any(load in ("v4.b32", "v2.b64") for load in row["loads"])


def table(found: dict[str, Any]) -> str:
    """One line per op and shape: the largest number of registers over options and dtypes, by architecture."""
    lines = [
        "| op | shape | block | warps | registers sm_80 / sm_90 / sm_100 | spilled bytes | 16-byte loads |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in found["rows"]:
        kind = "float64" if row["dtype"] == "float64" else "others"
        name = row["op"] + (" with gradient" if "gradient" in row["options"] else "")
        groups.setdefault((name, tuple(row["shape"]), kind), []).append(row)
    for (name, shape, kind), rows in groups.items():
        registers = " / ".join(
            str(max(r["registers"] for r in rows if r["sm"] == sm)) for sm in ARCHITECTURES
        )
        blocks = sorted({"x".join(map(str, r["block"])) for r in rows})
        warps = sorted({r["warps"] for r in rows})
        cells = (
            name + (", float64" if kind == "float64" else ""),
            "x".join(map(str, shape)),
            ", ".join(blocks),
            ", ".join(map(str, warps)),
            registers,
            str(max(row["stack"] + row["local"] for row in rows)),
            "yes" if all(map(wide, rows)) else "some" if any(map(wide, rows)) else "no",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


BEGIN, END = "<!-- made by tools/compile_triton.py: begin -->\n", "<!-- end -->\n"


def with_table(page: str, found: dict[str, Any]) -> str:
    before, rest = page.split(BEGIN)
    return before + BEGIN + f"Triton {found['triton']}.\n\n" + table(found) + END + rest.split(END)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="compile and write docs/triton.json and .md")
    numbers, page = ROOT / "docs/triton.json", ROOT / "docs/triton.md"
    if parser.parse_args().write:
        numbers.write_text(json.dumps(report()).replace('{"op"', '\n{"op"') + "\n")
        page.write_text(with_table(page.read_text(), json.loads(numbers.read_text())))
    else:
        print(table(json.loads(numbers.read_text())), end="")


if __name__ == "__main__":
    main()
