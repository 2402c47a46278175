# SPDX-License-Identifier: Apache-2.0
"""How far a result may be from the float64 answer: the table of softkern.verify."""

from softkern.verify.bounds import DTYPES, TABLE, WIDEST, Tolerance

__all__ = ["DTYPES", "TABLE", "WIDEST", "Tolerance"]
