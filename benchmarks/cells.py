# SPDX-License-Identifier: Apache-2.0
"""Cells, the units of measurement (one op, pass, dtype and shape), and their choice by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

PASSES = ("no-grad", "forward", "backward", "forward+backward")
# The gradient together with its own graph, as for penalties on gradients or second derivatives: in few cells.
CREATE_GRAPH = "create-graph"
HEAD_OP = "linear_cross_entropy"  # the op whose shape is N x H x V: its inputs are no logits
ITEM_SIZE = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}


class BadArgument(ValueError):
    """A wrong argument of the command line; the message names it and the accepted ones."""


@dataclass(frozen=True)
class Case:
    """A shape in the list of an op's file.

    `main` cases are measured with every provider, the others only with torch and softkern. `compiled` cases
    are also measured with torch.compile, which takes seconds per cell. `inputs` is a kind of logits, see
    `benchmarks.inputs`. `edge` cases are less common: `--group edges` has all of them, the full run a few.
    """

    shape: tuple[int, ...]
    dim: int = -1
    dtypes: tuple[str, ...] = ("float32",)
    passes: tuple[str, ...] = PASSES
    option: str = ""
    main: bool = False
    compiled: bool = False
    inputs: str = ""
    edge: bool = False


@dataclass(frozen=True)
class Cell:
    """One thing to time. softkern's ops have the passes above; end-to-end jobs have pass "epoch"
    or "step" and an empty shape. The shape is that of the logits, but for a head."""

    op: str
    pass_name: str
    dtype: str
    shape: tuple[int, ...] = ()
    dim: int = -1
    option: str = ""
    device: str = "cpu"
    main: bool = False
    compiled: bool = False
    inputs: str = ""
    edge: bool = False

    @property
    def shape_text(self) -> str:
        """The shape as on the command line: 4096x1000, or 64x1000x196 with a softmax over dim 1."""
        return "x".join(map(str, self.shape))

    @property
    def last_dim(self) -> bool:
        return self.dim in (-1, len(self.shape) - 1)

    @property
    def name(self) -> str:
        dim = "" if self.last_dim else f"dim {self.dim}"
        parts = (self.op, self.pass_name, self.dtype, self.shape_text, dim, self.option, self.inputs)
        return "/".join(part for part in parts if part)

    @property
    def plain(self) -> Cell:
        """The same cell with plain logits; it is not an edge."""
        return replace(self, inputs="", edge=False)

    @property
    def logits_shape(self) -> tuple[int, ...]:
        """The shape, or N x V of a head's N x H x V."""
        return (self.shape[0], self.shape[-1]) if self.op == HEAD_OP else self.shape

    @property
    def elements(self) -> int:
        """Of the logits; 0 for jobs without a shape."""
        return prod(self.logits_shape) if self.shape else 0

    @property
    def classes(self) -> int:
        return self.shape[self.dim]

    @property
    def rows(self) -> int:
        return self.elements // self.classes

    @property
    def item_size(self) -> int:
        return ITEM_SIZE[self.dtype]

    @property
    def input_bytes(self) -> int:
        """Bytes of the logits; 0 for jobs without a shape."""
        return self.elements * self.item_size

    @property
    def operand_bytes(self) -> int:
        """Bytes of the inputs: the logits, or a head's input and weight."""
        if self.op != HEAD_OP:
            return self.input_bytes
        rows, features, classes = self.shape
        return features * (rows + classes) * self.item_size

    @property
    def problem_key(self) -> tuple[Any, ...]:
        """Equal for cells that get equal inputs from `benchmarks.problems`."""
        kind = self.op if self.op in ("cross_entropy", HEAD_OP) else ""
        return (kind, self.shape, self.dim, self.dtype, self.option, self.inputs)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> Cell:
        return Cell(**{**fields, "shape": tuple(fields["shape"])})


def expand(op: str, cases: Iterable[Case], device: str) -> list[Cell]:
    """The cells of an op's cases. The cases of cross_entropy name its class dimension (1, or -1)."""
    same = ("shape", "dim", "option", "main", "compiled", "inputs", "edge")
    return [
        Cell(op, p, dtype, device=device, **{name: getattr(case, name) for name in same})
        for case in cases
        for dtype in case.dtypes
        for p in case.passes
    ]


def with_plain(cells: Sequence[Cell]) -> list[Cell]:
    """The cells, and for each with special logits, the cell with plain logits to compare it with."""
    by_name = {cell.name: cell for cell in cells}
    for cell in cells:
        if cell.inputs:
            by_name.setdefault(cell.plain.name, cell.plain)
    return list(by_name.values())


def select(
    cells: Sequence[Cell],
    ops: Sequence[str] = (),
    passes: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    shapes: Sequence[str] = (),
    options: Sequence[str] = (),
    inputs: Sequence[str] = (),
) -> list[Cell]:
    """The cells with these names; an empty list takes all. "plain" names the empty option and the usual
    logits."""
    chosen = list(cells)
    for what, names, of in (
        ("op", ops, lambda c: c.op),
        ("pass", passes, lambda c: c.pass_name),
        ("dtype", dtypes, lambda c: c.dtype),
        ("shape", shapes, lambda c: c.shape_text),
        ("option", options, lambda c: c.option or "plain"),
        ("inputs", inputs, lambda c: c.inputs or "plain"),
    ):
        check_names(what, names, [of(c) for c in cells])
        chosen = [c for c in chosen if not names or of(c) in names]
    if not chosen:
        raise BadArgument("no cell has all of the chosen op, pass, dtype, shape, option and inputs together")
    return chosen


def check_names(what: str, names: Iterable[str], choices: Iterable[str]) -> None:
    """Raise BadArgument, with a list of the choices, for the first unknown name."""
    choices = [choice for choice in dict.fromkeys(choices) if choice]
    for name in names:
        if name not in choices:
            raise BadArgument(f"unknown {what} '{name}'; choose from: {', '.join(choices)}")
