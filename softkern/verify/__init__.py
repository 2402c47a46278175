# SPDX-License-Identifier: Apache-2.0
"""Whether softkern computes what it says, on this machine: `python -m softkern.verify`, or `run()`.

Every op, dtype, option and memory layout, class counts on both sides of every kernel and values chosen to
hurt, against the float64 answer and against torch's own error; the bits of the backends against each other.
"""

from softkern.verify.cases import Case, build
from softkern.verify.report import Failure, Report, Row
from softkern.verify.runner import run

__all__ = ["Case", "Failure", "Report", "Row", "build", "run"]
