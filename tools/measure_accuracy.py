# SPDX-License-Identifier: Apache-2.0
"""Measure the errors of softkern and of torch against float64 and write them to docs/accuracy.json and .md.

    python tools/measure_accuracy.py            # measure, print
    python tools/measure_accuracy.py --write    # measure, write docs/accuracy.json, render docs/accuracy.md
    python tools/measure_accuracy.py --render   # render docs/accuracy.md from docs/accuracy.json
    python tools/measure_accuracy.py --write --table options  # one of the three tables; the others stay

Errors are in ulp: distances between neighbouring numbers of the result's dtype at the float64 answer.
Answers below the smallest normal number count as that number. The second table, of softkern's own options and
of statistics, takes the larger of two units: this one, and an ulp of float32 at the scale of the result
(softkern/verify/row_oracle.py). The third, of linear_cross_entropy, has errors of whole results: the norm of
the difference divided by that of the answer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import softkern
from softkern import info
from softkern.verify import rows
from softkern.verify.bounds import ulp, ulp_error
from softkern.verify.case import Case, Problem, build
from softkern.verify.oracle import answers

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
OPTIONS_BEGIN, OPTIONS_END = "<!-- options: begin -->", "<!-- options: end -->"
LINEAR_BEGIN, LINEAR_END = "<!-- linear: begin -->", "<!-- linear: end -->"
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
    found: list[dict[str, object]] = []
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
                found.append(
                    {
                        "op": op,
                        "dtype": dtype_name,
                        "input": name,
                        "softkern": round(ulp_error(ours[op], answer), 2),
                        "torch": round(ulp_error(theirs[op], answer), 2),
                    }
                )
    return found


# Calls that F does not have, by the text of their row: the op, and fields of softkern.verify.Case.
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "row_weight": ("cross_entropy", {"row_weight": "float32"}),
    "num_items, mean": ("cross_entropy", {"num_items": "number", "reduction": "mean"}),
    "valid_classes": ("cross_entropy", {"padding": 3}),
    "target_probs, K = 8": ("cross_entropy", {"indices": 8}),
    "logit_scale=0.7": ("cross_entropy", {"logit_scale": 0.7}),
    "temperature=0.7": ("cross_entropy", {"temperature": 0.7}),
    "softcap=30": ("cross_entropy", {"softcap": 30.0}),
    "z_loss=1e-4": ("cross_entropy", {"z_loss": 1e-4}),
    "stats": ("cross_entropy", {"stats": ("log_prob", "lse", "entropy"), "upstream": "random"}),
    "selective_log_softmax": ("selective_log_softmax", {"stats": ("entropy",), "upstream": "random"}),
    "entropy_from_logits": ("entropy_from_logits", {"upstream": "random"}),
}


def measure_options(
    scale: float = 1.0, dtypes: dict[str, torch.dtype] | None = None
) -> list[dict[str, object]]:
    """One row for each call, result and dtype: the worst error of softkern and of torch over all inputs."""
    worst: dict[tuple[str, str, str, str], list[float]] = {}
    chosen = dtypes or {name: DTYPES[name] for name in ("float32", "bfloat16")}
    for dtype_name, dtype in chosen.items():
        for exact in inputs(scale).values():
            x = exact.to(dtype)
            if dtype != torch.float32 and not (x.max() < 1000):
                continue
            for call, (op, fields) in CALLS.items():
                case = Case("accuracy", op, dtype_name, tuple(x.shape), **fields)
                problem = _with_logits(case, x)
                ours = rows.results(softkern, case, problem)
                theirs = _results_of_torch(case, problem, rows.upstream_of(case, ours))
                for quantity, answer in rows.expectations(case, problem, ours).items():
                    unit = torch.maximum(
                        ulp(answer.value, rows.dtype_of(case, quantity)), ulp(answer.scale, torch.float32)
                    )
                    errors = worst.setdefault((call, op, quantity, dtype_name), [0.0, 0.0])
                    for i, result in enumerate((ours, theirs)):
                        error = (result[quantity].double() - answer.value).abs() / unit
                        errors[i] = max(errors[i], round(float(error.max()), 2))
    return [
        {"call": call, "op": op, "result": result, "dtype": dtype_name, "softkern": mine, "torch": of_torch}
        for (call, op, result, dtype_name), (mine, of_torch) in worst.items()
    ]


def _with_logits(case: Case, x: Tensor) -> Problem:
    """The arguments of a case with these logits; every other target is confident and right."""
    problem = build(case)
    if problem.target is None or case.indices:
        return replace(problem, x=x)
    target = problem.target.clone()
    target[::2] = x[::2, : x.shape[1] - case.padding].argmax(1)
    return replace(problem, x=x, target=target)


def _results_of_torch(case: Case, problem: Problem, upstream: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same in torch's ops, as it is usually written: float32 logits, and F where it has the option."""
    leaf = problem.x.clone().requires_grad_()
    given = problem.kwargs or {}
    z = leaf.float()[:, : leaf.shape[1] - case.padding] * case.logit_scale
    if case.softcap is not None:
        z = case.softcap * torch.tanh(z / case.softcap)
    z = z / case.temperature
    outputs: dict[str, Tensor] = {}
    if case.op == "cross_entropy":
        outputs[case.op] = _loss_of_torch(case, z, problem.target, given).to(leaf.dtype)
    statistics: dict[str, Callable[[], Tensor]] = {
        "log_prob": lambda: z.gather(1, problem.target[:, None])[:, 0] - z.logsumexp(1),  # type: ignore[index]
        "lse": lambda: z.logsumexp(1),
        "entropy": lambda: -(z.log_softmax(1).exp() * z.log_softmax(1)).sum(1),
    }
    for name in rows.quantities(case):
        statistic = {"selective_log_softmax": "log_prob", "entropy_from_logits": "entropy"}.get(name, name)
        if statistic in statistics:
            outputs[name] = statistics[statistic]()
    (dx,) = torch.autograd.grad([outputs[name] for name in upstream], leaf, list(upstream.values()))
    return {**{name: y.detach() for name, y in outputs.items()}, f"{case.op} gradient": dx}


