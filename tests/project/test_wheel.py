# SPDX-License-Identifier: Apache-2.0
"""How tools/check_wheel.py (`make wheel-test`) judges the files of an sdist and of a wheel."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import places
import pytest
from places import ROOT

INFO = "softkern-1.0.dist-info"
LIBRARIES = [f"softkern/{name}" for name in ("lib/libsoftkern.so", "lib/stable.so", "_behind.abi3.so")]


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tools")  # where it is run, a script's own folder is on the path
        yield places.tool("check_wheel")


@pytest.fixture
def sdist(tool: ModuleType) -> list[str]:
    csrc = tool.tree("csrc", *tool.COMPILED_FROM)
    others = ("LICENSE", "README.md", "pyproject.toml", "setup.py", "PKG-INFO")
    return [*tool.modules(), *csrc, *others, *tool.BUILD_TOOLS]


@pytest.fixture
def wheel(tool: ModuleType) -> list[str]:
    """Without anything compiled."""
    return [*tool.modules(), f"{INFO}/METADATA", f"{INFO}/RECORD", f"{INFO}/licenses/LICENSE"]


def test_complete_archives_pass(tool: ModuleType, sdist: list[str], wheel: list[str]) -> None:
    assert tool.sdist_problems(sdist) == []
    assert tool.wheel_problems(wheel, libraries=False) == []
    compiled = [*wheel, *LIBRARIES, "softkern/lib/torch2.11.so", "softkern/lib/torch2.13.so"]
    assert tool.wheel_problems(compiled, libraries=True) == []


@pytest.mark.parametrize("name", ["softkern/py.typed", "softkern/_C.pyi", "softkern/functional.py"])
def test_a_missing_module_is_noticed(tool: ModuleType, sdist: list[str], wheel: list[str], name: str) -> None:
    sdist.remove(name)
    wheel.remove(name)
    assert tool.sdist_problems(sdist) == [f"sdist: {name} is missing"]
    assert tool.wheel_problems(wheel, libraries=False) == [f"wheel: {name} is missing"]


@pytest.mark.parametrize(
    "name",
    [
        "LICENSE",
        "setup.py",
        "tools/build_progress.py",
        "tools/library_build.py",
        "csrc/cpu/dispatch.h",
        "csrc/behind_abi3.c",
    ],
)
def test_what_the_sdist_is_built_from_is_missed(tool: ModuleType, sdist: list[str], name: str) -> None:
    sdist.remove(name)
    assert tool.sdist_problems(sdist) == [f"sdist: {name} is missing"]


@pytest.mark.parametrize("name", ["softkern/lib/stable.so", "a/b.pyc", "build/x.o"])
def test_nothing_compiled_goes_into_the_sdist(tool: ModuleType, sdist: list[str], name: str) -> None:
    assert tool.sdist_problems([*sdist, name]) == [f"sdist: {name} was compiled here"]


@pytest.mark.parametrize(
    "name", ["tests/project/test_wheel.py", "csrc/python.cpp", "softkern/notes.txt", "softkern/_pybind.so"]
)
@pytest.mark.parametrize("libraries", (True, False))
def test_nothing_else_goes_into_the_wheel(
    tool: ModuleType, wheel: list[str], name: str, libraries: bool
) -> None:
    names = [*wheel, *LIBRARIES * libraries, name]
    assert tool.wheel_problems(names, libraries) == [f"wheel: {name} should not be in it"]


@pytest.mark.parametrize("missing", (*LIBRARIES, f"{INFO}/licenses/LICENSE"))
def test_a_wheel_has_each_library_and_its_licence_once(
    tool: ModuleType, wheel: list[str], missing: str
) -> None:
    names = [name for name in (*wheel, *LIBRARIES) if name != missing]
    what = missing.replace(INFO, "softkern-*.dist-info")
    assert tool.wheel_problems(names, libraries=True) == [f"wheel: expected one {what}, found []"]


def test_a_wheel_without_anything_compiled_has_no_library(tool: ModuleType, wheel: list[str]) -> None:
    names = [*wheel, "softkern/lib/torch2.13.so"]
    expected = ["wheel: softkern/lib/torch2.13.so should not be in it"]
    assert tool.wheel_problems(names, libraries=False) == expected


@pytest.mark.parametrize("name", ["csrc/cuda/rows.cu", "csrc/cuda/rows.cuh"])
def test_cuda_sources_are_missed(
    tool: ModuleType, sdist: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    shutil.copytree(ROOT / "softkern", tmp_path / "softkern", ignore=shutil.ignore_patterns("*.so"))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    assert f"sdist: {name} is missing" in tool.sdist_problems(sdist)


def test_names_of_an_archive(tool: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with tarfile.open(tmp_path / "a-1.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "file", "a-1/b/file")
    with zipfile.ZipFile(tmp_path / "a-1.whl", "w") as archive:
        archive.write(tmp_path / "file", "b/file")
    assert tool.contents(tmp_path / "a-1.tar.gz") == tool.contents(tmp_path / "a-1.whl") == ["b/file"]


def test_a_failing_command_ends_the_check(tool: ModuleType) -> None:
    with pytest.raises(SystemExit, match="exit code 1: false"):
        tool.run("false")


@pytest.mark.parametrize("given", [True, False])
def test_the_wheel_is_made_of_the_sdist_and_of_objects_if_they_are_given(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: bool
) -> None:
    out, objects = tmp_path / "dist", tmp_path / "build"
    (objects / "cpu").mkdir(parents=True)
    (objects / "cpu" / "avx2.o").write_text("made")
    (tmp_path / "setup.py").write_text("of the sdist")
    out.mkdir()
    seen: list[list[str]] = []

    def run(*command: str | Path, cwd: Path = ROOT) -> None:
        if "--sdist" in command:
            with tarfile.open(out / "a-1.tar.gz", "w:gz") as tar:
                tar.add(tmp_path / "setup.py", "a-1/setup.py")
        else:
            assert command[1] == cwd / "tools" / "make_wheels.py"
            seen.append(sorted(str(p.relative_to(cwd)) for p in cwd.rglob("*") if p.is_file()))

    monkeypatch.setattr(tool, "run", run)
    tool.build(out, tmp_path / "scratch", objects if given else None, ["own"], tmp_path)
    assert seen == [["build/cpu/avx2.o", "setup.py"] if given else ["setup.py"]]


@pytest.mark.parametrize(
    ("torch", "nvcc", "variables", "expected"),
    [
        ("2.13.0+cpu", True, {}, {"FORCE_CUDA": "1"}),  # though torch sees no GPU
        ("2.13.0", False, {}, {}),
        ("2.13.0+rocm7.0", True, {}, {}),
        ("2.13.0", True, {"SOFTKERN_CUDA": "0"}, {}),
        ("2.13.0", True, {"FORCE_CUDA": "0"}, {}),
    ],
)
def test_a_wheel_has_cuda_kernels_wherever_there_is_an_nvcc(
    tool: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    torch: str,
    nvcc: bool,
    variables: dict[str, str],
    expected: dict[str, str],
) -> None:
    monkeypatch.setattr(tool, "version", {"torch": torch}.get)
    monkeypatch.setattr(tool, "find_toolkit", lambda env: ("toolkit" if nvcc else None, []))
    assert tool.forced(variables) == expected
