# SPDX-License-Identifier: Apache-2.0
"""softkern._binding: which library serves which torch, and what is said if none does. The libraries are fakes
here; tools/check_wheel.py uses real ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from places import tool

from softkern import _binding

WHOLE = b"\x7fELF\x02" + bytes(35) + (64).to_bytes(8, "little") + bytes(16)  # a table without sections


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A package without an extension, and with the libraries of two releases of torch and the stable one."""
    folder = tmp_path / "lib"
    folder.mkdir()
    for name in ("libsoftkern.so", "torch2.11.so", "torch2.13.so", "stable.so"):
        (folder / name).write_bytes(WHOLE)
    monkeypatch.setattr(_binding, "PACKAGE", tmp_path)
    monkeypatch.setattr(_binding, "LIBRARIES", folder)
    monkeypatch.delenv("SOFTKERN_GLUE", raising=False)
    # In this process, the ops are those of the library that was loaded with softkern.
    monkeypatch.setattr(_binding, "_ops_of_others", lambda path: "")
    loaded: list[str] = []
    monkeypatch.setattr(_binding, "import_module", lambda name: Loader(name.rpartition(".")[2], loaded))
    return folder


class Loader:
    """In place of the module of a binding: its functions tell what it loads."""

    def __init__(self, name: str, loaded: list[str]) -> None:
        self.name = name

    def load(self, path: Path) -> dict[str, object]:
        return {"loads": lambda: (self.name, path.name)}


def choose(monkeypatch: pytest.MonkeyPatch, version: str) -> _binding.Binding:
    monkeypatch.setattr(torch, "__version__", version)
    return _binding.choose()


@pytest.mark.parametrize("version", ("2.13.0", "2.13.1", "2.13.0+cpu", "2.13.2+cu130", "2.13.0.post1"))
def test_a_release_gets_the_library_of_its_minor(monkeypatch, libraries, version):
    binding = choose(monkeypatch, version)
    assert (binding.name, binding.reason) == ("2.13", "")
    assert binding.functions["loads"]() == ("glue", "torch2.13.so")
    assert binding.functions["binding"]() == ("2.13", "")


@pytest.mark.parametrize(
    ("version", "reason"),
    (
        ("2.12.1", "this installation of softkern has no library for torch 2.12"),
        ("2.130.0", "this installation of softkern has no library for torch 2.130"),
        ("3.0.0", "this installation of softkern has no library for torch 3.0"),
        ("2.13.0a0+git1234567", "torch 2.13.0a0+git1234567 is not a release"),
        ("2.13.0.dev20261101+cpu", "torch 2.13.0.dev20261101+cpu is not a release"),
        ("2.13.0rc1", "torch 2.13.0rc1 is not a release"),
        ("2.13.0+vendor.1", "torch 2.13.0+vendor.1 is not a release"),
    ),
)
def test_no_other_library_is_guessed(monkeypatch, libraries, version, reason):
    binding = choose(monkeypatch, version)
    assert (binding.name, binding.reason) == ("stable", reason)
    assert binding.functions["loads"]() == ("stable", "stable.so")


@pytest.mark.parametrize("version", ("2.10.2", "1.13.1+cpu"))
def test_an_older_torch_is_refused(monkeypatch, libraries, version):
    with pytest.raises(ImportError, match=rf"^softkern needs torch 2.11 or newer; .* has {version[:4]}"):
        choose(monkeypatch, version)


def test_an_extension_comes_first(monkeypatch, libraries):
    suffix = _binding.EXTENSION_SUFFIXES[0]
    (libraries.parent / f"_pybind{suffix}").touch()
    binding = choose(monkeypatch, "2.13.0")
    assert (binding.name, binding.reason) == ("pybind", "")