def _loss_of_torch(case: Case, z: Tensor, target: Tensor | None, given: dict[str, Any]) -> Tensor:
    assert target is not None
    if case.indices:
        probabilities = torch.zeros_like(z).scatter_add(1, target, given["target_probs"].float())
        return F.cross_entropy(z, probabilities, reduction="none")
    loss = F.cross_entropy(z, target, reduction="none") + case.z_loss * z.logsumexp(1) ** 2
    if case.num_items:
        return loss.sum() / float(given["num_items"])
    return loss * given["row_weight"] if case.row_weight else loss


ROWS, FEATURES, CLASSES = 1024, 256, 4000
SPREADS = (1, 4, 12)  # of the logits
CHUNKS = (1, 4, 16, 128)
RESULTS = ("loss", "input", "weight", "bias")
ONCE = "exact products, rounded once"
# A call of input, weight, bias and target, by the text of its rows; with rows of a chunk, if it has chunks.
Head = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]


def _two_calls(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, _: int) -> Tensor:
    return F.cross_entropy(F.linear(x, weight, bias), target)


def _torchs_chunks(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, rows: int) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows)
    loss: Tensor = F.linear_cross_entropy(x, weight, target, linear_bias=bias, options=options)
    return loss


def _plan(plan: str) -> Head:
    def loss(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, rows: int) -> Tensor:
        options = softkern.LinearCrossEntropyOptions(plan=plan, chunk_rows=rows)
        found: Tensor = softkern.linear_cross_entropy(x, weight, target, linear_bias=bias, options=options)
        return found

    return loss


HEADS: dict[str, tuple[Head, tuple[int, ...]]] = {
    "softkern, fast": (_plan("fast"), CHUNKS),
    "softkern, lean": (_plan("lean"), CHUNKS),
    "torch, two calls": (_two_calls, (1,)),
    "torch, chunked": (_torchs_chunks, CHUNKS),
}


