# SPDX-License-Identifier: Apache-2.0
"""tools/cuda_build.py, by which setup.py compiles the kernels, with fake toolkits and compilers."""

from __future__ import annotations

import importlib.util
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from places import ROOT
from programs import compiled, script

EVERY = ["8.0", "9.0", "10.0", "12.0"]
KERNELS = ["csrc/cuda/reduce.cu", "csrc/cuda/rows.cu"]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the compilers here are shell scripts")


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """As setup.py imports it, on a machine with no toolkit in the usual place."""
    pytest.importorskip("setuptools")
    spec = importlib.util.spec_from_file_location("cuda_build", ROOT / "tools" / "cuda_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "cuda_build", module)  # where dataclasses look up their annotations
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "DEFAULT_ROOT", tmp_path / "usual")
    return module


NVCC = """\
case "$1" in
--list-gpu-arch) echo compute_75; echo compute_80; echo compute_90 ;;
--version) echo release 13 ;;
*) while [ "$1" != -o ]; do shift; done; echo run >> "$2.runs"; echo made > "$2"; echo ptxas info >&2 ;;
esac"""


CXX = """\
case "$1$2" in
*--version) echo a compiler ;;
*) command="$*"; while [ "$1" != -o ]; do shift; done; echo "$command" >> "$2.runs"; echo made > "$2" ;;
esac"""
ISA_SOURCES = ("csrc/cpu/isa/avx2.cpp", "csrc/cpu/isa/portable.cpp")
TYPES = {"bfloat16": "softkern::BFloat16", "half": "softkern::Half"}
OBJECTS = [f"build/cpu/{isa}.{e}.o" for isa in ("avx2", "portable") for e in ("float", "double", *TYPES)]


def toolkit(root: Path, include: str = "include", library: str = "lib64", nvcc: str = NVCC) -> Path:
    for folder, name in ((include, "cuda_runtime.h"), (library, "libcudart_static.a")):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / name).touch()
    script(root / "bin" / "nvcc", nvcc)
    return root


def tree(root: Path) -> Path:
    for name in (*KERNELS, "csrc/cuda/rows.cuh", "csrc/common/options.h", "csrc/ops/ops.cpp"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def extension(*sources: str):
    from setuptools import Extension

    return Extension("softkern._C", [*sources])


def test_architectures_become_flags(tool: ModuleType) -> None:
    names = tool.architectures(" 8.0;9.0a 12.0+PTX; 8.0 ", EVERY)
    assert names == ["8.0", "9.0a", "12.0+PTX"]
    assert tool.gencode(names) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]


def test_without_a_list_the_newest_that_nvcc_knows_is_ptx_too(tool: ModuleType) -> None:
    assert tool.architectures("", [*EVERY, "7.5"]) == ["8.0", "9.0", "10.0", "12.0+PTX"]
    assert tool.architectures(" ; ", ["8.0", "8.6", "9.0"]) == ["8.0", "9.0+PTX"]


@pytest.mark.parametrize("name", ["Ampere", "80", "9.0+ptx", "sm_90", "8.0,9.0"])
def test_what_is_no_architecture_is_named(tool: ModuleType, name: str) -> None:
    with pytest.raises(SystemExit) as error:
        tool.architectures(f"8.0;{name}", EVERY)
    assert f"TORCH_CUDA_ARCH_LIST=8.0;{name}: {name!r} is not" in str(error.value)
    assert "8.0;9.0;12.0+PTX" in str(error.value)


def test_what_this_nvcc_does_not_know_is_named(tool: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"does not know 8\.7, 12\.0\+PTX; it knows 9\.0, 10\.0\."):
        tool.architectures("8.7;9.0;12.0+PTX", ["10.0", "9.0"])
    with pytest.raises(SystemExit, match=r"does not know 8\.0, 9\.0, 10\.0, 12\.0; it knows 3\.5\."):
        tool.architectures("", ["3.5"])


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_a_variable_comes_before_the_path(tool: ModuleType, tmp_path: Path, variable: str) -> None:
    named, other = toolkit(tmp_path / "named"), toolkit(tmp_path / "other")
    found, looked = tool.find_toolkit({variable: str(named), "PATH": str(other / "bin")})
    assert found.nvcc == named / "bin" / "nvcc" and looked == []
    assert (found.include, found.cudart) == (named / "include", named / "lib64" / "libcudart_static.a")


