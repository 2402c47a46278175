# SPDX-License-Identifier: Apache-2.0
"""softkern's cross_entropy without the option of the cell: what the option costs is measured against it."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks import options
from benchmarks.cells import Cell
from benchmarks.problems import Problem, without_option
from benchmarks.providers.base import Prepared
from benchmarks.providers.torch_family import Softkern


class SoftkernPlain(Softkern):
    """Its turns are among those of the call with the option. It does other work than the other providers, so
    its results have other names, and answers of their own."""

    name = "softkern:plain"

    def left_out(self, cell: Cell, threads: int | None) -> str | None:
        if cell.option not in options.OWN:
            return "measured beside options that F lacks"
        return None

    def prepare(self, cell: Cell, problem: Problem | None, buffers: int) -> Prepared:
        assert problem is not None, "end-to-end jobs are left out"
        prepared = super().prepare(*without_option(cell, problem), buffers)

        def results(value: Any) -> dict[str, np.ndarray]:
            return {f"plain {name}": array for name, array in prepared.results(value).items()}

        return Prepared(prepared.step, results)
