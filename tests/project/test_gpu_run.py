# SPDX-License-Identifier: Apache-2.0
"""tools/gpu_run.py, which runs on a rented GPU: that no step takes another's time or results with it. Shell
scripts take the place of the programs that need a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from places import ROOT
from programs import script

pytestmark = pytest.mark.skipif(not (ROOT / "tools").is_dir(), reason="no tools beside these tests")


@pytest.fixture
def gpu_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    tool = import_module("gpu_run")
    monkeypatch.setattr("gpu.run.WORK", tmp_path / "work")
    monkeypatch.setattr(tool, "STEPS", dict(tool.STEPS))
    yield tool


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_step_has_what_those_before_it_left(gpu_run: ModuleType) -> None:
    clock = Clock()
    budget = gpu_run.Budget(100, clock)
    assert budget.begin(30) == 30
    clock.now += 10
    assert budget.of_step() == 20
    budget.end()
    assert budget.begin(40) == 60
    clock.now += 75  # a program took longer to end than it was given
    assert budget.of_step() == 0
    budget.end()
    assert (budget.left(), budget.spent()) == (15, 85)
    assert budget.begin(40) == 15  # and none goes beyond the end of the run
    clock.now += 20
    budget.end()
    assert budget.begin(40) == 0


def steps(gpu_run: ModuleType, out: Path, *arguments: str, **named: tuple[float, Any]) -> dict[str, Any]:
    """The summary of a run of these steps."""
    gpu_run.STEPS.clear()
    gpu_run.STEPS.update(named)
    status = gpu_run.main(["--dry-run", "--out", str(out), *arguments])
    summary = json.loads((out / "summary.json").read_text())
    assert summary["finished"]
    assert status == any(step["status"] in ("failed", "timed out") for step in summary["steps"])
    return {step["step"]: step for step in summary["steps"]}


def found(run: Any, *command: str) -> Any:
    return sys.modules["gpu.run"].found([run.run("it", command)])


def test_a_step_that_takes_too_long_is_ended_and_the_next_one_runs(
    gpu_run: ModuleType, tmp_path: Path
) -> None:
    out, alive = tmp_path / "out", tmp_path / "alive"
    late = f"(sleep 1.2; touch {alive}) & echo begun; sleep 30"
    seen = {}

    def second(run: Any) -> Any:
        seen.update(json.loads((out / "summary.json").read_text()))
        return found(run, "true")

    by_name = steps(gpu_run, out, first=(0.5, lambda run: found(run, "sh", "-c", late)), second=(5, second))
    assert by_name["first"]["status"] == "timed out" and "not done after" in by_name["first"]["reason"]
    assert by_name["second"]["status"] == "ok"
    # What is known is written before the next step begins.
    assert [step["step"] for step in seen["steps"]] == ["first"] and not seen["finished"]
    first = json.loads((out / "first.json").read_text())
    assert first["commands"][0]["tail"] == "begun\n" and first["about"]["commit"]
    time.sleep(1)
    assert not alive.exists(), "a child of the program went on"


def test_a_step_that_fails_or_cannot_run_says_why(gpu_run: ModuleType, tmp_path: Path) -> None:
    def raises(run: Any) -> Any:
        raise ValueError("no such thing")

    def cannot(run: Any) -> Any:
        raise gpu_run.NotRun("no sanitizer here")

    by_name = steps(
        gpu_run,
        tmp_path,
        raises=(5, raises),
        cannot=(5, cannot),
        fails=(5, lambda run: found(run, "sh", "-c", "exit 7")),
        missing=(5, lambda run: found(run, "/no/such/program")),
        ok=(5, lambda run: found(run, "true")),
    )
    assert by_name["raises"]["status"] == "failed" and "no such thing" in by_name["raises"]["reason"]
    assert (by_name["cannot"]["status"], by_name["cannot"]["reason"]) == ("not run", "no sanitizer here")
    assert (by_name["fails"]["status"], by_name["fails"]["reason"]) == ("failed", "it: exit code 7")
    assert by_name["missing"]["status"] == "failed" and "No such file" in by_name["missing"]["reason"]
    assert by_name["ok"]["status"] == "ok"
    assert "raise ValueError" in json.loads((tmp_path / "raises.json").read_text())["traceback"]


def test_without_time_a_step_does_not_run(gpu_run: ModuleType, tmp_path: Path) -> None:
    slow = (5.0, lambda run: found(run, "sleep", "5"))
    by_name = steps(gpu_run, tmp_path, "--seconds", "0.3", slow=slow, never=slow)
    assert by_name["slow"]["status"] == "timed out"
    assert (by_name["never"]["status"], by_name["never"]["reason"]) == ("not run", "no time left")


def test_steps_are_chosen_by_name(
    gpu_run: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old.json").write_text("{}")
    one = (5.0, lambda run: found(run, "true"))
    assert list(steps(gpu_run, tmp_path, "--steps", "c,a", a=one, b=one, c=one)) == ["a", "c"]
    assert not (tmp_path / "old.json").exists()  # of an earlier run
    with pytest.raises(SystemExit):
        gpu_run.main(["--dry-run", "--steps", "a,d"])
    assert "no steps: d; there are a, b, c" in capsys.readouterr().err


def test_without_a_gpu_nothing_runs(
    gpu_run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_run, "where_is", lambda program: None)
    with pytest.raises(SystemExit, match="no GPU on this machine"):
        gpu_run.main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


CASE = '{"case": "%s", "dtype": "float32", "way": "block, kept", "bits": "%s", "worst": 0.5, "wrong": %d}'
END = '{"dtype": "float32", "cases": 2, "failed": %d, "left": 0}'


def check_run(gpu_run: ModuleType, tmp_path: Path, before: Any = None, wrong: int = 0) -> Any:
    """The step `check` on a device whose programs print two cases."""
    run = gpu_run.Run(gpu_run.Budget(60), gpu_run.Device("A", "9.0", "1"), before)
    lines = "\n".join((CASE % ("a", "11", wrong), CASE % ("b", "22", 0), END % wrong))
    for element in ("float", "double", "bfloat16", "half"):
        script(run.program("check_cuda", element), f"cat <<'X'\n{lines}\nX\nexit {wrong}")
    return gpu_run.taken(run, gpu_run.check_step.check, 60)


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where programs are looked for."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr("gpu.run.PLACES", ())
    return folder


def test_bits_are_compared_with_those_of_before(gpu_run: ModuleType, tmp_path: Path, programs: Path) -> None:
    result = check_run(gpu_run, tmp_path, {"bits": {"float32 a": "11", "float32 b": "33", "float32 c": "44"}})
    assert result["status"] == "ok"
    assert result["changed"] == {"equal": 1, "changed": ["float32 b"], "new": 0}
    assert "cluster, kept" in result["ways not taken"] and "block, kept" not in result["ways not taken"]
    assert {"name": "compute-sanitizer", "reason": "not run: it is not on this machine"} in result["commands"]
    assert result["mps"]["reason"].startswith("not run: no nvidia-cuda-mps-control")


def test_a_wrong_case_fails_the_step(gpu_run: ModuleType, tmp_path: Path, programs: Path) -> None:
    result = check_run(gpu_run, tmp_path, wrong=1)
    assert result["status"] == "failed" and {case["case"] for case in result["wrong"]} == {"a"}


@pytest.mark.parametrize(("code", "status"), [(0, "ok"), (3, "ok"), (9, "failed")])
def test_sanitizers_run_the_program(
    gpu_run: ModuleType, tmp_path: Path, programs: Path, code: int, status: str
) -> None:
    """Exit code 3: the seconds were not enough for all cases. 9 is the sanitizer's own."""
    ends = 'while [ "${1#--}" != "$1" ]; do shift 2; done'
    script(programs / "compute-sanitizer", f'tool=$2; {ends}; "$@"; [ $tool != racecheck ] || exit {code}')
    result = check_run(gpu_run, tmp_path)
    assert result["status"] == status
    names = [entry["name"] for entry in result["sanitized"]]
    assert len(names) == 6 and "racecheck bfloat16" in names and result["sanitized"][0]["cases"] == 2