TARGET = f"targets/{'sbsa' if platform.machine() == 'aarch64' else platform.machine()}-linux"


@pytest.mark.parametrize(
    ("include", "library"),
    [
        ("include", "lib"),
        (f"{TARGET}/include", f"{TARGET}/lib"),
        ("include", f"lib/{platform.machine()}-linux-gnu"),
    ],
)
def test_layouts_of_a_toolkit(tool: ModuleType, tmp_path: Path, include: str, library: str) -> None:
    root = toolkit(tmp_path / "cuda", include, library)
    found, _ = tool.find_toolkit({"PATH": str(root / "bin")})
    assert found.include == root / include and found.cudart.parent == root / library


def test_an_nvcc_on_the_path_may_be_a_link_or_a_wrapper(tool: ModuleType, tmp_path: Path) -> None:
    root = toolkit(tmp_path / "cuda-13")
    links = tmp_path / "links"
    links.mkdir()
    (links / "nvcc").symlink_to(root / "bin" / "nvcc")
    assert tool.find_toolkit({"PATH": str(links)})[0].nvcc == root / "bin" / "nvcc"
    script(tmp_path / "wrapper" / "bin" / "nvcc", f"echo '#$ TOP={root}/bin/..' >&2; exit 1")
    found, looked = tool.find_toolkit({"PATH": str(tmp_path / "wrapper" / "bin")})
    assert found.nvcc == root / "bin" / "nvcc"
    assert looked == [f"nvcc on PATH: {tmp_path / 'wrapper'} has no include/cuda_runtime.h"]


def test_the_usual_place_comes_last(tool: ModuleType, tmp_path: Path) -> None:
    toolkit(tmp_path / "cuda-13")
    (tmp_path / "usual").symlink_to(tmp_path / "cuda-13")
    found, _ = tool.find_toolkit({"PATH": ""})
    assert found.nvcc == tmp_path / "cuda-13" / "bin" / "nvcc"  # however it is found, the key is the same


def test_without_a_toolkit_the_places_are_named_if_one_is_wanted(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partial = toolkit(tmp_path / "partial")
    (partial / "lib64" / "libcudart_static.a").unlink()
    env = {"CUDA_HOME": str(partial), "CUDA_PATH": str(tmp_path / "gone"), "PATH": ""}
    assert tool.choose(tmp_path, env, rocm=False, gpu=True, kernels=True) is None
    with pytest.raises(SystemExit) as error:
        tool.choose(tmp_path, {**env, "FORCE_CUDA": "1"}, rocm=False, gpu=False, kernels=True)
    for text in (str(error.value), capsys.readouterr().out):
        assert f"CUDA_HOME: {partial} has no lib64/libcudart_static.a" in text
        assert f"CUDA_PATH: {tmp_path / 'gone'} has no bin/nvcc" in text
        assert "nvcc on PATH: not there" in text
        assert f"by default: {tmp_path / 'usual'} has no bin/nvcc" in text


def test_variables_decide(tool: ModuleType, tmp_path: Path) -> None:
    env = {"CUDA_HOME": str(toolkit(tmp_path / "cuda")), "PATH": ""}

    def folder(kernels: bool = True, rocm: bool = False, gpu: bool = True, **variables: str) -> str | None:
        compiler = tool.choose(tmp_path, {**env, **variables}, rocm, gpu, kernels)
        return compiler and compiler.folder

    assert folder() == folder(FORCE_CUDA="1") == folder(FORCE_CUDA="0") == "build/cuda"
    assert folder(gpu=False, FORCE_CUDA="1") == "build/cuda"
    assert folder(gpu=False, SOFTKERN_CUDA="emulate") == "build/emulated"
    assert folder(gpu=False, SOFTKERN_CUDA="0", FORCE_CUDA="1") is None
    assert folder(SOFTKERN_CUDA="0") is folder(SOFTKERN_CUDA="0", FORCE_CUDA="1") is None
    assert folder(rocm=True) is folder(kernels=False) is None
    with pytest.raises(SystemExit, match=r"FORCE_CUDA=1, .* ROCm"):
        folder(rocm=True, FORCE_CUDA="1")
    with pytest.raises(SystemExit, match=r"FORCE_CUDA=1: no \.cu in csrc/cuda"):
        folder(kernels=False, FORCE_CUDA="1")
    with pytest.raises(SystemExit, match=r"SOFTKERN_CUDA=emulate: no \.cu in csrc/cuda"):
        folder(kernels=False, SOFTKERN_CUDA="emulate")
    with pytest.raises(SystemExit, match=r"SOFTKERN_CUDA=on: expected 0 .*emulate"):
        folder(SOFTKERN_CUDA="on")
    with pytest.raises(SystemExit, match="SOFTKERN_SANITIZE needs SOFTKERN_CUDA=emulate"):
        folder(SOFTKERN_SANITIZE="address")


@pytest.mark.parametrize("variables", [{}, {"FORCE_CUDA": "0"}])
def test_an_nvcc_alone_compiles_nothing(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], variables: dict[str, str]
) -> None:
    """Minutes of compiling for a machine that can't run what comes out."""
    env = {"CUDA_HOME": str(toolkit(tmp_path / "cuda")), **variables}
    ext, root = extension("csrc/ops/ops.cpp", "csrc/ops/cuda/softmax.cpp"), tree(tmp_path / "root")
    tool.add_kernels(ext, root, env, rocm=False, gpu=False)
    assert ext.sources == ["csrc/ops/ops.cpp"] and not (root / "build").exists()
    said = capsys.readouterr().out
    assert "no CUDA kernels, since torch sees no GPU" in said and "FORCE_CUDA=1" in said


