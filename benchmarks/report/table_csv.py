# SPDX-License-Identifier: Apache-2.0
"""The rows of a results file as CSV, for spreadsheets and data frames."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from benchmarks.results import Results, Row

# In this order; other fields of a row come after them.
FIELDS = (
    *("op", "pass_name", "dtype", "shape", "dim", "option", "device", "cell", "main"),
    *("provider", "version", "how", "regime", "threads", "status", "reason"),
    *("repeats", "median", "q20", "q80", "ratio", "baseline"),
    *("bytes", "gbps", "copy_gbps", "copy_percent", "residency", "buffers"),
    *("error_output", "error_gradient", "peak_bytes", "faults"),
)


def write(results: Results, path: Path) -> None:
    """One line per row, without the samples; fields that a row lacks are empty."""
    rows = [_flat(row) for row in results["rows"]]
    fields = dict.fromkeys((*FIELDS, *(name for row in rows for name in row)))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _flat(row: Row) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if name == "shape":
            flat[name] = "x".join(map(str, value))
        elif isinstance(value, dict):
            flat.update({f"{name}_{part}": number for part, number in value.items()})
        elif name != "samples":
            flat[name] = value
    return flat