def measure_linear(
    scale: float = 1.0, dtypes: tuple[str, ...] = ("float32", "bfloat16")
) -> list[dict[str, object]]:
    """One row for each dtype, spread of the logits, call and number of chunks."""
    found: list[dict[str, object]] = []
    rows = max(CHUNKS[-1], int(ROWS * scale))
    for dtype_name, spread in product(dtypes, SPREADS):
        operands, target = _head(rows, spread, DTYPES[dtype_name])
        answers = _of_head(_two_calls, [x.double() for x in operands], target, rows)
        z = F.linear(*(x.double() for x in operands))
        once = _rounded_once(z, operands, target, answers[0])
        measured = {(ONCE, 1): once}
        for call, (head, chunks) in HEADS.items():
            if call == "torch, chunked" and not hasattr(torch.nn, "LinearCrossEntropyOptions"):
                continue
            measured |= {(call, n): _of_head(head, operands, target, rows // n) for n in chunks}
        for (call, n), results in measured.items():
            errors = {
                name: float(f"{float((got.double() - answer).norm() / answer.norm()):.2e}")
                for name, got, answer in zip(RESULTS, results, answers, strict=True)
            }
            found.append({"dtype": dtype_name, "spread": spread, "call": call, "chunks": n, **errors})
    return found


def _head(rows: int, spread: float, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Input, weight and bias, and class indices, of which every other one is the likeliest."""
    g = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, FEATURES, generator=g, dtype=torch.float64) for n in (rows, CLASSES))
    bias = torch.randn(CLASSES, generator=g, dtype=torch.float64)
    operands = [t.to(dtype) for t in (x, weight * spread / FEATURES**0.5, bias)]
    target = torch.randint(0, CLASSES, (rows,), generator=g)
    target[::2] = F.linear(*(t.double() for t in operands))[::2].argmax(1)
    return operands, target


def _of_head(head: Head, operands: list[Tensor], target: Tensor, rows: int) -> list[Tensor]:
    """The loss and the gradients of the operands."""
    leaves = [x.detach().requires_grad_() for x in operands]
    loss = head(leaves[0], leaves[1], leaves[2], target, rows)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def _rounded_once(z: Tensor, operands: list[Tensor], target: Tensor, loss: Tensor) -> list[Tensor]:
    """As exact as a result in the dtype can be if the gradient of the logits is rounded to it, too."""
    dtype = operands[0].dtype
    x, weight, _ = (t.double() for t in operands)
    dz = (z.softmax(1) - F.one_hot(target, CLASSES)).to(dtype).double() / len(z)
    return [t.to(dtype) for t in (loss, dz @ weight, dz.T @ x, dz.sum(0))]


def table_of_heads(measured: list[dict[str, Any]]) -> str:
    """One line for each dtype, spread and call: the errors with one chunk and with the most."""
    lines = ["| dtype | logits | call | loss | dX | dW | db |", "|---|---|---|---:|---:|---:|---:|"]
    calls: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for row in measured:
        calls.setdefault((row["dtype"], row["spread"], row["call"]), []).append(row)
    for (dtype, spread, call), found in calls.items():
        texts = [[f"{row[name]:.1e}" for row in (found[0], found[-1])] for name in RESULTS]
        cells = " | ".join(" → ".join(dict.fromkeys(ends)) for ends in texts)
        lines.append(f"| {dtype} | N(0, {spread}) | {call} | {cells} |")
    return "\n".join(lines)


def table(rows: list[dict[str, object]]) -> str:
    lines = ["| op | dtype | logits | softkern, ulp | torch, ulp |", "|---|---|---|---:|---:|"]
    lines += [
        f"| {r['op']} | {r['dtype']} | {r['input']} | {_short(r['softkern'])} | {_short(r['torch'])} |"
        for r in rows
    ]
    return "\n".join(lines)


def table_of_options(measured: list[dict[str, object]]) -> str:
    """One line for each call and result, with a pair of columns for each dtype."""
    dtypes = list(dict.fromkeys(r["dtype"] for r in measured))
    columns = [f"{of}, {dtype}" for dtype in dtypes for of in ("softkern", "torch")]
    lines = [
        f"| call | result | {' | '.join(columns)} |",
        f"|---|---|{'---:|' * len(columns)}",
    ]
    for call, result in dict.fromkeys((r["call"], r["result"]) for r in measured):
        found = {r["dtype"]: r for r in measured if (r["call"], r["result"]) == (call, result)}
        cells = [_short(found[dtype][of]) for dtype in dtypes for of in ("softkern", "torch")]
        lines.append(f"| {call} | {result} | {' | '.join(cells)} |")
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


def render(measured: dict[str, Any], page: str) -> str:
    """The page with everything between the markers made again."""
    parts = (
        (BEGIN, END, table, measured),
        (OPTIONS_BEGIN, OPTIONS_END, table_of_options, measured["options"]),
        (LINEAR_BEGIN, LINEAR_END, table_of_heads, measured["linear"]),
    )
    for begin, end, drawn, part in parts:
        head, tail = page.split(begin)[0], page.split(end)[1]
        page = f"{head}{begin}\n{measured_with(part['environment'])}\n\n{drawn(part['rows'])}\n{end}{tail}"
    return page


TABLES = ("rows", "options", "linear")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write docs/accuracy.json and docs/accuracy.md")
    parser.add_argument("--render", action="store_true", help="only render the page from the JSON")
    parser.add_argument(
        "--table", choices=TABLES, help="only F's functions, only the options, or only linear_cross_entropy"
    )
    args = parser.parse_args()
    json_file, page = DOCS / "accuracy.json", DOCS / "accuracy.md"
    measured = json.loads(json_file.read_text())
    wanted = () if args.render else (args.table,) if args.table else TABLES
    if "rows" in wanted:
        measured |= {"environment": info.environment(), "rows": measure()}
        print(table(measured["rows"]))
    if "options" in wanted:
        measured["options"] = {"environment": info.environment(), "rows": measure_options()}
        print(table_of_options(measured["options"]["rows"]))
    if "linear" in wanted:
        measured["linear"] = {"environment": info.environment(), "rows": measure_linear()}
        print(table_of_heads(measured["linear"]["rows"]))
    if args.write:
        json_file.write_text(json.dumps(measured, indent=1) + "\n")
    if args.write or args.render:
        page.write_text(render(measured, page.read_text()))


if __name__ == "__main__":
    main()