def test_an_emulated_build_can_be_sanitized(tool: ModuleType, tmp_path: Path) -> None:
    cxx = script(tmp_path / "cxx", "echo a compiler")
    env = {"SOFTKERN_CUDA": "emulate", "CXX": f"{shlex.quote(str(cxx))} -m64", "PATH": "/bin"}
    plain = tool.choose(tmp_path, env, rocm=True, gpu=False, kernels=True)
    assert plain.command[:2] == [str(cxx), "-m64"] and plain.folder == "build/emulated"
    assert ("SOFTKERN_EMULATED", None) in plain.macros and plain.link_args == plain.archives == []
    assert plain.include_dirs == []
    sanitized = tool.choose(
        tmp_path, {**env, "SOFTKERN_SANITIZE": "address"}, rocm=False, gpu=True, kernels=True
    )
    assert set(sanitized.command) - set(plain.command) == {
        "-fsanitize=address",
        "-fno-sanitize-recover=undefined",
    }
    assert sanitized.link_args == ["-fsanitize=address"]


def test_an_object_per_element_type(tool: ModuleType, tmp_path: Path) -> None:
    compiler = tool.Compiler(["nvcc"], "13", "build/cuda", ["csrc"], [])
    made = {unit.object.name: unit for unit in tool.units(compiler, KERNELS, tree(tmp_path))}
    assert list(made) == ["reduce.o", "rows.float.o", "rows.double.o", "rows.bfloat16.o", "rows.half.o"]
    assert made["reduce.o"].command == ["nvcc", "-c", "csrc/cuda/reduce.cu"]
    assert "-DSOFTKERN_ELEMENT=softkern::BFloat16" in made["rows.bfloat16.o"].command


def test_the_key_holds_all_that_goes_into_an_object(tool: ModuleType, tmp_path: Path) -> None:
    tree(tmp_path)

    def keys(command: str = "nvcc", identity: str = "13") -> list[str]:
        compiler = tool.Compiler([command], identity, "build/cuda", ["csrc"], [])
        return [unit.key for unit in tool.units(compiler, KERNELS, tmp_path)]

    before = keys()
    assert len(set(before)) == 5 and keys() == before
    assert not set(before) & set(keys(command="nvcc -O1")) and not set(before) & set(keys(identity="12"))
    for header in ("csrc/cuda/rows.cuh", "csrc/common/options.h"):
        (tmp_path / header).write_text("changed")
        assert not set(before) & set(keys()), header
        (tmp_path / header).write_text(header)
    (tmp_path / "csrc/cuda/rows.cu").write_text("changed")
    assert [old == new for old, new in zip(before, keys(), strict=True)] == [True, *[False] * 4]


