# SPDX-License-Identifier: Apache-2.0
"""Triton as a backend of the same ops: when it is chosen, what goes there, and why it can't be.

The checks of support/backend_choice_checks.py run once, in a process with a stand-in for softkern.triton;
each is a test here by its name.
"""

from __future__ import annotations

import json
import os
import re
import types
import warnings
from importlib.util import find_spec

import pytest
import torch
from backend_choice import backends, registers
from isas import ISAS
from places import SUPPORT
from processes import python, refused

import softkern
from softkern import _C, info

NAMES = re.findall(r"^@check\ndef (\w+)", (SUPPORT / "backend_choice_checks.py").read_text(), re.MULTILINE)
KERNEL_OPS = (
    "softmax",
    "log_softmax",
    "softmax_backward",
    "log_softmax_backward",
    "cross_entropy_forward",
    "cross_entropy_forward_",
    "cross_entropy_backward",
    "cross_entropy_backward_",
)
no_gpu = pytest.mark.skipif(
    torch.cuda.is_available() or torch.xpu.is_available(), reason="there is a GPU, and Triton may compute"
)


@pytest.fixture(scope="module")
def checked(tmp_path_factory) -> dict[str, str]:
    """{check: "" or its traceback}"""
    out = tmp_path_factory.mktemp("choice") / "results.json"
    done = python(str(SUPPORT / "backend_choice_checks.py"), str(out))
    results = json.loads(out.read_text()) if out.exists() else {}
    assert done.returncode == 0 and not done.stdout, f"after {[*results]}: {done.stdout}{done.stderr}"
    return results


@pytest.mark.parametrize("name", [n for n in NAMES if n != "planted"])
def test_with_a_stand_in(name, checked):
    assert not checked[name], checked[name]


def test_a_check_that_fails_is_seen(checked):
    assert set(NAMES) == set(checked)
    assert "AssertionError" in checked["planted"]


@pytest.mark.parametrize("op", [op for op in KERNEL_OPS if "cross_entropy" not in op])
def test_a_backend_has_the_schemas_of_the_ops(op):
    ours, tritons = (
        getattr(getattr(torch.ops, n), op).default._schema for n in ("softkern", "softkern_triton")
    )
    assert str(tritons) == str(ours).replace("softkern::", "softkern_triton::")


@pytest.mark.parametrize("key", ("CPU", "CUDA", "XPU"))
@pytest.mark.parametrize("op", KERNEL_OPS)
def test_every_op_has_a_kernel_for_every_device(op, key):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"softkern::{op}", key)


@pytest.mark.parametrize("op", ("softmax", "log_softmax", "cross_entropy", "cross_entropy_"))
@pytest.mark.parametrize("key", ("AutocastCUDA", "AutocastXPU"))
def test_every_gpu_has_a_rule_for_autocast(op, key):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"softkern::{op}", key)


REPORT = """
import triton_stand_in, torch, softkern
x = torch.zeros(3, 4, requires_grad=True)
softkern.softmax(x, 1).sum().backward()
print([b.name for b in softkern.backends() if b.active], softkern._C.last_isa(), softkern._C.active_isa())
"""


@pytest.mark.parametrize("isa_name", ("", "portable"))
def test_the_environment_names_it(isa_name):
    """Beside an instruction set too, which is no other backend for what Triton computes."""
    done = python("-c", REPORT, SOFTKERN_BACKEND="triton", SOFTKERN_CPU_ISA=isa_name)
    default = next(name for name, _, reason in _C.isas() if not reason)
    assert done.stdout.strip() == f"['triton'] triton {isa_name or default}", done.stderr


def test_it_is_no_instruction_set():
    last = refused("import softkern", SOFTKERN_CPU_ISA="triton")
    assert last == (
        f"ValueError: SOFTKERN_CPU_ISA: expected one of {', '.join(map(repr, ISAS))}, got 'triton'"
    )


@no_gpu
def test_the_environment_names_it_where_it_cannot_run():
    last = refused("import softkern", SOFTKERN_BACKEND="triton")
    assert last.startswith("RuntimeError: SOFTKERN_BACKEND: backend 'triton' can't run here: ")


def test_two_instruction_sets_in_the_environment_are_refused():
    usable = [name for name, _, reason in _C.isas() if not reason]
    if len(usable) < 2:
        pytest.skip("a single instruction set runs here")
    last = refused("import softkern", SOFTKERN_CPU_ISA=usable[0], SOFTKERN_BACKEND=usable[1])
    assert last == (
        "ValueError: SOFTKERN_CPU_ISA and SOFTKERN_BACKEND name different backends: "
        f"SOFTKERN_CPU_ISA={usable[0]}, SOFTKERN_BACKEND={usable[1]}"
    )


def test_triton_is_imported_where_it_may_compute_and_nowhere_else():
    code = """
import sys, torch, softkern
softkern.cross_entropy(torch.zeros(3, 4, requires_grad=True), torch.tensor([0, 1, 2])).backward()
if not (torch.cuda.is_available() or torch.xpu.is_available()):
    softkern.backends()
print(sorted({"triton", "softkern.triton"} & sys.modules.keys()))
"""
    done = python("-c", code)
    assert done.stdout.strip() == "[]", done.stderr