def test_an_extension_for_another_torch_says_so(monkeypatch, libraries):
    (libraries.parent / f"_pybind{_binding.EXTENSION_SUFFIXES[0]}").touch()

    def refuse(name):
        raise ImportError("undefined symbol: _ZN3c10\nmore")

    monkeypatch.setattr(_binding, "import_module", refuse)
    with pytest.raises(ImportError, match=r"does not load with torch 2\.14\.0 .*: reinstall.* _ZN3c10$"):
        choose(monkeypatch, "2.14.0")


@pytest.mark.parametrize("which", ("torch2.13.so", "libsoftkern.so"))
@pytest.mark.parametrize("left", (WHOLE[:63], b"", b"not a library, but a text" * 9))
def test_a_part_of_a_library_is_not_loaded(monkeypatch, libraries, which, left):
    """The system's loader would end the process."""
    (libraries / which).write_bytes(left)
    binding = choose(monkeypatch, "2.13.0")
    kernels = which == "libsoftkern.so"
    assert binding.name == ("none" if kernels else "stable")
    assert binding.reason.startswith(f"{libraries / which}: not a whole library ({len(left)} bytes)")


def test_an_elf_file_without_its_last_byte_is_a_part(tmp_path):
    path = tmp_path / "a.so"
    whole = Path(sys.executable).resolve().read_bytes()
    path.write_bytes(whole)
    _binding.refuse_truncated(path)
    path.write_bytes(whole[:-1])
    with pytest.raises(OSError, match="not a whole library"):
        _binding.refuse_truncated(path)


def test_a_library_that_does_not_load_is_a_reason(monkeypatch, libraries):
    def load(self, path):
        if self.name == "glue":
            raise OSError("libc10.so: cannot open shared object file")
        return {}

    monkeypatch.setattr(Loader, "load", load)
    binding = choose(monkeypatch, "2.13.0")
    assert (binding.name, binding.reason) == ("stable", "libc10.so: cannot open shared object file")


@pytest.mark.parametrize(
    ("named", "loads"),
    (
        ("2.11", ("glue", "torch2.11.so")),
        ("stable", ("stable", "stable.so")),
        ("none", ("none", "torchnone.so")),
    ),
)
def test_a_binding_by_name(monkeypatch, libraries, named, loads):
    monkeypatch.setenv("SOFTKERN_GLUE", named)
    binding = choose(monkeypatch, "2.13.0")
    assert (binding.name, binding.reason) == (named, "SOFTKERN_GLUE names it")
    assert binding.functions["loads"]() == loads


@pytest.mark.parametrize("named", ("2.12", "pybind", "Stable", "2.13.0"))
def test_an_unknown_name_lists_the_choices(monkeypatch, libraries, named):
    monkeypatch.setenv("SOFTKERN_GLUE", named)
    choices = "'2.11', '2.13', 'stable', 'none'"
    with pytest.raises(ImportError, match=f"^SOFTKERN_GLUE: expected one of {choices}, got '{named}'$"):
        choose(monkeypatch, "2.13.0")


def test_a_named_one_that_does_not_load_is_an_error(monkeypatch, libraries):
    monkeypatch.setenv("SOFTKERN_GLUE", "2.13")
    (libraries / "torch2.13.so").write_bytes(b"")
    with pytest.raises(ImportError, match=r"^SOFTKERN_GLUE=2\.13: .*not a whole library"):
        choose(monkeypatch, "2.13.0")


def test_a_second_copy_of_the_ops_is_not_loaded(monkeypatch, libraries):
    """Registered once more, they would end the process."""
    monkeypatch.undo()
    folder = libraries
    monkeypatch.setattr(_binding, "LIBRARIES", folder)
    with pytest.raises(ImportError, match=r"^another copy of softkern is loaded in this process$"):
        _binding._load("2.13")


def test_the_page_has_the_times_that_were_measured():
    times = tool("binding_times")
    page = times.PAGE.read_text()
    assert "| 101x7, forward |" in page
    assert times.with_table(page, json.loads(times.JSON.read_text())) == page
