# SPDX-License-Identifier: Apache-2.0
"""TRL's formulas of log-probability and entropy, written out in torch: TRL itself is not needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from benchmarks.cells import Cell
from benchmarks.providers.torch_family import Torch


class Trl(Torch):
    """Both in parts, for less memory than with plain formulas."""

    name = "trl"
    regimes = ("default",)
    peer = True

    def left_out(self, cell: Cell, threads: int | None) -> str | None:
        return None if cell.op == "selective_log_softmax" else "has log-probabilities and entropies alone"

    def api(self, cell: Cell) -> Any:
        from benchmarks.providers import torch_formulas

        return SimpleNamespace(selective_log_softmax=torch_formulas.selective_log_softmax_in_parts)
