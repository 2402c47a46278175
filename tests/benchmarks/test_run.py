# SPDX-License-Identifier: Apache-2.0
"""Runs of the benchmarks: refused providers, lost rows, kept results, and the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from places import ROOT, SUPPORT

from benchmarks import cli, machine, providers, results
from benchmarks.cells import Cell
from benchmarks.engine import launch
from benchmarks.ops import GROUPS, all_cells, end_to_end, quick

PLUGIN = SUPPORT / "benchmark_plugin.py"
ONE_CELL = (
    *("--op", "softmax", "--pass", "no-grad", "--shape", "64x10"),
    *("--threads", "1", "--regime", "default"),
)


@pytest.fixture
def measure(tmp_path):
    """Runs the command line in this process; returns the exit status and the results."""

    def run(*arguments: str, cells: tuple[str, ...] = ONE_CELL) -> tuple[int, results.Results]:
        output = tmp_path / "results.json"
        output.unlink(missing_ok=True)
        status = cli.main(["--quick", "--plugin", str(PLUGIN), *cells, *arguments, "--output", str(output)])
        return status, results.read(output)

    return run


def by_provider(found: results.Results) -> dict[str, results.Row]:
    return {row["provider"]: row for row in found["rows"]}


def test_a_wrong_provider_is_refused(measure):
    status, found = measure("--provider", "numpy,wrong")
    rows = by_provider(found)
    assert rows["numpy"]["status"] == "ok" and rows["numpy"]["ratio"] == 1
    assert rows["wrong"]["status"] == "refused" and "samples" not in rows["wrong"]
    assert "wrong output: off by 0.001" in rows["wrong"]["reason"]
    assert status == 1


MASKED_CELL = (
    *("--op", "log_softmax", "--inputs", "half-inf", "--shape", "4x10x10", "--threads", "1"),
    *("--regime", "default"),
)


def test_a_provider_that_is_wrong_where_classes_are_masked_is_refused(measure):
    """And whoever is right says how long it takes beside plain logits."""
    status, found = measure("--provider", "torch,softkern,lowest", cells=MASKED_CELL)
    cells = ["log_softmax/no-grad/float32/4x10x10", "log_softmax/no-grad/float32/4x10x10/half-inf"]
    assert list(dict.fromkeys(row["cell"] for row in found["rows"])) == cells
    plain, masked = (
        by_provider({"rows": [row for row in found["rows"] if row["cell"] == cell]}) for cell in cells
    )
    assert [row["status"] for row in plain.values()] == ["ok", "ok", "ok"]
    assert [row["status"] for row in masked.values()] == ["ok", "ok", "refused"]
    assert "wrong output" in masked["lowest"]["reason"] and "times_plain" not in masked["lowest"]
    assert status == 1
    for name in ("torch", "softkern"):
        times = masked[name]["median"] / plain[name]["median"]
        assert masked[name]["times_plain"] == pytest.approx(times, rel=1e-3, abs=1e-4)
        assert (masked[name]["inputs"], masked[name]["edge"]) == ("half-inf", True)
        assert (plain[name]["inputs"], plain[name]["edge"]) == ("", False)
        assert "times_plain" not in plain[name]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("raising", "RuntimeError: out of luck"),
        ("killed", "killed by SIGKILL"),
        ("exiting", "exit status 3: cannot go on"),
        ("hanging", "no answer within 2 s"),
    ],
)
def test_a_provider_that_fails_loses_its_own_row(measure, name, reason):
    """Also in the next cell: its worker has been started again."""
    cells = (*ONE_CELL[:3], "no-grad,forward+backward", *ONE_CELL[4:])
    status, found = measure("--provider", f"numpy,{name}", "--timeout", "2", cells=cells)
    assert status == 1
    for pass_name in ("no-grad", "forward+backward"):
        rows = by_provider({"rows": [r for r in found["rows"] if r["pass_name"] == pass_name]})
        assert rows["numpy"]["status"] == "ok" and len(rows["numpy"]["samples"]) == 3
        assert (rows[name]["status"], rows[name]["reason"]) == ("failed", reason)


def test_an_absent_provider_is_one_line(measure):
    status, found = measure("--provider", "numpy,missing,liger")
    assert status == 0
    absent = {entry["provider"]: entry["reason"] for entry in found["absent"]}
    assert absent == {"missing": "libmissing.so is not there", "liger": "does not run on cpu"}


def test_a_provider_can_be_listed_twice(measure):
    _, found = measure("--provider", "numpy,numpy")
    rows = by_provider(found)
    assert set(rows) == {"numpy", "numpy#2"}
    assert rows["numpy#2"]["baseline"] == "numpy"
    assert [len(row["samples"]) for row in rows.values()] == [3, 3]


def test_figures_of_a_row_follow_from_its_samples(measure):
    cells = (*ONE_CELL[:5], "512x1000", *ONE_CELL[6:])
    _, found = measure("--provider", "numpy,slow", cells=cells)
    slow = by_provider(found)["slow"]
    assert slow["median"] > 0.05 and slow["ratio"] < 0.5
    assert slow["median"] == pytest.approx(results.summary(slow["samples"])["median"], rel=1e-3)
    assert slow["bytes"] == 2 * 512 * 1000 * 4
    assert slow["gbps"] == pytest.approx(slow["bytes"] / slow["median"] / 1e9, rel=1e-2)
    assert slow["copy_percent"] == pytest.approx(100 * slow["gbps"] / slow["copy_gbps"], rel=0.05, abs=0.1)
    assert slow["peak_bytes"] > 512 * 1000 * 4  # NumPy's formula has temporaries
    assert 0 < slow["error"]["output"] < 100
    assert {row["what"] for row in found["bandwidth"]} >= {"copy", "read", "first touch"}


def test_environment_says_where_the_figures_come_from(measure):
    _, found = measure("--provider", "numpy")
    wanted = {
        "softkern",
        "torch",
        "cpu",
        "cpus",
        "caches",
        "huge pages",
        "load",
        "steal percent",
        "commit",
        "dirty",
    }
    assert wanted <= set(found["environment"])
    assert found["command"].startswith("python -m benchmarks --quick")
    assert found["interrupted"] is False


@pytest.fixture
def long_run(tmp_path, request):
    """A run in a process of its own that has measured something and is far from its end. Its parameter: what
    SIGINT does in the shell that starts it; in the background of one, it is ignored."""
    output = tmp_path / "cut.json"
    interrupt = getattr(request, "param", signal.default_int_handler)
    command = [sys.executable, "-m", "benchmarks", "--quick", "--plugin", str(PLUGIN), "--provider", "slow"]
    command += ["--op", "softmax", "--threads", "1", "--regime", "default", "--rounds", "3", "300"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    process = subprocess.Popen(
        [*command, "--output", str(output)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, interrupt),
    )
    deadline = time.monotonic() + 60
    while not (output.exists() and results.read(output)["rows"]) and time.monotonic() < deadline:
        time.sleep(0.1)
    yield process, output
    process.kill()
    process.communicate()


@pytest.mark.parametrize(
    ("long_run", "number"),
    [
        (signal.default_int_handler, signal.SIGINT),
        (signal.default_int_handler, signal.SIGTERM),
        (signal.SIG_IGN, signal.SIGTERM),
    ],
    indirect=["long_run"],
    ids=["SIGINT", "SIGTERM", "SIGTERM in the background"],
)
def test_ctrl_c_keeps_what_was_measured(long_run, number):
    process, output = long_run
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    found = results.read(output)
    assert process.returncode == 130
    assert found["interrupted"] is True
    assert found["rows"] and all(row["status"] == "ok" for row in found["rows"])
    assert "interrupted" in printed.lower()


def test_workers_end_with_a_conductor_that_is_killed(long_run):
    """Those that are stopped because it is not their turn too."""
    process, output = long_run
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(workers) == 2  # the provider and the copy
    process.kill()
    process.wait()

    def running(pid: str) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
        except OSError:
            return False

    deadline = time.monotonic() + 10
    while any(map(running, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(running, workers))
    assert results.read(output)["rows"]


def test_results_are_not_written_over(tmp_path, capsys):
    output = tmp_path / "kept.json"
    output.write_text("precious")
    assert cli.main(["--quick", *ONE_CELL, "--provider", "numpy", "--output", str(output)]) == 2
    assert output.read_text() == "precious"
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "choices"),
    [
        ("op", "softmax, log_softmax, cross_entropy"),
        ("pass", "no-grad, forward, backward, forward+backward"),
        ("dtype", "float32, bfloat16"),
        ("shape", "64x10, 512x1000"),
        ("option", "plain, sum, mean, row-weights, label_smoothing"),
        ("inputs", "plain, causal, half-inf"),
        ("group", "full, edges"),
        ("provider", "torch, softkern, softkern:inplace, softkern:avx512"),
        ("regime", "default, hugepages, preallocated"),
        ("threads", "all, 1"),
    ],
)
def test_an_unknown_name_lists_the_choices(option, choices, capsys, tmp_path):
    output = tmp_path / "none.json"
    assert cli.main(["--quick", f"--{option}", "softmaxx", "--output", str(output)]) == 2
    message = capsys.readouterr().err
    assert "'softmaxx'" in message and choices in message
    assert not output.exists()


def test_a_choice_without_cells_is_an_error(capsys):
    assert cli.main(["--quick", "--op", "softmax", "--option", "label_smoothing"]) == 2
    assert "no cell" in capsys.readouterr().err


def test_cuda_is_refused_without_a_device(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cli.main(["--device", "cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_a_plugin_has_to_list_providers(tmp_path, capsys):
    empty = tmp_path / "empty.py"
    empty.write_text("")
    for path, text in ((empty, "expected a list PROVIDERS"), (tmp_path / "none.py", "no such Python file")):
        assert cli.main(["--quick", "--plugin", str(path)]) == 2
        assert text in capsys.readouterr().err


def test_list_names_everything(capsys):
    assert cli.main(["list"]) == 0
    printed = capsys.readouterr().out
    for name in ("cross_entropy", "forward+backward", "2048x32000", "weight+ignore_index", "torch-compile"):
        assert name in printed
    for name in ("create-graph", "8x1024x1024", "row-weights", "sparse-inf", "edges"):
        assert name in printed


def test_everybody_in_a_column_does_the_same_work():
    """Who makes the gradient in the forward is not timed against who doesn't."""
    cell = Cell("cross_entropy", "forward", "float32", (64, 10), 1, main=True)
    for name in ("softkern", "tensorflow"):
        assert providers.PROVIDERS[name].left_out(cell, None), name
    assert providers.PROVIDERS["torch"].left_out(cell, None) is None


