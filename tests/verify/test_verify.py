# SPDX-License-Identifier: Apache-2.0
"""softkern.verify finds errors: each fault below is inserted, and has to be found and named."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from verify_faults import FAULTS, other_bits_on_one_isa

import softkern
from softkern import verify
from softkern.verify import __main__ as cli
from softkern.verify import edges as edges_module
from softkern.verify import linear_cases, row_cases, runner

SOFTMAX, CROSS_ENTROPY = softkern.softmax, softkern.cross_entropy
EDGES = {"targets out of range": "out_of_range", "own options refused": "refused_options"}
EDGES |= {"empty and 0-d": "_empty", "a row alone": "_rows", "threads": "_threads"}
ISAS = [name for name, _, reason in softkern._C.isas() if not reason]


@pytest.fixture
def only(monkeypatch) -> Callable[..., None]:
    """Leaves these groups of the matrix, where all of it would take too long for every fault."""

    def leave(*groups: str) -> None:
        whole = runner.matrix
        monkeypatch.setattr(runner, "matrix", lambda quick: (c for c in whole(quick) if c.group in groups))
        for group, function in EDGES.items():
            if group not in groups:
                monkeypatch.setattr(edges_module, function, lambda *args: iter(()))

    return leave


@pytest.fixture
def verdict(capsys, tmp_path) -> Callable[..., tuple[int, str, dict]]:
    """Exit code, text and JSON of a quick run."""

    def run(*arguments: str) -> tuple[int, str, dict]:
        file = tmp_path / "report.json"
        code = cli.main(["--quick", "--json", str(file), *arguments])
        return code, capsys.readouterr().out, json.loads(file.read_text())

    return run


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_named(fault, only, verdict, monkeypatch):
    name, wrong, group, quantity, words = FAULTS[fault]
    only(group)
    monkeypatch.setattr(softkern, name, wrong)
    code, out, written = verdict("--backend", ISAS[0])
    assert code == 1 and "FAILED" in out.splitlines()[-1]
    assert f"FAILED {group}, {quantity}, backend {ISAS[0]}" in out
    assert written["ok"] is False and {f["group"] for f in written["failures"]} == {group}
    named = [f for f in written["failures"] if f["quantity"] == quantity]
    assert any(words in f["subject"] + f["why"] for f in named), named[:3]
    row = next(r for r in written["rows"] if (r["group"], r["quantity"]) == (group, quantity) and r["failed"])
    assert row["failed"] <= row["checks"]


@pytest.mark.parametrize("group", sorted({fault[2] for fault in FAULTS.values()}))
def test_each_group_passes_without_a_fault(group, only, verdict):
    only(group)
    code, out, written = verdict("--backend", ISAS[0])
    assert (code, written["failures"]) == (0, []), out
    assert {r["group"] for r in written["rows"]} == {group}


@pytest.mark.skipif(len(ISAS) < 2, reason="one instruction set only: no bits to compare")
def test_bits_of_one_instruction_set_that_differ_are_found(only, verdict, monkeypatch):
    """One ulp, and so within every bound: only the comparison of the bits sees it."""
    only("class counts")
    monkeypatch.setattr(softkern, "softmax", other_bits_on_one_isa)
    code, out, written = verdict("--backend", ISAS[0], "portable")
    assert code == 1
    # A gradient starts from the output that it is given, and passes.
    assert {(f["group"], f["backend"]) for f in written["failures"]} == {
        (f"same bits as {ISAS[0]}", "portable")
    }
    assert "expected" in out and "softmax: bits other than those of" in out


def test_a_failure_names_a_case_that_can_be_made_again(only, monkeypatch):
    only("values")
    monkeypatch.setattr(softkern, "log_softmax", lambda x, dim: F.log_softmax(x, dim))
    report = verify.run(backends=ISAS[:1], quick=True)
    failure = next(f for f in report.failures if "ulp apart" in f.why)
    case = eval(failure.subject, {"Case": verify.Case})
    problem = verify.build(case)
    assert torch.equal(problem.x, verify.build(case).x) and problem.x.dtype == getattr(torch, case.dtype)
    where = eval(failure.why.split("at ")[1].split(": expected")[0])
    got = float(failure.why.split("got ")[1].split(",")[0])
    assert F.log_softmax(problem.x, case.dim)[where].item() == got


def test_each_option_and_statistic_has_cases():
    fields = {
        "row_weight",
        "num_items",
        "padding",
        "indices",
        "logit_scale",
        "softcap",
        "temperature",
        "z_loss",
    }
    cases = list(row_cases.row_matrix(quick=True))
    losses = [c for c in cases if c.op == "cross_entropy"]
    for name in fields:
        assert [c for c in losses if getattr(c, name) != getattr(verify.Case("", "", "", ()), name)], name
    assert {name for c in cases for name in c.stats} == set(softkern.RowStats._fields)
    assert {c.op for c in cases} == {"cross_entropy", "selective_log_softmax", "entropy_from_logits"}


def test_a_head_has_both_plans_and_each_kind_of_target():
    cases = list(linear_cases.linear_matrix(quick=True))
    assert {c.plan for c in cases} == {"fast", "lean"} and all(c.chunk < c.shape[0] / 8 for c in cases)
    for name in (
        "bias",
        "weight",
        "ignore",
        "smoothing",
        "probs",
        "indices",
        "padding",
        "stats",
        "row_weight",
    ):
        assert {c.plan for c in cases if getattr(c, name) not in (0, "", (), None)} == {"fast", "lean"}, name
    assert {c.reduction for c in cases} == {"none", "mean", "sum"}


def test_another_backend_than_the_named_one_is_found(only, monkeypatch):
    only("class counts")
    monkeypatch.setattr(runner._C, "last_isa", lambda: "mmx")
    report = verify.run(backends=ISAS[:1], quick=True)
    assert len(report.failures) == report.checks > 0
    assert f"'mmx' computed in the place of '{ISAS[0]}'" in report.failures[0].why


def test_torch_that_raises_is_no_crash(only, monkeypatch):
    only("class counts")

    def raises(*args, **kwargs):
        raise RuntimeError("out of order")

    monkeypatch.setattr(F, "softmax", raises)
    report = verify.run(backends=ISAS[:1], quick=True)
    assert {(f.backend, f.quantity) for f in report.failures} == {("torch", "softmax")}
