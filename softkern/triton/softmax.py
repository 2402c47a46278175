# SPDX-License-Identifier: Apache-2.0
"""y_c = exp(x_c - m) / d,   m = max_c x_c,   d = sum_c exp(x_c - m);     dx_c = y_c (g_c - sum_k g_k y_k)"""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401  (Triton's interpreter wants to see it beside every kernel)
from torch import Tensor

from softkern.triton.elementary import inverse_of
from softkern.triton.formulas import top_term, total
from softkern.triton.launch import run_backward, run_forward
from softkern.triton.rows import terms


@triton.jit
def row_number(m, ties, rest):
    return inverse_of(total(ties, top_term(m), rest))


@triton.jit
def value(x, m, inverse):
    return terms(x, m) * inverse


@triton.jit
def summand(g, y):
    return g * y


@triton.jit
def gradient(g, y, dot):
    return y * (g - dot)


def softmax(x: Tensor, dim: int) -> Tensor:
    return run_forward(x, dim, row_number, value)


def softmax_backward(grad_output: Tensor, output: Tensor, dim: int) -> Tensor:
    return run_backward(grad_output, output, dim, summand, gradient)
