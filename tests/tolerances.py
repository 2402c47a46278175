# SPDX-License-Identifier: Apache-2.0
"""How far a result may be from the float64 answer: one table, every number argued.

    bound = roundings * u * |expected| + (arithmetic * eps + k * torch) * scale

`u` is half a unit in the last place of the result's dtype and `eps` one of the dtype computed in.
`scale` is the magnitude of the terms the result was formed from, which the caller knows: for a
gradient A p - a it is A p + a, so that a small difference of large terms is not held to the ulp of
the difference, and a large cancellation in the wrong precision still shows. `torch` is what torch
itself lost on the same input, in the same unit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Tolerance(NamedTuple):
    compute: torch.dtype  # what the kernel computes in
    roundings: int  # of the result to its own dtype, each half an ulp
    arithmetic: float  # eps of `compute`, relative to the scale of the terms
    k: float  # how much of torch's own error is granted on top


TABLE = {
    # exp (1 ulp), a division or product (1/2 each), a sum over 64 partial sums (1 to 2 for a few
    # thousand terms of one sign) and a log: 4. The term |x - m| / 2 ulp that the rounded
    # difference x - m costs any exp is in the scale. k: long rows cost everyone more, torch too.
    torch.float32: Tolerance(torch.float32, 0, 4, 2),
    # As above, twice: the oracle is float64 itself and rounds as often as its subject.
    torch.float64: Tolerance(torch.float64, 0, 8, 2),
    # Computed in float32 and rounded once, so the dtype's half ulp is granted relative to the
    # result, not to its terms. k = 0: torch rounds to 16 bits in between and its error there (an
    # overflowed fp16 sum is infinite) would be a licence for any formula.
    torch.bfloat16: Tolerance(torch.float32, 1, 4, 0),
    torch.float16: Tolerance(torch.float32, 1, 4, 0),
}

# No bound may exceed this share of the scale: 1e-4 is 800 float32 ulp, less than any wrong formula
# or forgotten term costs. A case that needs more is a case with the wrong scale.
WIDEST = 1e-4

DTYPES = tuple(TABLE)
