# SPDX-License-Identifier: Apache-2.0
"""tools/check_libraries.py: what a library of the wheel may need of others and show to them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import places
import pytest

pytest.importorskip("elftools", reason="pyelftools comes with the extra `wheel`")
COMPILER = shutil.which("c++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return places.tool("check_libraries")


@pytest.fixture
def library(tmp_path: Path) -> Callable[..., Path]:
    def build(name: str, source: str, *flags: str) -> Path:
        path = tmp_path / name
        assert COMPILER is not None
        command = [COMPILER, "-shared", "-fPIC", "-fvisibility=hidden", "-xc++", "-", "-o", str(path), *flags]
        subprocess.run(command, input=source, text=True, check=True)
        return path

    return build


SHOWN = '__attribute__((visibility("default"))) '
OF_KERNELS = f"namespace softkern::cpu {{ {SHOWN} int isas() {{ return 3; }} }}"


def whole(library: Callable[..., Path]) -> Path:
    """Libraries that keep all rules."""
    folder = library("libsoftkern.so", OF_KERNELS).parent
    library("torch2.13.so", "namespace c10 { int f(); } int g() { return c10::f(); }")
    library("stable.so", 'extern "C" int aoti_torch_f(); int g() { return aoti_torch_f(); }')
    behind = f'extern "C" int PyArg_P(); extern "C" {SHOWN} int PyInit__behind() {{ return PyArg_P(); }}'
    library("_behind.abi3.so", behind)
    return folder


def test_libraries_that_keep_the_rules_pass(tool, library):
    assert tool.problems(whole(library)) == []


@pytest.mark.parametrize("name", ("libsoftkern.so", "_behind.abi3.so", "torch2.13.so"))
def test_a_missing_library_is_noticed(tool, library, name):
    folder = whole(library)
    (folder / name).unlink()
    assert tool.problems(folder) == [f"{name.replace('2.13', '*')}: not there"]


@pytest.mark.parametrize(
    ("name", "source", "problem"),
    (
        ("torch2.13.so", 'extern "C" int PyTuple_New(); int g() { return PyTuple_New(); }',
         "takes PyTuple_New from others"),
        ("stable.so", "namespace c10 { int f(); } int g() { return c10::f(); }",
         "takes _ZN3c101fEv from others"),
        ("stable.so", "namespace at { struct T { int f() const; }; } int g(at::T t) { return t.f(); }",
         "takes _ZNK2at1T1fEv from others"),
        ("libsoftkern.so", OF_KERNELS + 'extern "C" int PyLong_X(); int g() { return PyLong_X(); }',
         "takes PyLong_X from others"),
        ("libsoftkern.so", OF_KERNELS + f"{SHOWN} int other() {{ return 3; }}", "exports _Z5otherv"),
    ),
)  # fmt: skip
def test_a_broken_rule_is_named(tool, library, name, source, problem):
    folder = whole(library)
    library(name, source)
    assert tool.problems(folder) == [f"{name}: {problem}"]


def test_a_library_of_somebody_else_is_named(tool, library, tmp_path):
    folder = whole(library)
    library("libother.so", f"{SHOWN} int other() {{ return 3; }}", "-Wl,-soname,libother.so.7")
    source = OF_KERNELS + "int other(); int g() { return other(); }"
    library("libsoftkern.so", source, f"-L{tmp_path}", "-lother")
    assert tool.problems(folder) == [
        "libsoftkern.so: needs libother.so.7",
    ]
