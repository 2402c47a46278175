# SPDX-License-Identifier: Apache-2.0
"""The benchmark of sharded classes: its problem, its checks, a run on two processes, the table."""

from __future__ import annotations

import json

import pytest
import torch
import torch.distributed as dist

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("this torch was built without torch.distributed's gloo", allow_module_level=True)

from benchmarks import results
from benchmarks.parallel import SCHEMA, __main__, ranks, table, ways

CELLS = [ranks.Cell(10, 64, dtype) for dtype in ("float32", "bfloat16")]


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("cell", CELLS, ids=lambda c: c.name)
def test_answers_are_those_of_whole_rows(cell, monkeypatch):
    monkeypatch.setattr(ranks, "BLOCK", 4)
    whole = ranks.make(cell, 0, 1)
    shards = [ranks.make(cell, rank, 4) for rank in range(4)]
    assert torch.equal(torch.cat([shard.logits for shard in shards], 1), whole.logits)
    x = whole.logits.double().requires_grad_()
    loss = torch.nn.functional.cross_entropy(x, whole.target)
    loss.backward()
    for rank, shard in enumerate(shards):
        assert shard.loss == pytest.approx(loss.item(), rel=1e-12)
        part = x.grad[:, 16 * rank : 16 * rank + 16]
        leaf = shard.logits.double().requires_grad_()
        leaf.grad = part.clone()
        of_rank = ways.Shard(leaf, shard.target, None)
        monkeypatch.setattr(ways.Shard, "first", 16 * rank)
        assert max(ranks.errors(loss.item(), of_rank, shard, cell).values()) < 1e-6
        leaf.grad[3, 5] += 0.01
        assert ranks.errors(loss.item(), of_rank, shard, cell)["gradient"] > 1e-2 / ranks.EPS[cell.dtype]


@pytest.mark.parametrize("cell", CELLS, ids=lambda c: c.name)
def test_who_is_wrong_is_refused(cell, mesh, monkeypatch):
    def late(shard):
        """Leaves the gradient of a call before."""
        step, calls = ways.all_reduces(shard), []

        def twice():
            loss = step()
            calls.append(shard.logits.grad.clone())
            shard.logits.grad = calls[0] * 1.5
            return loss

        return twice

    def less(shard):
        step = ways.all_reduces(shard)
        return lambda: step() * 0.8

    monkeypatch.setitem(ways.WAYS, "late", late)
    monkeypatch.setitem(ways.WAYS, "less", less)
    found = ranks.of_cell(ranks.make(cell, 0, 1), cell, [*ways.WAYS], mesh, 2)
    said = {row["provider"]: row["reason"] for row in found if row["status"] == "refused"}
    assert said == {"late": "wrong gradient", "less": "wrong loss"}
    assert all(len(row["samples"]) == 2 for row in found if row["status"] == "ok")


def test_a_run_on_two_processes(tmp_path, capfd):
    output = tmp_path / "parallel.json"
    arguments = ["--shape", "12x128", "--rounds", "2", "--dtype", "float32", "--output", str(output)]
    assert __main__.main(arguments) == 0
    assert "12x128 float32: 2 ranks, 2 rounds\n" in capfd.readouterr().out
    found = results.read(output, SCHEMA)
    rows = {row["provider"]: row for row in found["rows"]}
    assert list(rows) == list(ways.WAYS) and found["ranks"] == 2
    counted = {"loss_parallel": 3, "all-reduces": 3, "gather logits": 1, "softkern": 1, "softkern:rows": 2}
    assert {name: row["collectives"] for name, row in rows.items()} == counted
    for row in rows.values():
        assert row["status"] == "ok" and len(row["samples"]) == 2 and row["ratio"] > 0
        assert row["logits_bytes"] == 12 * 64 * 4 and max(row["error"].values()) < 100
    assert __main__.main(["report", str(output)]) == 0
    assert capfd.readouterr().out == table.block(found, output.name)
    assert __main__.main(arguments) == 2 and "exists" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--shape", "12x127"], "2 ranks can't have equal parts of 127 classes"),
        (["--shape", "12"], "expected rows x classes"),
        (["--provider", "megatron"], "unknown provider 'megatron'"),
        (["--dtype", "float64"], "unknown dtype 'float64'"),
        (["--rounds", "0"], "expected a positive number"),
        (["report", "nowhere.json"], "nowhere.json"),
    ],
)
def test_wrong_arguments(arguments, complaint, capsys):
    assert __main__.main(arguments) == 2
    assert complaint in capsys.readouterr().err


def test_another_file_is_refused(tmp_path, capsys):
    (tmp_path / "cpu.json").write_text(json.dumps({"schema": results.SCHEMA}))
    assert __main__.main(["report", str(tmp_path / "cpu.json")]) == 2
    assert f"this version reads schema {SCHEMA}" in capsys.readouterr().err


def test_the_table_has_every_row():
    of_cell = {"rows": 512, "classes": 32000, "dtype": "float32", "logits_bytes": 32 << 20, "collectives": 3}
    ours = {**of_cell, "provider": "softkern", "status": "ok", "median": 0.02, "ratio": 2.5, "collectives": 1}
    ours |= {"error": {"loss": 0.5, "gradient": 1.0}, "peak_bytes": 40 << 20}
    wrong = {**of_cell, "provider": "all-reduces", "status": "refused", "reason": "wrong loss"}
    wrong |= {"error": {"loss": None, "gradient": 1.0}}
    environment = dict.fromkeys(("cpu", "torch", "softkern", "active on cpu", "commit"), "x") | {
        "dirty": "no"
    }
    found = {"environment": environment, "ranks": 2, "started": "2026-01-02T03:04:05Z", "command": "c"}
    text = table.block({**found, "warnings": ["busy"], "rows": [ours, wrong]}, "p.json")
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert lines == [
        "| float32 512x32000 | softkern | 20.0 ms | **2.50** | 40.0 | 1.25 | 1 | 0.50 | 1.00 |",
        "|  | all-reduces | refused |  |  |  | 3 |  | 1.00 |",
    ]
    assert "- all-reduces, float32 512x32000: wrong loss\n" in text and "Warning: busy." in text
