# SPDX-License-Identifier: Apache-2.0
""".ci/run always runs in a folder called softkern, also if it is started in a folder with another name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

RUN = ROOT / ".ci" / "run"

pytestmark = [
    pytest.mark.skipif(not RUN.is_file(), reason="an sdist has no .ci"),
    pytest.mark.skipif(not (shutil.which("git") and shutil.which("bash")), reason="no git or bash"),
    pytest.mark.skipif(sys.platform != "linux", reason=".ci/run is for Linux"),
]

# Instead of the first step, which calls make; what it finds is what all steps find.
MAKE = """#!/bin/sh
echo "in $PWD"
for file in *.txt build/*/*; do echo "$file: $(cat "$file")"; done
git log --format=%s
exit 3
"""


def git(folder: Path, *command: str) -> None:
    named = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *named, *command], cwd=folder, check=True)


def started(folder: Path, tmp_path: Path) -> tuple[int, list[str]]:
    """Exit code and output, of `bash .ci/run` in another folder than that of the clone."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "scratch").mkdir()
    (tmp_path / "bin/make").write_text(MAKE)
    (tmp_path / "bin/make").chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "TMPDIR": str(tmp_path / "scratch")}
    env.pop("CI_SCRATCH", None)  # where the suite itself runs in it
    done = subprocess.run(["bash", folder / ".ci/run"], cwd=tmp_path, env=env, capture_output=True, text=True)
    return done.returncode, (done.stdout + done.stderr).splitlines()


@pytest.fixture
def clone(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    try:
        os.fsencode(request.param)
    except UnicodeEncodeError:
        pytest.skip("no such folder in this locale")
    folder = tmp_path / request.param
    (folder / ".ci").mkdir(parents=True)
    shutil.copy(RUN, folder / ".ci/run")
    for name in ("kept", "changed", "removed"):
        (folder / f"{name}.txt").write_text("committed")
    (folder / ".gitignore").write_text("build/\nignored.txt\n")
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "the commit")
    return folder


def change(folder: Path) -> None:
    (folder / "changed.txt").write_text("by hand")
    (folder / "removed.txt").unlink()
    (folder / "a new one.txt").write_text("untracked")
    (folder / "ignored.txt").write_text("no part of it")
    (folder / "build/cpu").mkdir(parents=True)
    (folder / "build/cpu/avx2.o").write_text("compiled")


@pytest.mark.parametrize("clone", ["checkout", "a b \u00e9"], indirect=True)
def test_elsewhere_it_clones_into_softkern_and_cleans_up(clone: Path, tmp_path: Path) -> None:
    change(clone)
    code, lines = started(clone, tmp_path)
    assert code == 3
    [folder] = [line.removeprefix("in ") for line in lines if line.startswith("in ")]
    assert folder.startswith(str(tmp_path / "scratch")) and folder.endswith("/softkern")
    assert {line for line in lines if ".txt: " in line or ".o: " in line} == {
        "changed.txt: by hand",
        "kept.txt: committed",
        "a new one.txt: untracked",
        "build/cpu/avx2.o: compiled",
    }
    assert "the commit" in lines
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("clone", ["softkern"], indirect=True)
def test_a_clone_of_that_name_is_run_as_it_is(clone: Path, tmp_path: Path) -> None:
    change(clone)
    code, lines = started(clone, tmp_path)
    assert code == 3 and f"in {clone}" in lines and "ignored.txt: no part of it" in lines
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("clone", ["softkern-1.0"], indirect=True)
def test_a_source_archive_is_run_as_it_is(clone: Path, tmp_path: Path) -> None:
    shutil.rmtree(clone / ".git")
    code, lines = started(clone, tmp_path)
    assert code == 3 and f"in {clone}" in lines
