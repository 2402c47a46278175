# SPDX-License-Identifier: Apache-2.0
"""y_c = (x_c - m) - log d,   m = max_c x_c,   d = sum_c exp(x_c - m);    dx_c = g_c - exp(y_c) sum_k g_k"""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401  (Triton's interpreter wants to see it beside every kernel)
from torch import Tensor

from softkern.triton.elementary import exp
from softkern.triton.formulas import log_d, top_term
from softkern.triton.launch import run_backward, run_forward


@triton.jit
def row_number(m, ties, rest):
    return log_d(ties, top_term(m), rest)


@triton.jit
def value(x, m, log_of_d):
    # Not x - (m + log d): with logits around 1e6 that sum would lose log d.
    return (x - m) - log_of_d


@triton.jit
def summand(g, y):
    return g


@triton.jit
def gradient(g, y, total):
    return g - exp(y) * total


def log_softmax(x: Tensor, dim: int) -> Tensor:
    return run_forward(x, dim, row_number, value)


def log_softmax_backward(grad_output: Tensor, output: Tensor, dim: int) -> Tensor:
    return run_backward(grad_output, output, dim, summand, gradient)