def test_flags_that_nvcc_takes_from_the_environment_are_in_the_key(tool: ModuleType, tmp_path: Path) -> None:
    found, _ = tool.find_toolkit({"CUDA_HOME": str(toolkit(tmp_path / "cuda"))})
    identities = {
        tool.nvcc(found, {name: "x"}).identity for name in ("NVCC_APPEND_FLAGS", "NVCC_CCBIN", "HOME")
    }
    assert len(identities) == 3


def test_kernels_are_compiled_once(tool: ModuleType, tmp_path: Path) -> None:
    cuda, root = toolkit(tmp_path / "cuda"), tree(tmp_path / "root")
    env = {"CUDA_HOME": str(cuda), "MAX_JOBS": "2"}
    for _ in range(2):
        ext = extension("csrc/ops/ops.cpp", "csrc/cuda/host.cpp", "csrc/ops/cuda/softmax.cpp")
        tool.add_kernels(ext, root, env, rocm=False, gpu=True)
    objects = ["reduce.o", "rows.float.o", "rows.double.o", "rows.bfloat16.o", "rows.half.o"]
    cudart = str(cuda / "lib64" / "libcudart_static.a")
    assert ext.extra_objects == [*(f"build/cuda/{name}" for name in objects), cudart]
    assert ext.define_macros == [
        ("SOFTKERN_WITH_CUDA", None),
        ("SOFTKERN_CUDA_ARCHITECTURES", '"8.0;9.0+PTX"'),
    ]
    assert len(ext.sources) == 3 and ext.include_dirs == [str(cuda / "include")]
    for name in ext.extra_objects[:-1]:
        path = root / name
        assert path.with_name(path.name + ".runs").read_text() == "run\n"
        assert path.with_suffix(".log").read_text() == "ptxas info\n"
    (root / "build/cuda/rows.half.o").unlink()
    tool.add_kernels(extension(), root, env, rocm=False, gpu=True)
    runs = {path.name: len(path.read_text().split()) for path in (root / "build/cuda").glob("*.runs")}
    assert runs.pop("rows.half.o.runs") == 2 and set(runs.values()) == {1}


def test_kernels_of_the_cpu_are_kept_as_well(tool: ModuleType, tmp_path: Path) -> None:
    root, env = tree(tmp_path / "root"), {"SOFTKERN_CUDA": "0"}
    env["CXX"] = f"{shlex.quote(str(script(tmp_path / 'cxx', CXX)))} -m64"
    for isa in ("avx2", "portable"):
        (root / f"csrc/cpu/isa/{isa}.cpp").parent.mkdir(parents=True, exist_ok=True)
        (root / f"csrc/cpu/isa/{isa}.cpp").write_text(isa)

    def build(**variables: str) -> list[str]:
        ext = extension("csrc/cpu/isa/portable.cpp", "csrc/cpu/isa/avx2.cpp", "csrc/cpu/dispatch.cpp")
        tool.add_kernels(ext, root, {**env, **variables}, rocm=False, gpu=False, flags=["-O3"])
        assert ext.sources == ["csrc/cpu/dispatch.cpp"] and ext.depends == list(ISA_SOURCES)
        assert ext.extra_objects == OBJECTS
        return [(root / f"{name}.runs").read_text().splitlines()[-1] for name in ext.extra_objects]

    command = "-m64 -std=c++17 -fPIC -O3 -DSOFTKERN_ELEMENT={} -c csrc/cpu/isa/{}.cpp -o {}"
    parts = [(name, *Path(name).stem.split(".")) for name in OBJECTS]
    expected = [command.format(TYPES.get(e, e), isa, root / name) for name, isa, e in parts]
    assert build() == build() == expected
    assert runs(root / "build/cpu") == [1] * 8
    assert build(CFLAGS="-g -march=native") == [
        line.replace("-O3", "-g -march=native -O3") for line in expected
    ]
    assert runs(root / "build/cpu") == [2] * 8
    (root / "csrc/cpu/isa/avx2.cpp").write_text("changed")
    build(CFLAGS="-g -march=native")
    assert runs(root / "build/cpu") == [3] * 4 + [2] * 4
    (root / "csrc/common/options.h").write_text("changed")
    build(CFLAGS="-g -march=native")
    assert runs(root / "build/cpu") == [4] * 4 + [3] * 4


def runs(folder: Path) -> list[int]:
    return [len(path.read_text().splitlines()) for path in sorted(folder.glob("*.runs"))]