def test_quick_has_every_kind_of_cell():
    for field in ("op", "pass_name", "option", "inputs", "edge"):
        listed = (c for group in GROUPS for c in all_cells("cpu", group))
        whole = {getattr(c, field) for c in listed if not c.op.startswith("fashion")}
        assert {getattr(c, field) for c in quick.cells("cpu")} == whole, field


@pytest.mark.parametrize("cell", end_to_end.cells("cpu")[:3], ids=lambda c: c.op)
def test_an_epoch_learns_and_its_loss_is_checked(cell):
    import torch.nn.functional as F

    try:
        step, error = end_to_end.prepare(F, cell)
    except end_to_end.Absent as reason:
        pytest.skip(str(reason))
    first = step(0)
    assert error(first) < 1e-5
    assert error(first * 1.01) > 1e-3
    assert step(0) < first


def test_a_device_is_copied_on_by_torch():
    """What a GPU's rows are set beside; here on the device there is."""
    from benchmarks.engine import bandwidth, devices

    copy = bandwidth.DeviceCopy(1 << 10, 2, "cpu")
    copy.step(1)
    assert [int(target.sum()) for target, _ in copy.pairs] == [0, 512]
    seconds, faults = devices.Cpu().sample(copy.step, 0, 2)
    assert seconds > 0 <= faults


