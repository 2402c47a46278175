# SPDX-License-Identifier: Apache-2.0
"""How far a result may be from the float64 answer: the table that users check against too."""

from softkern.verify.bounds import DTYPES, TABLE, WIDEST, Tolerance

__all__ = ["DTYPES", "TABLE", "WIDEST", "Tolerance"]
