# SPDX-License-Identifier: Apache-2.0
"""That tools/check_cuda.cpp, which runs without torch on a GPU, notices what is wrong."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from places import ROOT
from programs import compiled

pytestmark = pytest.mark.skipif(not (ROOT / "tools").is_dir(), reason="no tools beside these tests")
OWN = ("tools/check_cuda.cpp", "tools/cuda/check_softmax.cpp")


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The program, compiled once, without its kernels."""
    folder = tmp_path_factory.mktemp("objects")
    return [emulated(folder / f"{Path(source).stem}.o", "-c", source) for source in OWN]


def emulated(target: Path, *arguments: str | Path) -> Path:
    flags = ("-O1", "-DSOFTKERN_EMULATED", "-DSOFTKERN_ELEMENT=softkern::BFloat16")
    return compiled(target, *flags, "-Icsrc/cuda", "-Itools", *arguments)


def run(program: Path, *arguments: str) -> tuple[int, list[dict[str, Any]], dict[str, Any]]:
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    *cases, end = map(json.loads, done.stdout.splitlines())
    return done.returncode, cases, end


@pytest.mark.parametrize(
    ("planted", "message"),
    [
        (0, ""),
        (1, "output: row 2, class 99: 0 instead of "),
        (2, "output: something before the first row was written"),
        (3, "output: no launch"),
    ],
)
def test_an_error_in_a_kernel_is_found(
    objects: list[Path], tmp_path: Path, planted: int, message: str
) -> None:
    kernels = f"-DPLANTED={planted}", "tests/native/check_cuda_kernels.cpp", "csrc/cuda/device.cpp"
    program = emulated(tmp_path / "check", *kernels, *objects)
    code, cases, end = run(program, "--only", "softmax 3x100+1")
    (case,) = (case for case in cases if case["case"] == "softmax 3x100+1")
    assert case["message"].startswith(message) if planted < 3 else case["message"].endswith("no launch")
    assert bool(case["wrong"]) == bool(planted) and (code, end["cases"]) == (
        int(end["failed"] > 0),
        len(cases),
    )
    if planted:
        return
    # An error that the program itself makes after the kernel is one too.
    code, cases, end = run(program, "--only", "softmax 3x100+1", "--spoil")
    assert all(case["wrong"] for case in cases) and code == 0
    code, cases, end = run(program, "--only", "softmax 3x100", "--seconds", "-1")
    assert (code, cases, end["left"]) == (1, [], end["left"]) and end["left"] > 0
