# SPDX-License-Identifier: Apache-2.0
"""The results file: its schema, writing it as a whole after every cell, and reading it with clear errors.

    schema       SCHEMA
    environment  {name: value}, from softkern.info and benchmarks.machine
    command      the command that made it
    started, finished   UTC, ISO 8601
    interrupted  whether Ctrl-C ended it
    warnings     [text]: why the machine was not fit for measuring, or that the time was too short
    bandwidth    [{"threads", "what": "copy"|"read"|"first touch"|"first touch, huge pages", "gbps"}]
    absent       [{"provider", "reason"}]: providers that could not start here
    left_out     [{"provider", "reason", "cells"}]: how many cells a provider did not measure, and why
    rows         [row]

A row is one provider in one cell, regime and thread count:

    op, pass_name, dtype, shape, dim, option, device, cell     the cell (`cell` is its name)
    inputs       kind of logits, of benchmarks.inputs; empty for plain ones. Older files lack this field
    provider, version, regime, threads                         the provider and its setting
    main         whether every provider measured this cell
    edge         whether the cell is an edge; the summary has a separate table for edges
    how          preparation of the call before timing: "CUDA graph", or why there is none; otherwise empty
    status       "ok", or why there are no times: "refused" (wrong result), "failed" (crashed, killed, hung)
    reason       text, if status is not "ok"
    samples      [seconds per call], in the order of the rounds. The k-th samples of all providers of a cell,
                 regime and thread count were taken in the same round. A provider with fewer samples than the
                 baseline was known well enough and skipped the later rounds
    repeats      calls per sample
    median, q20, q80   seconds per call
    ratio        the first provider's time / this one's, median over the rounds in which both had a turn; the
                 first provider is torch unless chosen otherwise
    baseline     the provider that the ratio compares with
    times_plain  for logits that are not plain: median / median of the same provider with plain logits, in the
                 same regime and thread count; null if that has no time. For an option that F lacks, in
                 softkern's row: its time / the time of softkern:plain, median over the rounds in which both
                 had a turn
    bytes        by the op's declared formula (0: not declared, as for end-to-end jobs)
    gbps         bytes / median / 1e9
    copy_gbps    copy of as many bytes in the same rounds, and copy_percent = 100 gbps / copy_gbps; null for
                 cells that are too small for this comparison
    residency    "cache" or "memory": the place of a call's operands
    buffers      how many copies of the inputs are used in turn
    error        {"output": e, "gradient": e}: largest |got - float64 answer|, in units of the dtype's eps
                 times the scale of the row (benchmarks.answers); null where not finite
    flops, result_bytes   of a head of a language model alone: floating point operations of the products that
                 it needs, and bytes of its gradients, which peak_bytes includes
    peak_bytes   growth of the resident set above the inputs in one call; null where not measured
    faults       page faults per call
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks import options
from benchmarks.cells import Cell

SCHEMA = 1
KEY = ("cell", "provider", "regime", "threads", "device")
# How a row of a device was timed: replayed from a graph; without a graph, followed by the reason. Rows that
# say CAPTURED are of earlier runs, whose peaks were measured after the graph had allocated its memory.
REPLAYED = "replayed from a CUDA graph"
CAPTURED = "CUDA graph"
NOT_CAPTURED = "not captured in a CUDA graph"

PLAIN = "softkern:plain"  # the provider that leaves the cell's option out

Row = dict[str, Any]
Results = dict[str, Any]


class BadResults(ValueError):
    """The file is not a results file of this schema."""


def key(row: Row) -> tuple[Any, ...]:
    """The fields that identify a measurement in two results files."""
    return tuple(row[name] for name in KEY)


def beside_plain(rows: list[Row], cell: Cell, measured: list[Row]) -> list[Row]:
    """The cell's rows, with `times_plain` where there is one. The cell with plain logits has been measured
    before, because its inputs sort first; the plain call for an option takes turns with the others."""
    if options.is_own(cell):
        timed = {row["provider"]: row for row in rows if row["status"] == "ok"}
        if {"softkern", PLAIN} <= set(timed):
            times = common_ratio(timed["softkern"]["samples"], timed[PLAIN]["samples"])
            timed["softkern"]["times_plain"] = round(times, 4)
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
    """Replace the whole file, so that a kill leaves the previous one; one row per line, for diffs."""
    rows = ",\n".join("  " + json.dumps(row, allow_nan=False) for row in results["rows"])
    head = json.dumps({name: value for name, value in results.items() if name != "rows"}, indent=1)
    text = head[: head.rindex("\n}")] + ',\n "rows": [\n' + rows + "\n ]\n}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def read(path: Path, schema: int | str = SCHEMA) -> Results:
    try:
        results = json.loads(path.read_text())
    except OSError as error:
        raise BadResults(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise BadResults(f"{path}: not JSON ({error})") from error
    if not isinstance(results, dict) or results.get("schema") != schema:
        found = results.get("schema") if isinstance(results, dict) else None
        raise BadResults(f"{path}: schema {found!r}; this version reads schema {schema}")
    return results


def summary(samples: list[float]) -> dict[str, float]:
    """Median and 20 % and 80 % quantiles."""
    if len(samples) == 1:
        return {"median": samples[0], "q20": samples[0], "q80": samples[0]}
    low, *_, high = quantiles(samples, n=5, method="inclusive")
    return {"median": median(samples), "q20": low, "q80": high}


def common_ratio(baseline: list[float], samples: list[float]) -> float:
    """`paired_ratio` of the rounds in which both had a turn: the k-th samples are of the same round."""
    common = min(len(baseline), len(samples))
    return paired_ratio(baseline[:common], samples[:common])


def paired_ratio(baseline: list[float], samples: list[float]) -> float:
    """Median over the rounds of baseline / sample: a drift of the machine affects both."""
    return median(b / s for b, s in zip(baseline, samples, strict=True))
