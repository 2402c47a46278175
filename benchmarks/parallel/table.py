# SPDX-License-Identifier: Apache-2.0
"""The results in Markdown."""

from __future__ import annotations

from benchmarks.parallel import BASELINE
from benchmarks.report import MIB, duration, grouped, is_ok, number
from benchmarks.results import Results, Row

COLUMNS = ("dtype, rows x classes", "", "time", "times as fast", "memory, MiB", "logits", "collectives")
ERRORS = ("error, loss", "gradient")


def block(found: Results, source: str) -> str:
    environment = found["environment"]
    dirty = " with changes" if environment["dirty"] == "yes" else ""
    lines = [
        f"Median times of forward and backward on {found['ranks']} processes with one thread each, which "
        f"gloo connects; {environment['cpu']}, torch {environment['torch']}, softkern "
        f"{environment['softkern']} ({environment['active on cpu']}), {found['started'][:10]}, commit "
        f"{environment['commit'][:12]}{dirty}.",
        "",
        f"Times as fast: as `{BASELINE}`, median over the rounds, in which all take turns; of the slower "
        "process. Memory: growth of a process's resident set in one call, the gradient included, in MiB and "
        "in units of its logits. Errors: in eps of the dtype, relative to the loss and to the largest term "
        "of a gradient's row.",
        "",
        f"All figures: [{source}]({source}), made by `{found['command']}`.",
        "",
        f"| {' | '.join((*COLUMNS, *ERRORS))} |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for rows in grouped(found["rows"], "rows", "classes", "dtype").values():
        name = f"{rows[0]['dtype']} {rows[0]['rows']}x{rows[0]['classes']}"
        for row in rows:
            lines.append(f"| {' | '.join((name, *_values(row)))} |")
            name = ""
    failed = [row for row in found["rows"] if not is_ok(row)]
    if failed:
        lines += ["", "Without times:", ""]
        lines += [
            f"- {row['provider']}, {row['dtype']} {row['rows']}x{row['classes']}: {row['reason']}"
            for row in failed
        ]
    lines += [f"\nWarning: {warning}." for warning in found["warnings"]]
    return "\n".join([*lines, ""])


def _values(row: Row) -> list[str]:
    name = row["provider"]
    errors = ["" if e is None else number(e) for e in row["error"].values()]
    if not is_ok(row):
        return [name, row["status"], "", "", "", str(row["collectives"]), *errors]
    ours = "**" if name == "softkern" else ""
    peak, ratio = row["peak_bytes"], row.get("ratio")
    return [
        name,
        duration(row["median"]),
        "" if ratio is None else f"{ours}{ratio:.2f}{ours}",
        "" if peak is None else number(peak / MIB),
        "" if peak is None else f"{peak / row['logits_bytes']:.2f}",
        str(row["collectives"]),
        *errors,
    ]
