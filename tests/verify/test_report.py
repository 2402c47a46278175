# SPDX-License-Identifier: Apache-2.0
"""softkern.verify as a program: its arguments, its output and files, its exit code."""

from __future__ import annotations

import ast
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import ROOT
from setuptools import find_packages

import softkern
from softkern import info, reference, verify
from softkern.verify import __main__ as cli
from softkern.verify import bounds, cases, oracle, render, runner
from softkern.verify.case import ROW_OPS
from softkern.verify.linear import QUANTITIES
from softkern.verify.report import Report
from softkern.verify.rows import EXACT, STATISTICS

PACKAGE = Path(verify.__file__).parent
USABLE = [name for name, _, reason in softkern._C.isas() if not reason]
NAMES = [b.name for b in softkern.backends()]


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> tuple[subprocess.CompletedProcess[str], dict]:
    """One real run, in a process of its own and outside the repository."""
    folder = tmp_path_factory.mktemp("verify")
    command = [sys.executable, "-m", "softkern.verify", "--quick", "--json", "report.json"]
    env = {"PYTHONPATH": str(PACKAGE.parent.parent), "OMP_NUM_THREADS": "2", "PATH": "/usr/bin:/bin"}
    env["PYTHONUTF8"] = "1"  # lines of tables, in any locale
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=folder, env=env)
    return done, json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_everything_holds_on_this_machine(quick):
    done, written = quick
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert done.stderr == "" and "FAILED" not in done.stdout
    assert written["ok"] is True and written["failures"] == []
    assert re.fullmatch(
        rf"{written['checks']} checks on .*: all hold \(\d+ s\)", done.stdout.splitlines()[-1]
    )


def test_every_backend_op_dtype_and_group_is_in_the_report(quick):
    done, written = quick
    rows = written["rows"]
    groups = {case.group for case in cases.matrix(quick=False)}
    groups |= {"targets out of range", "own options refused", "empty and 0-d", "a row alone", "threads"}
    groups |= {f"same bits as {USABLE[0]}"} if len(USABLE) > 1 else set()
    assert {r["group"] for r in rows} == groups
    quantities = {name for op in (*cases.OPS, *ROW_OPS) for name in (op, f"{op} gradient")}
    quantities |= {*STATISTICS, *QUANTITIES}
    expected = {(b, q, d) for b in USABLE for q in quantities for d in cases.NAMES}
    assert {(r["backend"], r["quantity"], r["dtype"]) for r in rows} == expected
    assert all(r["checks"] > 0 and r["failed"] == 0 for r in rows)
    for word in (*USABLE, *groups, *quantities - {*EXACT}, *cases.NAMES):
        assert word in done.stdout
    for backend in softkern.backends():
        if backend.device == "cpu" and not backend.usable:
            assert f"not checked: backend {backend.name}: {backend.reason}" in done.stdout


def test_the_report_says_where_it_was_made(quick):
    _, written = quick
    assert (written["schema"], written["device"], written["quick"]) == (1, "cpu", True)
    assert written["environment"].keys() >= {"softkern", "torch", "cpu"}
    assert written["environment"]["softkern"] == softkern.__version__
    assert set(written) == {*Report({}, "cpu", True, []).as_dict()}


def test_worst_errors_are_measured(quick):
    """Not 0, as of a result compared with itself, and where a bound is stated within it."""
    _, written = quick
    stated = [r for r in written["rows"] if r["stated"]]
    assert {r["quantity"] for r in stated} == set(bounds.STATED)
    for r in stated:
        assert 0 <= r["error"] <= r["stated"], r
    for quantity in bounds.STATED:
        worst = max(r["error"] for r in stated if (r["quantity"], r["dtype"]) == (quantity, "float32"))
        assert worst > 0.5, "float32 results that are all rounded correctly?"
    torchs = max(r["torch_error"] or 0 for r in stated if r["quantity"] == "cross_entropy")
    assert torchs > 1000, "torch has caught up on confident rows"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backend", "mmx"], ["mmx", *NAMES]),
        (["--backend", USABLE[0], "mmx"], ["mmx", *NAMES]),
        (["--device", "tpu"], ["tpu", "cpu", "cuda"]),
        (["--json", "no/such/folder/report.json"], ["--json", "no/such/folder", "No such file"]),
        (["--slow"], ["--slow"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else None,
)
def test_bad_arguments_end_with_2_and_say_why(arguments, words, capsys, monkeypatch):
    monkeypatch.setattr(cli, "run", lambda *args, **kwargs: pytest.fail("ran"))
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    for word in words:
        assert word in last


def test_a_named_backend_that_cannot_run_says_why(capsys, monkeypatch):
    dead = softkern.Backend("avx512", "cpu", True, False, "this CPU lacks AVX-512", False)
    monkeypatch.setattr(softkern, "backends", lambda: [dead])
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--backend", "avx512"])
    assert stopped.value.code == 2
    assert "backend 'avx512' can't run here: this CPU lacks AVX-512" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match=r"no backend can compute on 'cpu' here .avx512: this CPU lacks"):
        verify.run()


