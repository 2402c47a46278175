# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of a language model's head: answers, the check of each provider, rounds, the report."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from benchmark_rows import MS, results_of, row, torch_row

from benchmarks import cli, ops, problems, providers, results
from benchmarks.answers import answers
from benchmarks.cells import HEAD_OP, Cell
from benchmarks.engine import worker
from benchmarks.ops import end_to_end, quick
from benchmarks.providers.base import Prepared
from benchmarks.providers.cuda_peer import CudaPeer
from benchmarks.report import head as head_table
from benchmarks.report import readme, table_csv

N, H, V = 12, 5, 700
CELLS = [
    Cell(HEAD_OP, pass_name, dtype, (N, H, V))
    for pass_name in ("no-grad", "forward+backward")
    for dtype in ("float32", "bfloat16")
]
NAMES = ["output", "gradient", "weight gradient"]
ON_CUDA = {"liger", "cut-cross-entropy", "softkern:cuda", "softkern:triton"}
OURS = ("softkern", "softkern:fast", "softkern:lean", "softkern:logits")


def refused(cell: Cell, expected: problems.Answers, **arrays: np.ndarray) -> bool:
    return problems.verdict(cell, problems.errors(cell, arrays, expected)) is not None


# The answers


@pytest.mark.parametrize("cell", CELLS[2:], ids=lambda c: c.name)
def test_answers_are_those_of_autograd(cell, monkeypatch):
    """Of the weight, for some classes; in blocks of rows."""
    monkeypatch.setattr(problems, "SAMPLED_CLASSES", 64)
    monkeypatch.setattr("benchmarks.answers.BLOCK", 4 * V)
    problem = problems.make(cell)
    x, weight = (torch.from_numpy(a).double().requires_grad_() for a in (problem.x, problem.weight))
    z = F.linear(x, weight)
    loss = F.cross_entropy(z, torch.from_numpy(problem.target))
    loss.backward()
    assert z.std().item() == pytest.approx(3, rel=0.3)
    classes = problems.sampled_classes(cell, problem.target)
    assert 32 <= len(classes) <= 64 and set(problem.target) <= set(classes)
    found = answers(cell, problem)
    tolerance = {"rtol": 1e-12, "atol": 1e-15} if cell.dtype == "float32" else {"rtol": 1e-5, "atol": 1e-8}
    np.testing.assert_allclose(found["output"], loss.item(), **tolerance)
    np.testing.assert_allclose(found["gradient"], x.grad, **tolerance)
    np.testing.assert_allclose(found["weight gradient"], weight.grad[classes], **tolerance)


def test_a_cell_is_as_large_as_its_logits():
    cell = CELLS[2]
    assert (cell.rows, cell.classes, cell.elements, cell.input_bytes) == (N, V, N * V, 4 * N * V)
    assert cell.operand_bytes == 4 * H * (N + V) == ops.result_bytes(cell)
    assert ops.flops(cell) == 3 * ops.flops(CELLS[0]) == 6 * N * H * V
    assert ops.result_bytes(CELLS[0]) == 0 and cell.name == f"{HEAD_OP}/forward+backward/float32/{N}x{H}x{V}"


# The providers


@pytest.mark.parametrize("cell", CELLS, ids=lambda c: c.name)
@pytest.mark.parametrize("name", ["torch", "torch:chunked", *OURS])
def test_providers_compute_the_answers(name, cell):
    if name == "torch:chunked" and not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        pytest.skip("this torch has no chunks")
    problem = problems.make(cell)
    expected = answers(cell, problem)
    prepared = providers.PROVIDERS[name].prepare(cell, problem, 2)
    for i in range(2):
        got = prepared.results(prepared.step(i))
        assert list(got) == (NAMES if cell.pass_name == "forward+backward" else NAMES[:1])
        assert not refused(cell, expected, **got)
        for part, array in got.items():
            assert refused(cell, expected, **{part: array * np.float32(1.25)}), part
            assert part == "output" or refused(cell, expected, **{part: np.roll(array, 1, 0)}), part


class StandIn(CudaPeer):
    """torch in the place of a CUDA library."""

    ops = (HEAD_OP,)

    def __init__(self) -> None:
        self.calls = {HEAD_OP: lambda x, weight, target: F.cross_entropy(F.linear(x, weight), target)}


@pytest.mark.parametrize("cell", CELLS, ids=lambda c: c.name)
def test_cuda_plumbing(cell):
    peer, problem = StandIn(), problems.make(cell)
    assert peer.left_out(cell, None) is None
    prepared = peer.prepare(cell, problem, 1)
    assert not refused(cell, answers(cell, problem), **prepared.results(prepared.step(0)))


def test_who_takes_part():
    for device, peers in (("cpu", set()), ("cuda", ON_CUDA)):
        for cell in ops.all_cells(device, ops.HEAD):
            there = {
                name
                for name, p in providers.PROVIDERS.items()
                if device in p.devices and p.left_out(cell, None) is None
            }
            slow = device == "cpu" and cell.dtype == "bfloat16" and cell.rows > 512
            chunked = set() if slow else {"torch:chunked"}
            compiled = {"torch-compile"} if cell.compiled else set()
            assert there == {"torch", *OURS} | chunked | compiled | peers, cell.name
    assert "float32" in providers.PROVIDERS["cut-cross-entropy"].left_out(CELLS[0], None)
    for group in (ops.FULL, ops.EDGES, ops.OWN):
        assert not any(cell.op == HEAD_OP for cell in ops.all_cells("cpu", group))


