# SPDX-License-Identifier: Apache-2.0
"""The speed of the CUDA kernels alone: the tables of docs/cuda.md.

    python tools/cuda_times.py                   # write the tables anew
    python tools/cuda_times.py --add times.json  # first add the figures of a run of tools/gpu_run.py

docs/cuda.json has the figures, the newest measurement first, and docs/cuda-predictions.json what is expected
of some cells, and why.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FIGURES, PREDICTIONS = ROOT / "docs/cuda.json", ROOT / "docs/cuda-predictions.json"
PAGE = ROOT / "docs/cuda.md"
# Of shapes with two dimensions; other ops, options and shapes have a line each.
OPS = ("softmax", "log_softmax", "softmax backward", "cross_entropy", "cross_entropy with gradient")
# Tensors that these ops move, in figures that name no bytes: their copy moved 2.
TENSORS = dict(zip(OPS, (2, 2, 3, 1, 2), strict=True))
NO_GPU = "no GPU yet"
Rows = list[dict[str, Any]]


def percent(row: dict[str, Any]) -> float:
    """Of a copy's speed."""
    moved = 1.0 if "bytes" in row else TENSORS[row["op"]] / 2
    return float(100 * row["copy_microseconds"] / row["microseconds"] * moved)


def shape_text(row: dict[str, Any]) -> str:
    return "x".join(map(str, row["shape"]))


def table(found: dict[str, Any]) -> str:
    """For each shape the time, and the speed of moving the bytes in percent of a copy's speed."""
    cuda = f"{found['cuda'] // 1000}.{found['cuda'] % 1000 // 10}"
    where = f"{found['device']}, CUDA {cuda}, {found['measured']}, commit {found['commit']}"
    lines = [f"{where}: microseconds (percent of a copy's speed).", ""]
    usual = [row for row in found["rows"] if row["op"] in OPS and len(row["shape"]) == 2]
    by_shape: dict[tuple[str, int, int], dict[str, str]] = {}
    for row in usual:
        cells = by_shape.setdefault((row["dtype"], *row["shape"]), {})
        cells[row["op"]] = f"{row['microseconds']:,.0f} ({percent(row):.0f})"
    lines += [f"| dtype | shape | {' | '.join(OPS)} |", "|---|---|" + "---:|" * len(OPS)]
    for (dtype, rows, classes), cells in sorted(by_shape.items(), key=lambda item: (item[0][0], item[0][2])):
        lines.append(f"| {dtype} | {rows}x{classes} | {' | '.join(cells.get(op, '') for op in OPS)} |")
    others = [row for row in found["rows"] if row not in usual]
    if others:
        lines += ["", "| call | dtype | shape | microseconds | percent |", "|---|---|---|---:|---:|"]
    for row in others:
        figures = f"{row['microseconds']:,.1f} | {percent(row):.0f}"
        lines.append(f"| {row['op']} | {row['dtype']} | {shape_text(row)} | {figures} |")
    return "\n".join(lines) + "\n"


def measured(prediction: dict[str, Any], measurements: Rows) -> str:
    """The newest figure of a cell, and its commit where that is not the newest measurement's."""
    for number, found in enumerate(measurements):
        for row in found["rows"]:
            if all(row[key] == prediction[key] for key in ("op", "dtype", "shape")):
                return f"{percent(row):.0f}" + (f" at {found['commit']}" if number else "")
    return NO_GPU


def predictions_table(predictions: Rows, measurements: Rows) -> str:
    lines = ["| call | before | predicted | measured | target | because |", "|---|---:|---:|---:|---:|---|"]
    for each in predictions:
        call = f"{each['op']}, {each['dtype']}, {shape_text(each)}"
        figures = (each["before"], each["predicted"], measured(each, measurements), each["target"])
        cells = ("" if figure is None else str(figure) for figure in figures)
        lines.append(f"| {call} | {' | '.join(cells)} | {each['because']} |")
    return "\n".join(lines) + "\n"


def written(page: str, measurements: Rows, predictions: Rows) -> str:
    """The page with the tables of these figures."""
    tables = "\n".join(table(found) for found in measurements)
    for name, text in (("figures", tables), ("predictions", predictions_table(predictions, measurements))):
        begin = f"<!-- {name}: made by tools/cuda_times.py -->\n"
        end = f"<!-- {name}: end -->"
        before, rest = page.split(begin)
        page = before + begin + text + end + rest.split(end, 1)[1]
    return page


def of_run(times: dict[str, Any]) -> dict[str, Any]:
    """A measurement, from the results of the step `times` (tools/gpu/times_step.py)."""
    about, lines = times["about"], times["lines"]
    heads = [line for line in lines if "cuda" in line]
    if not heads or any(head["device"] == "emulated" for head in heads):
        raise SystemExit("these are no figures of a GPU")
    names = ("op", "dtype", "shape", "way", "bytes", "microseconds", "copy_microseconds")
    rows = [{name: line[name] for name in names} for line in lines if "microseconds" in line]
    return {
        "commit": about["commit"],
        "measured": about["started"][:10],
        "device": heads[0]["device"],
        "cuda": heads[0]["cuda"],
        "rows": rows,
    }


def with_run(measurements: Rows, found: dict[str, Any]) -> Rows:
    """The newest first; one of the same commit and device is replaced."""
    same = (found["commit"], found["device"])
    return [found, *(each for each in measurements if (each["commit"], each["device"]) != same)]


def as_json(measurements: Rows) -> str:
    """A line for each row, so that changes can be read."""
    parts = []
    for each in measurements:
        head = "".join(f'  "{key}": {json.dumps(each[key])},\n' for key in each if key != "rows")
        rows = ",\n".join(f"   {json.dumps(row)}" for row in each["rows"])
        parts.append(f' {{\n{head}  "rows": [\n{rows}\n  ]\n }}')
    return "[\n" + ",\n".join(parts) + "\n]\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--add", type=Path, metavar="FILE", help="times.json of a run")
    args = parser.parse_args()
    measurements = json.loads(FIGURES.read_text())
    if args.add:
        measurements = with_run(measurements, of_run(json.loads(args.add.read_text())))
        FIGURES.write_text(as_json(measurements))
    PAGE.write_text(written(PAGE.read_text(), measurements, json.loads(PREDICTIONS.read_text())))


if __name__ == "__main__":
    main()