def entry() -> softkern.Backend:
    (found,) = (b for b in softkern.backends() if b.name == "triton")
    return found


@pytest.fixture
def built(monkeypatch):
    """Triton is there, its interpreter is off, torch is built for a CUDA version, or for none, and softkern
    for none."""
    ours = {**_C.build(), "cuda_architectures": "", "cuda_emulated": False}

    def build(cuda: str | None, available: bool = False) -> None:
        monkeypatch.setattr(_C, "build", lambda: ours)
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setattr(backends, "find_spec", lambda name: object())
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        monkeypatch.setattr(torch.xpu, "is_available", lambda: False)

    return build


def test_without_triton(built, monkeypatch):
    built("13.0", available=True)
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    found = entry()
    assert found.reason == "Triton is not installed: pip install triton"
    assert (found.device, found.compiled, found.usable, found.active) == ("cuda", True, False, False)
    assert not backends._triton_computes("cuda")
    why = "backend 'triton' can't run here: Triton is not installed"
    with pytest.raises(RuntimeError, match=why), softkern.use_backend("triton"):
        pytest.fail("entered a backend that cannot run")
    assert info.environment()["backend triton"] == f"not usable: {found.reason}"


def test_without_a_gpu(built, monkeypatch):
    monkeypatch.setattr(backends, "import_module", lambda name: pytest.fail("imported"))
    built(None)
    assert entry().reason == "torch sees no GPU: this torch is built without CUDA"
    built("13.0")
    assert entry().reason == "torch sees no GPU: there is no device that it can use"
    assert not backends._triton_computes("cuda")

    def too_old() -> bool:
        warnings.warn("The NVIDIA driver on your system is too old\nand more", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", too_old)
    assert entry().reason.endswith("that it can use; The NVIDIA driver on your system is too old")


def test_kernels_that_cannot_be_imported(built, monkeypatch):
    def broken(name: str) -> types.ModuleType:
        raise OSError("libcuda.so: no such file")

    built("13.0", available=True)
    monkeypatch.setattr(backends, "import_module", broken)
    assert entry().reason == "softkern.triton can't be imported: OSError: libcuda.so: no such file"
    with pytest.raises(OSError):
        backends._triton_computes("cuda")


def test_it_computes_on_one_device(built, monkeypatch):
    calls: list[str] = []
    registers(monkeypatch, calls)
    built("13.0", available=True)
    assert (entry().device, entry().usable) == ("cuda", True)
    assert calls == ["softkern.triton", "registered"] * 2
    assert [d for d in ("cpu", "cuda", "xpu") if backends._triton_computes(d)] == ["cuda"]
    assert calls == ["softkern.triton", "registered"] * 3
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert (entry().device, entry().usable) == ("cpu", True)
    assert [d for d in ("cpu", "cuda", "xpu") if backends._triton_computes(d)] == ["cpu"]
    built(None)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    assert (entry().device, entry().usable) == ("xpu", True)
    assert [d for d in ("cpu", "cuda", "xpu") if backends._triton_computes(d)] == ["xpu"]


def test_on_a_gpu_it_is_active_unless_another_is_named(built, monkeypatch):
    if os.environ.get("SOFTKERN_BACKEND"):
        pytest.skip("a backend is named for the whole process")
    registers(monkeypatch, [])
    built("13.0", available=True)
    assert entry().active
    assert info.environment()["active on cuda"] == "triton"
    with softkern.use_backend("portable"):
        assert not entry().active
        assert "active on cuda" not in info.environment()
    with softkern.use_backend("triton"):
        assert [b.name for b in softkern.backends() if b.active] == ["triton"]
        rows = info.environment()
        assert (rows["active on cpu"], rows["active on cuda"]) == ("none (forced)", "triton (forced)")


def test_the_choices_name_it_without_looking_for_it(monkeypatch):
    monkeypatch.setattr(backends, "_why_no_triton", lambda: pytest.fail("looked for"))
    with pytest.raises(ValueError, match="'cuda', 'triton', got 'mmx'"), softkern.use_backend("mmx"):
        pytest.fail("entered an unknown backend")
    with softkern.use_backend("portable"):
        pass


def test_what_ran_can_be_told_from_python():
    names = ("a name that nobody keeps", "a way")
    _C.set_last("".join(list(names[0])), names[1] + "")
    assert (_C.last_isa(), _C.last_path()) == names
    for i in range(1000):  # no memory of the first one is given away
        _C.set_last(f"another name, {i}", "")
    _C.set_last(*names)
    softkern.softmax(torch.zeros(2, 3), 1)
    assert _C.last_isa() == _C.active_isa()


@pytest.mark.skipif(find_spec("softkern.triton") is None, reason="this build has no kernels in Triton")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_backward_in_the_devices_thread_chooses_by_itself():
    x = torch.randn(6, 10, device="cuda", requires_grad=True)
    target = torch.arange(6, device="cuda")
    losses = [softkern.cross_entropy(x, target), softkern.log_softmax(x, 1)[0, 0]]
    want = [torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in losses]
    with softkern.use_backend("portable"):
        with pytest.raises(RuntimeError, match="'portable' was asked for"):
            softkern.softmax(x, 1)
        got = [torch.autograd.grad(loss, x)[0] for loss in losses]
    assert all(map(torch.equal, got, want))
