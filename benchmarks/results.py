# SPDX-License-Identifier: Apache-2.0
"""The results file: its schema, written whole after every cell, and read with a clear error.

    schema       SCHEMA
    environment  {name: value}, as softkern.info gives it, and what benchmarks.machine adds
    command      the command that made it
    started, finished   UTC, ISO 8601
    interrupted  whether Ctrl-C ended it
    warnings     [text]: why the machine was not fit to measure on, or the time too short
    bandwidth    [{"threads", "what": "copy"|"read"|"first touch"|"first touch, huge pages", "gbps"}]
    absent       [{"provider", "reason"}]: providers that could not start here
    left_out     [{"provider", "reason", "cells"}]: how many cells a provider was not asked for, and why
    rows         [row]

A row is one provider in one cell, regime and thread count:

    op, pass_name, dtype, shape, dim, option, device, cell     what (cell is the cell's name)
    inputs       kind of logits, of benchmarks.inputs; empty for plain ones, as in older files, which lack it
    provider, version, regime, threads                         who and how
    main         whether every provider was asked
    edge         whether it is a cell of the edges, which the summary has in a table of their own
    how          what was done to the call before timing it: "CUDA graph", or why not; else empty
    status       "ok", or why there are no times: "refused" (wrong result), "failed" (crashed, killed, hung)
    reason       text, where status is not "ok"
    samples      [seconds a call], in the order of the rounds; the k-th of every provider of a cell, regime
                 and thread count were taken in the same round. Who has fewer than the baseline was known well
                 enough and not asked in the later rounds
    repeats      calls per sample
    median, q20, q80   seconds a call
    ratio        the first provider's time / this one's, median over the rounds that this one was asked in;
                 the first is torch unless chosen otherwise
    baseline     the provider that ratio is against
    times_plain  where logits are not plain: median / that of the same provider with plain logits, in the same
                 regime and thread count; null where that has no time
    bytes        by the op's declared formula (0: not declared, as for end-to-end jobs)
    gbps         bytes / median / 1e9
    copy_gbps    copy of as many bytes in the same rounds, and copy_percent = 100 gbps / copy_gbps; null for
                 cells too small for a copy to be a measure
    residency    "cache" or "memory": where the operands of a call are found
    buffers      how many copies of the inputs were taken in turn
    error        {"output": e, "gradient": e}: largest |got - float64 answer|, in units of the dtype's eps
                 times the scale of the row (benchmarks.problems.answers); null where not finite
    peak_bytes   growth of the resident set above the inputs in one call; null where not measured
    faults       page faults a call
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.cells import Cell

SCHEMA = 1
KEY = ("cell", "provider", "regime", "threads", "device")
# How a device's row was timed: replayed from a graph, which has all of its memory before it is asked for its
# peak; or, followed by why, not.
CAPTURED = "CUDA graph"
NOT_CAPTURED = "not captured in a CUDA graph"

Row = dict[str, Any]
Results = dict[str, Any]


class BadResults(ValueError):
    """A file that is no results file of this schema."""


def key(row: Row) -> tuple[Any, ...]:
    """What two results files have to agree on for two rows to be the same measurement."""
    return tuple(row[name] for name in KEY)


def beside_plain(rows: list[Row], cell: Cell, measured: list[Row]) -> list[Row]:
    """The cell's rows, which of logits that are not plain say how many times as long as with plain ones they
    took; those have been measured before, because their inputs sort before these."""
    if not cell.inputs:
        return rows
    where = ("provider", "regime", "threads")
    plain = {
        tuple(row[name] for name in where): row["median"]
        for row in measured
        if row["cell"] == cell.plain.name and row["status"] == "ok"
    }
    for row in rows:
        if row["status"] == "ok":
            median = plain.get(tuple(row[name] for name in where))
            row["times_plain"] = None if median is None else round(row["median"] / median, 4)
    return rows


def write(results: Results, path: Path) -> None:
    """Replace the file as a whole, so that a kill leaves the previous state; one row a line, for diffs."""
    rows = ",\n".join("  " + json.dumps(row, allow_nan=False) for row in results["rows"])
    head = json.dumps({name: value for name, value in results.items() if name != "rows"}, indent=1)
    text = head[: head.rindex("\n}")] + ',\n "rows": [\n' + rows + "\n ]\n}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def read(path: Path) -> Results:
    try:
        results = json.loads(path.read_text())
    except OSError as error:
        raise BadResults(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise BadResults(f"{path}: not JSON ({error})") from error
    if not isinstance(results, dict) or results.get("schema") != SCHEMA:
        found = results.get("schema") if isinstance(results, dict) else None
        raise BadResults(f"{path}: schema {found!r}; this version reads schema {SCHEMA}")
    return results


def summary(samples: list[float]) -> dict[str, float]:
    """Median and 20 % and 80 % quantiles."""
    if len(samples) == 1:
        return {"median": samples[0], "q20": samples[0], "q80": samples[0]}
    low, *_, high = quantiles(samples, n=5, method="inclusive")
    return {"median": median(samples), "q20": low, "q80": high}


def paired_ratio(baseline: list[float], samples: list[float]) -> float:
    """Median over the rounds of baseline / sample: drift of the machine hits both alike."""
    return median(b / s for b, s in zip(baseline, samples, strict=True))
