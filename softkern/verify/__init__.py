# SPDX-License-Identifier: Apache-2.0
"""Checks of softkern's results on this machine: `python -m softkern.verify`, or `run()`.

The checks cover every op, dtype, option and memory layout, class counts on both sides of every limit between
kernels, and difficult values. They compare results with the float64 answer and with torch's own error, and
the bits of the backends with each other.
"""

from softkern.verify.case import Case, build
from softkern.verify.report import Failure, Report, Row
from softkern.verify.runner import run

__all__ = ["Case", "Failure", "Report", "Row", "build", "run"]
