# SPDX-License-Identifier: Apache-2.0
"""Losses whose classes are spread over the ranks of a process group."""

from softkern.parallel._agreement import RemoteError
from softkern.parallel._call import num_items
from softkern.parallel._linear_losses import linear_cross_entropy
from softkern.parallel._losses import cross_entropy

__all__ = ["RemoteError", "cross_entropy", "linear_cross_entropy", "num_items"]
