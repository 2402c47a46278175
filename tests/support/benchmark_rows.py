# SPDX-License-Identifier: Apache-2.0
"""Invented rows and results of benchmarks, in the form of the results file."""

from __future__ import annotations

from math import prod
from typing import Any

from benchmarks import results as results_file

MS = 1e-3
REASON = "wrong output: off by 0.5 of the row's largest entry (accepted: 0.0001)"
ITEM_SIZE = {"float32": 4, "float64": 8}


def row(provider: str = "softkern", time: float = 1 * MS, **fields: Any) -> dict[str, Any]:
    """A row of softmax without gradient of 4096x1000 float32, torch taking 2 ms; `fields` differ."""
    made = {"op": "softmax", "pass_name": "no-grad", "dtype": "float32", "shape": [4096, 1000], "dim": -1}
    made |= {"option": "", "device": "cpu", "main": True, "provider": provider, "version": "1.0"}
    made |= {"inputs": "", "edge": False, "regime": "default", "threads": 2, "status": "ok", "reason": ""}
    made |= fields
    shape = "x".join(map(str, made["shape"]))
    parts = (made["op"], made["pass_name"], made["dtype"], shape, made["option"], made["inputs"])
    made["cell"] = "/".join(part for part in parts if part)
    if made["status"] != "ok":
        return made
    size = prod(made["shape"]) * ITEM_SIZE[made["dtype"]]
    samples = [0.99 * time, time, 1.01 * time]
    made |= {"samples": samples, "repeats": 1, **results_file.summary(samples), "baseline": "torch"}
    made |= {"ratio": 2 * MS / time, "bytes": 2 * size, "gbps": 2 * size / time / 1e9, "copy_gbps": 40.0}
    made |= {"copy_percent": 82.0, "residency": "memory", "buffers": 1}
    made |= {"error": {"output": 1.5, "gradient": 2.5}, "peak_bytes": size, "faults": 7}
    return made | fields


def torch_row(**fields: Any) -> dict[str, Any]:
    return row("torch", 2 * MS, **fields)


def refused_row(**fields: Any) -> dict[str, Any]:
    return row("jax", status="refused", reason=REASON, **fields)


def results_of(*rows: dict[str, Any], **fields: Any) -> dict[str, Any]:
    names = ("cpu", "torch", "softkern", "threads", "active on cpu", "commit", "dirty", "huge pages")
    values = ("Some CPU", "2.13.0", "0.1.0", "2", "avx512", "abc1234", "no", "always [madvise] never")
    made = {
        "schema": results_file.SCHEMA,
        "environment": dict(zip(names, values, strict=True)),
        "command": "python -m benchmarks",
        "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T04:04:05+00:00",
        "interrupted": False,
        "warnings": [],
        "bandwidth": [{"threads": 2, "what": "copy", "gbps": 12.3}],
        "absent": [{"provider": "liger", "reason": "no GPU on this machine"}],
        "left_out": [{"provider": "numpy", "reason": "does not compute float16", "cells": 4}],
        "rows": list(rows),
    }
    return made | fields