def test_workers_have_no_random_addresses():
    """As far as this system lets them: the personality of the worker says so."""
    from benchmarks.engine.process import Options, Worker

    worker = Worker("numpy", "numpy", providers.PROVIDERS["numpy"], "default", 1, Options())
    worker.start()
    try:
        assert worker.wait_started()["version"]
        flags = int(Path(f"/proc/{worker.process.pid}/personality").read_text(), 16)
        assert flags & launch.ADDR_NO_RANDOMIZE
    finally:
        worker.stop()


def test_caches_are_read_from_the_system(tmp_path, monkeypatch):
    for k, (level, kind, size) in enumerate(
        [(1, "Data", "48K"), (1, "Instruction", "32K"), (3, "Unified", "32M")]
    ):
        folder = tmp_path / f"index{k}"
        folder.mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(f"{text}\n")
    monkeypatch.setattr(machine, "CACHES", tmp_path)
    assert machine.caches() == {1: 48 << 10, 3: 32 << 20}
    assert machine.last_level_cache() == 32 << 20
    monkeypatch.setattr(machine, "CACHES", tmp_path / "none")
    assert machine.last_level_cache() == machine.ASSUMED_CACHE


def test_an_unfit_machine_is_warned_of():
    fit = {"load": "0.10", "cpus": "2", "governor": "performance", "dirty": "no"}
    quiet = machine.unfit_before(fit)
    assert machine.unfit_before({**fit, "load": "1.50"}) != quiet
    assert any("powersave" in text for text in machine.unfit_before({**fit, "governor": "powersave"}))
    watch = machine.Watch()
    watch.start = [0, 0, 0, 0, 0, 0, 0, watch.start[7] - 10**9]
    assert "stolen" in machine.unfit_after(watch)[0]


