# SPDX-License-Identifier: Apache-2.0
"""The output of a build, for kernels and for ninja's files: file, number of files left, seconds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

TOOLS = ROOT / "tools"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(TOOLS)
    from build_progress import short

    return short


@pytest.mark.parametrize("root", ["/clone/softkern", "/a clone/s\u00f6ftkern"])
def test_a_command_that_has_ended_is_its_file(short, root: str) -> None:
    compiled = (
        f"[3/12] c++ -MMD -MF '{root}/build/x.o'.d -I'{root}' -c -c '{root}/csrc/ops/x.cpp' -o '{root}/x.o'"
    )
    assert short(f"{compiled}\n", Path(root), 41.4) == "softkern: 41 s, compiled 3 of 12: csrc/ops/x.cpp\n"


@pytest.mark.parametrize(
    "line",
    [
        "csrc/ops/x.cpp:3:1: error: 'y' was not declared in this scope\n",
        "FAILED: [code=1] /a/x.o \n",
        "ninja: build stopped: subcommand failed.\n",
        "[1/2] c++ it's no command.cpp\n",
        "softkern: no CUDA kernels\n",
        "\n",
    ],
)
def test_every_other_line_is_kept(short, line: str) -> None:
    assert short(line, Path("/a"), 1) == line


SCRIPT = """
import subprocess, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from build_progress import compiled_lines

print("before")
try:
    with compiled_lines(Path("/a"), time.monotonic()):
        print("of this process", flush=True)
        # As torch calls ninja. The last line is not UTF-8.
        program = "printf '[1/1] c++ -c /a/b.cpp -o b.o\\\\n\\\\377\\\\n'; exit 3"
        subprocess.run(["sh", "-c", program], stdout=1, check=True)
finally:
    print("after")
"""


def test_what_other_processes_write_is_shortened_and_their_errors_go_on() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, TOOLS], capture_output=True)
    assert re.sub(rb"\d+ s,", b"? s,", done.stdout).splitlines() == [
        b"before",
        b"of this process",
        b"softkern: ? s, compiled 1 of 1: b.cpp",
        b"\xff",
        b"after",
    ]
    assert done.returncode == 1 and b"exit status 3" in done.stderr


KERNELS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import cuda_build

root = Path(sys.argv[2])
touch = ["sh", "-c", 'touch "$2"', "sh"]
units = [cuda_build.Unit(n, touch, root / f"build/cpu/{n}.o", "key") for n in "abc"]
cuda_build.compile_all(units[:1], root, 1)
cuda_build.compile_all(units, root, 1)
"""


def test_a_kernel_is_named_when_its_turn_comes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KERNELS, TOOLS, tmp_path], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "softkern: 1 of 1 kernel objects to compile, 1 at a time"
    assert lines[2] == "softkern: 2 of 3 kernel objects to compile, 1 at a time"  # a is current
    assert [line.split(", ", 1)[1] for line in (lines[1], *lines[3:])] == [
        "compiling 1 of 1: build/cpu/a.o",
        "compiling 1 of 2: build/cpu/b.o",
        "compiling 2 of 2: build/cpu/c.o",
    ]