NCU = """==PROF== Connected
"ID","Kernel Name","dram__bytes.sum","other"
"","","Gbyte",""
"0","cross_entropy_kernel","1.05","2"
"""


def test_times_are_profiled_by_what_there_is(gpu_run: ModuleType, tmp_path: Path, programs: Path) -> None:
    run = gpu_run.Run(gpu_run.Budget(60), gpu_run.Device("A", "9.0", "1"))
    for element in ("float", "bfloat16"):
        lines = '{"device": "A", "cuda": 13000}\n{"op": "softmax", "percent": 90.0}\n{"left": 4}'
        script(run.program("time_cuda", element), f"cat <<'X'\n{lines}\nX\nexit 3")
    result = gpu_run.taken(run, gpu_run.times_step.times, 60)
    assert (result["status"], result["summary"]) == ("ok", "2 cells, 8 not reached")
    assert result["profile"] == {"reason": "not run: no ncu, no nsys"}
    script(programs / "ncu", f"cat <<'X'\n{NCU}X")
    result = gpu_run.taken(run, gpu_run.times_step.times, 60)
    assert result["profile"]["kernels"] == [
        {"Kernel Name": "cross_entropy_kernel", "dram__bytes.sum": "1.05"}
    ]


def test_variants_are_measured_in_turns(
    gpu_run: ModuleType, tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = gpu_run.variants_step
    run = gpu_run.Run(gpu_run.Budget(60), gpu_run.Device("A", "9.0", "1"))
    monkeypatch.setattr(variants, "WORK", tmp_path)
    monkeypatch.setattr(variants, "CELLS", ("one",))
    monkeypatch.setattr(variants, "VARIANTS", {"baseline": variants.Variant()})
    assert gpu_run.taken(run, variants.variants, 60)["status"] == "not run"  # nothing to compare
    monkeypatch.setitem(variants.VARIANTS, "larger", variants.Variant(("SIZE=2",), ("softmax.cu",)))
    assert "-D SIZE=2" in " ".join(map(str, variants.command_of(run, variants.VARIANTS["larger"], 1)))
    compiled = tmp_path / "compiled"
    monkeypatch.setattr(variants, "command_of", lambda *_: ["sh", "-c", f"echo once >> {compiled}"])
    for folder, percent, bits in ((run.programs, 80, "11"), (tmp_path / "variant1", 90, "12")):
        cell = json.dumps({"op": "softmax", "dtype": "float32", "shape": [2, 3], "percent": percent})
        for element in ("float", "bfloat16"):
            script(folder / f"time_cuda.{element}", f"echo '{cell}'")
            script(folder / f"check_cuda.{element}", f"echo '{CASE % ('a', bits, 0)}'")
    result = gpu_run.taken(run, variants.variants, 60)
    assert result["status"] == "ok"
    assert result["cells"] == [{"cell": "softmax float32 2x3", "baseline": 80, "larger": 90}]
    assert compiled.read_text() == "once\n"
    variants.begin(run)  # as in a run, beside an earlier step
    gpu_run.taken(run, variants.variants, 60)
    assert compiled.read_text() == "once\n" * 2
    assert result["bits"] == {"larger": {"equal": 0, "changed": ["a"], "new": 0}}
    turns = [command["name"] for command in result["commands"] if "round" in command["name"]]
    assert turns[:4] == ["baseline, round 1"] * 2 + ["larger, round 1"] * 2 and len(turns) == 12


def test_packages_that_are_brought_along_may_have_pth_files(gpu_run: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/brought.py").write_text("here = 1\n")
    (tmp_path / "brought.pth").write_text("inner\n")
    gpu_run.build_step.as_site(tmp_path)
    code = "import brought; print(brought.here)"
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    assert subprocess.check_output([sys.executable, "-c", code], env=env, text=True) == "1\n"
