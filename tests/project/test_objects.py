# SPDX-License-Identifier: Apache-2.0
"""What the ISA compile units export and contain, seen in their object files: those of the build, and one of
each instruction set that is compiled here without optimisation."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from isas import ISAS
from places import ROOT

import softkern

COMPILERS = [name for name in ("g++", "clang++") if shutil.which(name)]
OF_THIS_CPU = [name for name, compiled, _ in softkern._C.isas() if compiled]
OF_OTHERS = [isa for isa in ISAS if isa not in OF_THIS_CPU]
# The file names of the build's objects have them in small letters.
ELEMENTS = {"float": "float", "double": "double", "BFloat16": "softkern::BFloat16", "Half": "softkern::Half"}
MOST_KERNELS = "Half"  # has one more than the others
BUILT = [("the build", isa, element) for isa in OF_THIS_CPU for element in ELEMENTS]
COMPILED = [(compiler, isa, MOST_KERNELS) for compiler in COMPILERS for isa in OF_THIS_CPU]
# Narrowest first; an instruction set that is not named has neither.
REGISTERS = {"avx2": ("ymm",), "avx512": ("ymm", "zmm")}

pytestmark = pytest.mark.skipif(not shutil.which("objdump"), reason="no binutils on this machine")


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module", params=[*BUILT, *COMPILED], ids="-".join)
def isa_object(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str, Path]:
    by, isa, element = request.param
    if by == "the build":
        path = ROOT / f"build/cpu/{isa}.{element.lower()}.o"
        if not path.is_file():
            pytest.skip("installed from elsewhere: no objects in build/cpu")
        return isa, element, path
    path = tmp_path_factory.mktemp("objects") / f"{isa}.o"
    compile_for_tests(by, isa, element, path)
    return isa, element, path


def compile_for_tests(compiler: str, isa: str, element: str, path: Path) -> None:
    # -O0 keeps every function that an optimiser might have inlined away.
    # What it would have removed is not looked at: exception tables, which nothing here throws through.
    run(
        compiler,
        "-std=c++17",
        "-O0",
        "-fno-exceptions",
        "-w",
        "-fPIC",
        f"-DSOFTKERN_ELEMENT={ELEMENTS[element]}",
        "-c",
        str(ROOT / f"csrc/cpu/isa/{isa}.cpp"),
        "-o",
        str(path),
    )


def test_every_instruction_set_is_in_the_list() -> None:
    """One whose file is there and which isas.h does not name would be compiled, and never run."""
    files = sorted(path.stem for path in (ROOT / "csrc/cpu/isa").glob("*.cpp"))
    listed = re.findall(r"^ *X\(\w+, (\w+),", (ROOT / "csrc/cpu/isas.h").read_text(), flags=re.M)
    assert sorted(listed) == sorted(ISAS) == files


def test_the_only_export_is_the_table(isa_object: tuple[str, str, Path]) -> None:
    isa, element, path = isa_object
    defined = [line.split(None, 2) for line in run("nm", "-C", "--defined-only", str(path)).splitlines()]
    exported = [fields[2] for fields in defined if not fields[1].islower()]
    assert exported == [
        f"softkern::cpu::KernelsOf<softkern::cpu::{isa.capitalize()}, {ELEMENTS[element]}>::kernels"
    ]


@pytest.mark.parametrize("other", OF_OTHERS)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_those_of_other_cpus_are_empty(compiler: str, other: str, tmp_path: Path) -> None:
    compile_for_tests(compiler, other, MOST_KERNELS, tmp_path / "empty.o")
    assert run("nm", "--defined-only", str(tmp_path / "empty.o")) == ""


def test_no_weak_symbol_and_nothing_runs_at_load(isa_object: tuple[str, str, Path]) -> None:
    _, _, path = isa_object
    kinds = {line.split()[-2] for line in run("nm", str(path)).splitlines()}
    assert not kinds & set("wWvVu")
    assert ".init_array" not in run("objdump", "-h", str(path))


def test_wide_registers_are_in_their_isa_alone(isa_object: tuple[str, str, Path]) -> None:
    isa, _, path = isa_object
    code = run("objdump", "-d", str(path))
    found = {register for register in ("ymm", "zmm") if re.search(rf"%{register}\d", code)}
    allowed = REGISTERS.get(isa, ())
    assert found <= set(allowed)
    assert not allowed or allowed[-1] in found
