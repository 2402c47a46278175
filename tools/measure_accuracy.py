# SPDX-License-Identifier: Apache-2.0
"""Measure the errors of softkern and of torch against float64 and write them to docs/accuracy.json and .md.

    python tools/measure_accuracy.py            # measure, print
    python tools/measure_accuracy.py --write    # measure, write docs/accuracy.json, render docs/accuracy.md
    python tools/measure_accuracy.py --render   # render docs/accuracy.md from docs/accuracy.json

Errors are in ulp: distances between neighbouring numbers of the result's dtype at the float64 answer.
Answers below the smallest normal number count as that number.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import softkern
from softkern import info
from softkern.verify.bounds import ulp_error
from softkern.verify.oracle import answers

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def inputs(scale: float) -> dict[str, Tensor]:
    """Difficult logits in float64: wide ranges, large common offsets, confident rows, long rows."""
    g = torch.Generator().manual_seed(0)

    def normal(rows: int, classes: int) -> Tensor:
        return torch.randn(max(2, int(rows * scale)), classes, generator=g, dtype=torch.float64)

    return {
        "N(0, 1), C = 1000": normal(2000, 1000),
        "N(0, 10), C = 1000": normal(2000, 1000) * 10,
        "N(0, 10), C = 10": normal(100000, 10) * 10,
        "N(0, 5), C = 32000": normal(64, 32000) * 5,
        "90 to 100, C = 1000": normal(2000, 1000).clamp(-2, 2) * 2.5 + 95,
        "N(10000, 10), C = 1000": normal(2000, 1000) * 10 + 1e4,
        "N(1000000, 10), C = 1000": normal(2000, 1000) * 10 + 1e6,
    }


def results(functions: object, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    logits = x.clone().requires_grad_()
    loss = functions.cross_entropy(logits, target, reduction="none")  # type: ignore[attr-defined]
    loss.sum().backward()
    assert logits.grad is not None
    return {
        "softmax": functions.softmax(x, dim=1),  # type: ignore[attr-defined]
        "log_softmax": functions.log_softmax(x, dim=1),  # type: ignore[attr-defined]
        "cross_entropy": loss.detach(),
        "cross_entropy gradient": logits.grad,
    }


def measure(scale: float = 1.0, dtypes: dict[str, torch.dtype] | None = None) -> list[dict[str, object]]:
    """One row for each op, dtype and input: worst error of softkern and of torch."""
    rows: list[dict[str, object]] = []
    for dtype_name, dtype in (dtypes or DTYPES).items():
        for name, exact in inputs(scale).items():
            x = exact.to(dtype)
            if dtype != torch.float32 and not (x.max() < 1000):
                continue  # 16-bit formats can't represent logits with these offsets
            target = torch.randint(0, x.shape[1], (x.shape[0],), generator=torch.Generator().manual_seed(1))
            target[::2] = x[::2].argmax(1)  # confident and right, as in a trained classifier
            wanted = answers(x.double(), target)
            ours, theirs = results(softkern, x, target), results(F, x, target)
            for op, answer in wanted.items():
                rows.append(
                    {
                        "op": op,
                        "dtype": dtype_name,
                        "input": name,
                        "softkern": round(ulp_error(ours[op], answer), 2),
                        "torch": round(ulp_error(theirs[op], answer), 2),
                    }
                )
    return rows


def table(rows: list[dict[str, object]]) -> str:
    lines = ["| op | dtype | logits | softkern, ulp | torch, ulp |", "|---|---|---|---:|---:|"]
    lines += [
        f"| {r['op']} | {r['dtype']} | {r['input']} | {_short(r['softkern'])} | {_short(r['torch'])} |"
        for r in rows
    ]
    return "\n".join(lines)


def _short(value: object) -> str:
    assert isinstance(value, float)
    return f"{value:.2f}" if value < 1000 else f"{value:.1e}"


def measured_with(where: dict[str, str]) -> str:
    """The caption of every table of these errors."""
    return (
        f"Worst errors; {where['cpu']}, torch {where['torch']}, softkern {where['softkern']} "
        f"({where['active on cpu']}); `python tools/measure_accuracy.py --write`."
    )


def render(measured: dict[str, object], page: str) -> str:
    """The page with everything between the markers made again."""
    rows, where = measured["rows"], measured["environment"]
    assert isinstance(rows, list) and isinstance(where, dict)
    head, tail = page.split(BEGIN)[0], page.split(END)[1]
    return f"{head}{BEGIN}\n{measured_with(where)}\n\n{table(rows)}\n{END}{tail}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write docs/accuracy.json and docs/accuracy.md")
    parser.add_argument("--render", action="store_true", help="only render the page from the JSON")
    args = parser.parse_args()
    json_file, page = DOCS / "accuracy.json", DOCS / "accuracy.md"
    if args.render:
        measured = json.loads(json_file.read_text())
    else:
        measured = {"schema": 1, "environment": info.environment(), "rows": measure()}
        print(table(measured["rows"]))
    if args.write:
        json_file.write_text(json.dumps(measured, indent=1) + "\n")
    if args.write or args.render:
        page.write_text(render(measured, page.read_text()))


if __name__ == "__main__":
    main()