def test_without_kernels_the_sources_that_need_them_are_left_out(tool: ModuleType, tmp_path: Path) -> None:
    ext = extension("csrc/cuda/host.cpp", "csrc/ops/cuda/softmax.cpp", "csrc/ops/ops.cpp")
    tool.add_kernels(ext, tree(tmp_path), {"SOFTKERN_CUDA": "0"}, rocm=False, gpu=True)
    assert ext.sources == ["csrc/ops/ops.cpp"]
    assert not ext.define_macros and not ext.extra_objects and not (tmp_path / "build").exists()


def test_a_failed_compilation_is_shown_and_tried_again(tool: ModuleType, tmp_path: Path) -> None:
    failing = NVCC.replace("echo ptxas info >&2", "echo no such thing >&2; exit 2")
    cuda, root = toolkit(tmp_path / "cuda", nvcc=failing), tree(tmp_path / "root")
    for _ in range(2):
        with pytest.raises(SystemExit) as error:
            tool.add_kernels(
                extension(), root, {"CUDA_HOME": str(cuda), "MAX_JOBS": "1"}, rocm=False, gpu=True
            )
        for text in ("bin/nvcc", "no such thing", "does not compile (exit code 2)", "SOFTKERN_CUDA=0"):
            assert text in str(error.value)
    assert (root / "build/cuda/reduce.o.runs").read_text() == "run\nrun\n"


def test_warnings_are_not_kept_to_the_log(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noisy = NVCC.replace("echo ptxas info >&2", "echo 'a.cu(1): warning #177-D'; echo ptxas info >&2")
    cuda = toolkit(tmp_path / "cuda", nvcc=noisy)
    tool.add_kernels(extension(), tree(tmp_path / "root"), {"CUDA_HOME": str(cuda)}, rocm=False, gpu=True)
    said = capsys.readouterr().out
    assert "warning #177-D" in said and "ptxas" not in said


def test_an_nvcc_that_does_not_run_is_named(tool: ModuleType, tmp_path: Path) -> None:
    cuda = toolkit(tmp_path / "cuda", nvcc="echo no libraries >&2; exit 1")
    with pytest.raises(SystemExit, match=r"--list-gpu-arch: no libraries\n.*SOFTKERN_CUDA=0"):
        tool.choose(tmp_path, {"CUDA_HOME": str(cuda)}, rocm=False, gpu=True, kernels=True)


@pytest.mark.parametrize(("named", "jobs"), [("3", 3), ("0", None), ("", None), ("many", None)])
def test_jobs(tool: ModuleType, named: str, jobs: int | None) -> None:
    assert tool.jobs({"MAX_JOBS": named}) == (jobs or tool.jobs({})) > 0


def test_architectures_that_the_kernels_cannot_have_are_refused(tool: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"the kernels need 8\.0 or newer, not 7\.5, 7\.0\+PTX\."):
        tool.architectures("7.5;9.0;7.0+PTX", ["7.0", "7.5", "9.0"])


RUNS = {
    "8.0;9.0;10.0;12.0+PTX": {"8.0", "8.6", "9.0", "10.0", "10.3", "12.0", "12.1", "13.0"},
    "9.0a": {"9.0"},
    "8.6": {"8.6"},
    "8.0+PTX": {"8.0", "8.6", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1", "13.0"},
    "10.0f": {"10.0", "10.3"},
}
DEVICES = ("7.5", "8.0", "8.6", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1", "13.0")


def emulated(program: Path, *sources: str) -> Path:
    flags = ("-pthread", "-DSOFTKERN_EMULATED")
    return compiled(program, *flags, f"tests/native/{program.name}.cpp", *sources)


def test_devices_run_code_of_their_own_generation_and_ptx_of_older_ones(tmp_path: Path) -> None:
    program = emulated(tmp_path / "architectures", "csrc/cuda/device.cpp")
    for built_for, devices in RUNS.items():
        runs = {
            device
            for device in DEVICES
            if subprocess.check_output([program, built_for, *device.split(".")], text=True) == "1\n"
        }
        assert runs == devices, built_for


def test_a_device_is_asked_once_whether_clusters_fit_by_whatever_thread(tmp_path: Path) -> None:
    done = subprocess.run([emulated(tmp_path / "clusters")], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "")
