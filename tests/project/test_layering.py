# SPDX-License-Identifier: Apache-2.0
"""The rules of the source tree: which files may include which, and the length of a file."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from isas import ISAS
from places import ROOT, SUPPORT

CSRC = ROOT / "csrc"
SOURCE = (".h", ".cpp", ".cu", ".cuh", ".inl")

pytestmark = pytest.mark.skipif(not CSRC.is_dir(), reason="no C++ sources beside these tests")


def sources(folder: Path, *suffixes: str) -> list[Path]:
    found = sorted(p for p in folder.rglob("*") if p.suffix in (suffixes or SOURCE))
    assert found, f"no sources in {folder.name}: the rule would hold of nothing"
    return found


def offenders(files: list[Path], pattern: str) -> list[str]:
    """path:line of each line of code that matches; comments may name what they like."""
    found = []
    for path in files:
        text = re.sub(
            r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), path.read_text(encoding="utf-8"), flags=re.S
        )
        for number, line in enumerate(text.splitlines(), 1):
            if re.search(pattern, line.split("//")[0]):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    return found


INCLUDES_TORCH = r'#\s*include\s*[<"](torch|ATen|c10|caffe2|pybind11|Python\.h)'
INCLUDES_PYTHON = r'#\s*include\s*[<"](pybind11|Python\.h|torch/csrc/(utils|python_headers|Exceptions))'
TESTS_PATH = r"(\b|-I)tests/"
IMPORTS_TESTS = rf"^\s*(from|import)\s+({'|'.join(('tests', *(p.stem for p in SUPPORT.glob('*.py'))))})\b"
OF_X86 = r"\b_mm\d*_|\b__m(128|256|512)"
OF_ARM = r"\bv\w+_[fsu](8|16|32|64)\b|\b(float|u?int)\d+x\d"
INTRINSIC = rf"{OF_X86}|{OF_ARM}|(immintrin|arm_neon)\.h"


@pytest.mark.parametrize("folder", ("common", "cpu", "cuda"))
def test_kernels_know_nothing_of_torch(folder):
    """So they compile in seconds and run under sanitizers without Python."""
    assert not offenders(sources(CSRC / folder), INCLUDES_TORCH)


def test_what_backends_share_knows_none_of_them():
    assert not offenders(sources(CSRC / "common"), r'#\s*include\s*"\.\./')


def test_what_is_shipped_includes_nothing_from_the_tests():
    assert not offenders(sources(CSRC), r'#\s*include\s*"[^"]*tests/')


def offered(header: str) -> list[str]:
    """Functions in their order, overloads once."""
    text = (CSRC / "cuda" / "hardware" / header).read_text(encoding="utf-8")
    found = re.findall(r"^(?:SK_INLINE|inline|const char\*) (?:[\w*]+ )?(\w+)(?:<\w+>)?\(", text, flags=re.M)
    return list(dict.fromkeys(found))


def test_the_emulator_offers_what_a_gpu_does_in_the_same_order():
    of_a_gpu_alone = {"shared_address", "address_in_block", "at_a_time"}  # parts of other functions
    names = [name for name in offered("nvcc.h") if name not in of_a_gpu_alone]
    assert len(names) > 20
    assert offered("emulated.h") == names


def test_ops_know_nothing_of_python():
    """What they ask of it, they ask through a std::function."""
    assert not offenders(sources(CSRC / "ops"), INCLUDES_PYTHON)


def test_intrinsics_stay_in_their_instruction_sets_file():
    files = [p for p in sources(CSRC) if CSRC / "cpu" / "simd" not in p.parents]
    isa_headers = [p for p in files if p.parent == CSRC / "cpu" / "isa"]
    rest = [p for p in files if p not in isa_headers]
    assert not offenders(rest, INTRINSIC)
    # The translation unit of an ISA opens the target region, so it includes the header before it.
    assert not offenders(isa_headers, rf"{OF_X86}|{OF_ARM}")


def test_kernels_use_no_standard_containers():
    """A weak symbol compiled for AVX-512 may be the copy the linker keeps for everyone."""
    kernels = sources(CSRC / "cpu" / "kernels") + sources(CSRC / "cpu" / "simd")
    assert not offenders(kernels, r"#\s*include\s*<(vector|string|algorithm|map|functional|memory)>")
    assert not offenders(kernels, r"\bstd::(vector|string|function|map)\b")


def test_production_code_takes_nothing_from_the_tests():
    """Neither a header, nor a folder to look for one in, nor a module."""
    python = [p for folder in ("softkern", "benchmarks", "tools") for p in sources(ROOT / folder, ".py")]
    assert not offenders([*sources(CSRC), *python, ROOT / "setup.py"], TESTS_PATH)
    assert not offenders([*python, ROOT / "setup.py"], IMPORTS_TESTS)


def test_instruction_sets_are_listed_by_the_registry_alone():
    """A file may name one that it means, or compare two; three in one line are a list to keep up to date."""
    three = "|".join("".join(rf"(?=.*\b{isa}\b)" for isa in some) for some in itertools.combinations(ISAS, 3))
    python = [*sources(ROOT / "tests", ".py"), *sources(ROOT / "tools", ".py"), ROOT / "setup.py"]
    continuous = [ROOT / ".ci/run", *(ROOT / ".github/workflows").glob("*.yml")]  # not in an sdist
    assert not offenders([*python, ROOT / "Makefile", *(p for p in continuous if p.is_file())], three)


def test_no_file_is_too_long():
    python = [p for folder in ("softkern", "benchmarks", "tests") for p in sources(ROOT / folder, ".py")]
    files = [*sources(CSRC), *python]
    long = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in files}
    assert {p: n for p, n in long.items() if n > 400} == {}


def test_the_library_prints_nothing():
    """Except the modules whose job it is."""
    programs = [ROOT / "softkern" / p for p in ("info.py", "parallel/cost.py", "verify/__main__.py")]
    files = [p for p in sources(ROOT / "softkern", ".py") if p not in programs]
    assert not offenders(files, r"^\s*print\(")
    assert not offenders(sources(CSRC), r"std::cout|std::cerr|\bprintf\(")


@pytest.mark.parametrize("op", ("softmax", "log_softmax", "cross_entropy"))
def test_an_op_is_found_by_its_name(op):
    """Backend is a folder, op is the file stem: its kernel, its benchmark and its tests."""
    assert (CSRC / "cpu" / "kernels" / f"{op}.h").is_file()
    assert (CSRC / "cuda" / f"{op}.cu").is_file()
    assert (ROOT / "benchmarks" / "ops" / f"{op}.py").is_file()
    assert (ROOT / "tests" / "values" / f"test_{op}.py").is_file()


def test_the_rules_can_be_broken(tmp_path, monkeypatch):
    """Each pattern finds what it forbids."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    bad = tmp_path / "bad.h"
    includes = "#include <ATen/ATen.h>\n#include <Python.h>\n"
    bad.write_text(f"{includes}// _mm256_add_ps\n__m256 x = _mm256_add_ps(a, b);\n")
    assert len(offenders([bad], INCLUDES_TORCH)) == 2
    assert len(offenders([bad], INCLUDES_PYTHON)) == 1
    assert [o.split(":")[1] for o in offenders([bad], INTRINSIC)] == ["4"]
    bad.write_text("float32x4_t x;\nauto y = vaddq_f32(a, b);\nint vectors;\n#include <arm_neon.h>\n")
    assert [o.split(":")[1] for o in offenders([bad], INTRINSIC)] == ["1", "2", "4"]
    bad.write_text('#include "../../tests/native/simt.h"\n// tests/native\nflag = "-Itests/native"\n')
    assert [o.split(":")[1] for o in offenders([bad], TESTS_PATH)] == ["1", "3"]
    bad.write_text("from benchmarks import compare\nfrom . import cases\n    from compare import close\n")
    assert [o.split(":")[1] for o in offenders([bad], IMPORTS_TESTS)] == ["3"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(AssertionError, match="would hold of nothing"):
        sources(tmp_path / "empty")


@pytest.mark.parametrize("program", ("sweep", "exhaustive"))
def test_programs_without_torch_still_fit_the_kernels(program):
    """make harden runs them, minutes later; that they no longer compile shows here."""
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    source = ROOT / f"tests/native/{program}.cpp"
    found = subprocess.run([*compiler, "-std=c++17", "-fsyntax-only", source], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
