# SPDX-License-Identifier: Apache-2.0
"""Problems for cross-entropy: logits, targets and options, in every shape that F.cross_entropy accepts."""

from __future__ import annotations

import pytest
from cases import name
from tolerances import DTYPES

from softkern.verify.inputs import OPTIONS, REDUCTIONS, class_weights, indices, probabilities, problem

__all__ = [
    "KINDS",
    "OPTIONS",
    "REDUCTIONS",
    "SHAPES",
    "class_weights",
    "indices",
    "over_dtypes",
    "over_kinds",
    "over_reductions",
    "probabilities",
    "problem",
]

# (C), (N, C), (N, C, d1), (N, C, d1, d2) and an empty inner dimension's neighbour, d1 = 1
SHAPES = ((7,), (6, 10), (4, 5, 3), (3, 7, 1), (2, 5, 3, 4))

# Class indices, everything at once with indices, everything at once with probabilities.
KINDS = ({}, {"weight": True, "ignore": 1, "smoothing": 0.1}, OPTIONS[-1])

over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=name)
over_reductions = pytest.mark.parametrize("reduction", REDUCTIONS)
over_kinds = pytest.mark.parametrize("kind", KINDS, ids=("indices", "all-options", "probs"))