def test_cuda_that_is_not_there_says_why(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for version, words in ((None, "a build without CUDA"), ("13.0", "CUDA 13.0, it sees no device")):
        monkeypatch.setattr(torch.version, "cuda", version)
        with pytest.raises(SystemExit) as stopped:
            cli.main(["--device", "cuda"])
        assert stopped.value.code == 2
        assert words in capsys.readouterr().err


def test_xpu_that_is_not_there_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--device", "xpu"])
    assert stopped.value.code == 2
    assert "device 'xpu' can't be used here: torch sees none" in capsys.readouterr().err


def test_backends_of_another_device_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="'portable' computes on 'cpu', not on 'cuda'"):
        runner.choose("cuda", ["portable"])
    cpu_only = [b for b in softkern.backends() if b.device == "cpu"]
    monkeypatch.setattr(softkern, "backends", lambda: cpu_only)
    with pytest.raises(RuntimeError, match=r"no backend can compute on 'cuda' here .this build has none"):
        runner.choose("cuda", None)


def test_names_are_taken_once_and_in_their_order():
    assert runner.choose("cpu", ["portable", "portable"]) == ["portable"]
    assert runner.choose("cpu", None) == USABLE


def failing() -> Report:
    report = Report(info.environment(), "cpu", True, ["portable"])
    report.add("portable", "values", "softmax", "float32", "Case(1)", share=0.25, error=1.5, stated=6.0)
    for i in range(render.SHOWN + 2):
        report.add("portable", "values", "softmax", "float32", f"Case({i})", "too far", share=math.inf)
    return report


@pytest.mark.parametrize("rich", [True, False])
def test_the_text_names_failures_and_does_not_flood(rich):
    if rich:
        pytest.importorskip("rich", reason="tables are drawn by hand without rich")
    out = render.text(failing(), rich=rich)
    assert "wrong" in out and "22 FAILED" in out and "and 2 more FAILED" in out
    assert "FAILED values, softmax, backend portable\n  Case(0)\n  too far" in out
    assert out.count("\n  too far") == render.SHOWN
    assert out.splitlines()[-1] == "23 checks on portable: 22 FAILED (0 s)"


def test_tables_say_the_same_with_and_without_rich():
    pytest.importorskip("rich", reason="tables are drawn by hand without rich")
    drawn = [re.sub(r"[─-]{2,}", "", render.text(failing(), rich=rich)).split() for rich in (True, False)]
    assert drawn[0] == drawn[1]


def test_plain_tables_are_aligned():
    lines = render._plain(render.errors(failing())).splitlines()
    ends = {line.index("softmax") for line in lines if "softmax" in line and "log" not in line}
    assert len(ends) == 1 and {*lines[1]} == {"-"}


def test_no_checks_are_no_success():
    empty = Report(info.environment(), "cpu", True, ["portable"])
    assert not empty.ok
    assert render.summary(empty) == "0 checks on portable: nothing was checked (0 s)"


def test_json_has_no_number_that_json_lacks():
    json.dumps(failing().as_dict(), allow_nan=False)


def test_threads_are_put_back(monkeypatch):
    monkeypatch.setattr(runner, "matrix", lambda quick: iter(()))
    torch.set_num_threads(2)
    verify.run(backends=USABLE[:1], quick=True)
    assert torch.get_num_threads() == 2


def test_importing_softkern_leaves_verify_alone():
    code = "import sys, softkern; sys.exit('softkern.verify' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_verify_needs_torch_and_softkern_only():
    """And rich where it is there: users have a wheel, without the tests' and benchmarks' packages."""
    found = set()
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {name.partition(".")[0] for name in names}
    assert found - sys.stdlib_module_names == {"softkern", "torch", "rich"}


@pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="no pyproject.toml beside these tests")
def test_every_package_is_in_the_wheel():
    folders = [p.parent for p in (ROOT / "softkern").rglob("__init__.py")]
    pattern = re.search(
        r'^include = \["(.+)"\]', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert pattern is not None
    assert set(find_packages(ROOT, include=[pattern[1]])) == {
        ".".join(f.relative_to(ROOT).parts) for f in folders
    }


def test_the_oracles_agree_where_float64_loses_nothing():
    x = cases.inputs.logits(7, 12, dtype=torch.float64)
    target = torch.arange(7)
    exact = oracle.answers(x, target)
    plain = reference.cross_entropy(x, target, reduction="none")
    torch.testing.assert_close(exact["cross_entropy"], plain, rtol=1e-13, atol=0)
    torch.testing.assert_close(exact["softmax"], reference.softmax(x, 1), rtol=1e-13, atol=0)


@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="no docs beside these tests")
def test_the_page_states_groups_and_bounds_as_they_are():
    page = (ROOT / "docs" / "verify.md").read_text(encoding="utf-8")
    for group in {case.group for case in cases.matrix(quick=False)}:
        assert f"\n| {group} |" in page
    for name, dtype in cases.NAMES.items():
        t = bounds.TABLE[dtype]
        computed = str(t.compute).removeprefix("torch.")
        assert f"\n| {name} | {computed} | {t.roundings} | {t.arithmetic} | {t.k} |" in page
    counts = (*cases.FEW, *cases.MANY)
    assert re.findall(r"\d+", page.split("| class counts | ")[1].split("\n")[0]) == [str(c) for c in counts]
    for option in ("--device", "--backend", "--quick", "--json"):
        assert f"\n| `{option}" in page