def test_an_absent_peer_says_why(tmp_path):
    output = tmp_path / "head.json"
    arguments = ["--quick", "--group", "head", "--pass", "no-grad", "--dtype", "float32", "--threads", "1"]
    wanted = [
        "--regime",
        "default",
        "--provider",
        "torch,torch:chunked,softkern:lean,liger,cut-cross-entropy",
    ]
    assert cli.main([*arguments, *wanted, "--output", str(output)]) == 0
    found = results.read(output)
    absent = {entry["provider"]: entry["reason"] for entry in found["absent"]}
    assert all("does not run on cpu" in absent[name] for name in ("liger", "cut-cross-entropy"))
    rounds = {row["provider"]: len(row["samples"]) for row in found["rows"]}
    if "torch:chunked" not in absent:
        assert rounds.pop("torch:chunked") == 1
    assert rounds == {"torch": 3, "softkern:lean": 3}
    cell = next(cell for cell in quick.cells("cpu") if cell.op == HEAD_OP)
    for made in found["rows"]:
        assert (made["flops"], made["result_bytes"], made["bytes"]) == (ops.flops(cell), 0, 0)
        assert made["copy_gbps"] is None


def test_a_slow_call_is_not_made_before_it_is_timed(monkeypatch):
    calls: list[int] = []
    session = worker.Session(1)
    session.step = calls.append
    monkeypatch.setattr(worker, "SLOW", 0.0)
    assert session.calibrate(0.0)["repeats"] == 1 and len(calls) == 1
    session.sample()
    assert len(calls) == 2
    monkeypatch.setattr(worker, "SLOW", 1.0)
    session.calibrate(0.0)
    session.sample()
    assert len(calls) == 2 + 2 + 2


def test_the_step_of_a_head_is_one_call():
    cell = Cell(end_to_end.HEAD, "step", "float32", (8, 30), 1, main=True)
    calls = []

    def linear_cross_entropy(x: Any, weight: Any, target: Any) -> Any:
        calls.append((x.shape, weight.shape))
        return F.cross_entropy(F.linear(x, weight), target)

    step, error = end_to_end.prepare(SimpleNamespace(linear_cross_entropy=linear_cross_entropy), cell)
    assert error(step(0)) < 1e-5 and calls == [((8, end_to_end.HIDDEN), (30, end_to_end.HIDDEN))]
    for name in ("torch", "softkern"):
        prepared: Prepared = providers.PROVIDERS[name].prepare(cell, None, 1)
        assert prepared.results(prepared.step(0))["loss"] < 1e-5


# The report


def head_rows() -> list[dict[str, Any]]:
    """torch takes 2 ms and four times the logits, softkern 1 ms and an eighth of them; one other failed."""
    logits, of_results = 512 * 50257 * 4, 1 << 20
    made = {"op": HEAD_OP, "pass_name": "forward+backward", "shape": [512, 768, 50257], "main": False}
    made |= {"flops": 6 * 10**9, "result_bytes": of_results, "bytes": 0, "copy_percent": None}
    made |= {"error": {"output": 0.5, "gradient": 2.0, "weight gradient": 3.0}}
    return [
        torch_row(peak_bytes=4 * logits + of_results, **made),
        row(peak_bytes=logits // 8 + of_results, **made),
        row("softkern:lean", 1.25 * MS, peak_bytes=of_results // 2, **made),
        row("torch:chunked", status="failed", reason="killed", **made),
    ]


@pytest.mark.parametrize("short", [False, True])
def test_the_table_has_time_products_memory_and_errors(short):
    text = readme.block(results_of(*head_rows()), "r.json", short)
    assert text.count("\n|---|") == 1 and head_table.TITLE in text
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    name = "forward+backward float32 512x768x50257"
    assert lines == [
        f"| {name} | torch | 2.00 ms | 1.00 | 3,000 | 393 | 4.00 | 0.50 | 3.00 |",
        "|  | softkern | 1.00 ms | **2.00** | 6,000 | 12.3 | 0.12 | 0.50 | 3.00 |",
        "|  | softkern:lean | 1.25 ms | 1.60 | 4,800 | 0.00 | 0.00 | 0.50 | 3.00 |",
        "|  | torch:chunked | failed |  |  |  |  |  |  |",
    ]


def test_a_cell_without_softkern_has_no_lines():
    torch, ours, lean, failed = head_rows()
    assert head_table.table([[torch, failed]]) == []
    assert len(head_table.table([[torch, lean]])) == len(head_table.table([[torch, ours]])) == 7


def test_the_terminal_has_products_in_place_of_bytes(capsys, tmp_path):
    from rich.console import Console

    from benchmarks.report import table

    console = Console(width=200)
    table.render(results_of(*head_rows()), console)
    printed = capsys.readouterr().out
    assert "GFLOP/s" in printed and "GB/s" not in printed.split("linear_cross_entropy", 1)[1]
    assert "3,000" in printed and "393" in printed
    table_csv.write(results_of(*head_rows()), tmp_path / "t.csv")
    assert "flops" in (tmp_path / "t.csv").read_text().splitlines()[0]


def test_other_tables_have_none_of_these_cells():
    ordinary = [torch_row(), row()]
    without = readme.block(results_of(*ordinary), "r.json")
    text = readme.block(results_of(*ordinary, *head_rows()), "r.json")
    assert head_table.TITLE not in without
    assert text.split(head_table.TITLE)[0] == without.split("Cells where")[0]