def test_results_json_is_plain(measure):
    """NaN and inf are no JSON."""
    _, found = measure("--provider", "numpy")
    json.dumps(found, allow_nan=False)


def test_a_result_that_is_no_number_is_refused_and_written_as_null(measure):
    _, found = measure("--provider", "numpy,not-a-number")
    row = by_provider(found)["not-a-number"]
    assert row["status"] == "refused" and row["error"] == {"output": None}
    json.dumps(found, allow_nan=False)


def test_a_cell_that_nobody_is_asked_is_passed_over(measure):
    cells = ("--op", "softmax", "--pass", "no-grad,forward", "--shape", "64x10", "--threads", "1")
    status, found = measure("--provider", "numpy,wrong", "--regime", "default", cells=cells)
    assert [(r["provider"], r["pass_name"]) for r in found["rows"]] == [
        ("numpy", "no-grad"),
        ("wrong", "no-grad"),
    ]
    status, found = measure("--provider", "wrong", cells=ONE_CELL)
    assert [row["status"] for row in found["rows"]] == ["refused"]
    assert status == 1 and {entry["reason"] for entry in found["left_out"]} == set()


def test_operands_are_placed_anew(measure, monkeypatch):
    """With enough rounds, a small cell is prepared more than once; what it computes is checked each time."""
    from benchmarks.engine import turn

    asked = []
    place_anew = turn.Turn._place_anew
    monkeypatch.setattr(turn.Turn, "_place_anew", lambda self, k: (asked.append(k), place_anew(self, k)))
    _, found = measure("--provider", "numpy,numpy", "--rounds", "1", "21")
    assert len(asked) == 2
    assert [len(row["samples"]) for row in found["rows"]] == [21, 21]


def test_a_run_that_is_short_of_time_says_so_and_measures_everything(measure, capsys):
    status, found = measure("--provider", "numpy,numpy", "--rounds", "1", "21", "--minutes", "1e-6")
    text = "1e-06 minutes are too few"
    assert status == 0 and [text in warning for warning in found["warnings"]].count(True) == 1
    assert " ".join(capsys.readouterr().out.split()).count(text) == 2  # when it shows, and above the tables
    assert [len(row["samples"]) for row in found["rows"]] == [7, 7]
    _, found = measure("--provider", "numpy")
    assert not any("minutes" in warning for warning in found["warnings"])
