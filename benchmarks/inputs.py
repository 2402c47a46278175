# SPDX-License-Identifier: Apache-2.0
"""Kinds of logits besides plain ones: masks, as in attention and padding, and confident rows.

The exponentials of masked logits underflow, and a processor may need a hundred cycles for a subnormal number.
Kernels must avoid this cost. So the report compares each of these cells with the same cell with plain logits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# The lowest finite number of a dtype, as in torch.finfo.
LOWEST = {
    "float32": float(np.finfo(np.float32).min),
    "float64": float(np.finfo(np.float64).min),
    "float16": float(np.finfo(np.float16).min),
    "bfloat16": -(2.0 - 2.0**-7) * 2.0**127,
}
ABOVE = 300.0  # e^-300 is below the smallest float32, also below subnormal ones
SPARSE = 0.05

# (logits with the classes last, generator) -> the classes that are masked
Masked = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _causal(x: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """Row i of a matrix sees the classes up to i."""
    return np.broadcast_to(np.triu(np.ones(x.shape[-2:], bool), 1), x.shape)


def _half(x: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """The upper half of the classes, as if a task did not have them."""
    return np.broadcast_to(np.arange(x.shape[-1]) >= (x.shape[-1] + 1) // 2, x.shape)


def _sparse(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random classes, but never the first one: no row is masked as a whole."""
    masked = rng.random(x.shape, np.float32) < SPARSE
    masked[..., 0] = False
    return masked


def _padded(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The end of each row, from a random class of its last three quarters on."""
    classes = x.shape[-1]
    lengths = rng.integers(-(-classes // 4), classes, x.shape[:-1], endpoint=True)
    return np.arange(classes) >= lengths[..., None]


# kind -> (function of the masked classes, value; None is the dtype's lowest)
MASKS: dict[str, tuple[Masked, float | None]] = {
    "causal": (_causal, -np.inf),
    "half-inf": (_half, -np.inf),
    "half-1e4": (_half, -1e4),
    "sparse-inf": (_sparse, -np.inf),
    "padding": (_padded, None),
}
CONFIDENT = "confident"
KINDS = (*MASKS, CONFIDENT)


def change(kind: str, x: np.ndarray, dtype: str, rng: np.random.Generator) -> np.ndarray:
    """Turn plain logits (classes last) into those of a kind, in place, before rounding to the dtype. Returns
    the classes that may be targets."""
    if kind == CONFIDENT:
        sure = rng.integers(0, x.shape[-1], x.shape[:-1])[..., None]
        np.put_along_axis(x, sure, x.max(-1, keepdims=True) + ABOVE, -1)
        return np.ones(x.shape, bool)
    who, value = MASKS[kind]
    masked = who(x, rng)
    x[masked] = LOWEST[dtype] if value is None else value
    return ~masked


def targets(allowed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each row, a random class of the allowed ones."""
    return np.where(allowed, rng.random(allowed.shape, np.float32), -1).argmax(-1)
