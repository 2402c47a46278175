# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels as a backend of the same ops: when they are chosen before Triton, and why they can't run.

GPUs are simulated, except in the last tests, which need the kernels: on a GPU, or emulated on the CPU.
"""

from __future__ import annotations

import types
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from backend_choice import backends, registers
from cuda_checks import BUILD, COMPILED, EMULATED, ON_GPU
from isas import ISAS
from processes import python, refused
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

import softkern
from softkern import _C, info
from softkern.verify import runner


def builds(monkeypatch, architectures: str = "9.0;12.0+PTX", emulated: bool = False) -> None:
    what = {**BUILD, "cuda_architectures": architectures, "cuda_emulated": emulated}
    monkeypatch.setattr(_C, "build", lambda: what)


@pytest.fixture
def gpus(monkeypatch):
    """The kernels are compiled, Triton is there, and torch sees GPUs: "" for one that the kernels run on."""

    def see(*refusals: str) -> None:
        device = types.SimpleNamespace(name="A GPU", major=9, minor=0, total_memory=80 << 30)
        builds(monkeypatch)
        registers(monkeypatch, [])
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setattr(backends, "find_spec", lambda name: object())
        monkeypatch.setattr(_C, "why_no_cuda", lambda index: refusals[index])
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(refusals))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(refusals))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
        monkeypatch.setattr(torch.xpu, "is_available", lambda: False)

    return see


@pytest.fixture
def free():
    """The choice is softkern's."""
    if _C.required():
        pytest.skip("a backend is named for the whole process")


def entry() -> softkern.Backend:
    (found,) = (b for b in softkern.backends() if b.name == "cuda")
    return found


def active() -> list[str]:
    return [b.name for b in softkern.backends() if b.active and b.name in ("cuda", "triton")]


def test_it_is_listed_before_triton():
    assert [b.name for b in softkern.backends()] == [*ISAS, "cuda", "triton"]


@pytest.mark.skipif(COMPILED, reason="this build has CUDA kernels")
def test_a_build_without():
    found = entry()
    assert found.reason.startswith(
        "this build has no CUDA kernels: softkern was built where torch saw no GPU"
    )
    assert "FORCE_CUDA=1" in found.reason  # the remedy
    assert (found.device, found.compiled, found.usable, found.active) == ("cuda", False, False, False)
    why = "use_backend: backend 'cuda' can't run here: this build has no CUDA kernels"
    with pytest.raises(RuntimeError, match=why), softkern.use_backend("cuda"):
        pytest.fail("entered a backend that cannot run")
    rows = info.environment()
    assert rows["cuda kernels"] == "not compiled"
    assert rows["backend cuda"] == f"not compiled: {found.reason}"
    last = refused("import softkern", SOFTKERN_BACKEND="cuda")
    assert last.startswith("RuntimeError: SOFTKERN_BACKEND: backend 'cuda' can't run here: this build has no")


def test_it_is_no_instruction_set():
    last = refused("import softkern", SOFTKERN_CPU_ISA="cuda")
    assert last.endswith(f"SOFTKERN_CPU_ISA: expected one of {', '.join(map(repr, ISAS))}, got 'cuda'")


def test_without_a_gpu(gpus, monkeypatch):
    gpus()
    monkeypatch.setattr(_C, "why_no_cuda", lambda index: pytest.fail("asked for a device that is not there"))
    found = entry()
    assert found.reason == "torch sees no GPU: there is no device that it can use"
    assert (found.device, found.compiled, found.usable, found.active) == ("cuda", True, False, False)
    assert info.environment()["cuda kernels"] == "compiled for 9.0;12.0+PTX"


def test_it_computes_before_triton(gpus, free):
    gpus("", "")
    assert (entry().usable, entry().reason, active()) == (True, "", ["cuda"])
    rows = info.environment()
    assert (rows["active on cuda"], rows["backend cuda"]) == ("cuda", "usable")
    assert rows["cuda device 1"] == "A GPU, capability 9.0, 81920 MiB"


def test_triton_computes_where_it_cannot(gpus, free):
    gpus("made for 9.0", "made for 9.0")
    assert (entry().usable, entry().reason, active()) == (False, "made for 9.0", ["triton"])
    gpus("made for 9.0", "no driver")
    assert entry().reason == "made for 9.0; no driver"
    with pytest.raises(RuntimeError, match="can't run here: made for"), softkern.use_backend("cuda"):
        pytest.fail("entered a backend that cannot run")


def test_devices_may_differ(gpus, free):
    gpus("", "made for 9.0")
    assert (entry().usable, entry().reason, active()) == (True, "", ["cuda", "triton"])
    rows = info.environment()
    assert rows["active on cuda"] == "cuda, triton"
    assert rows["cuda device 0"].endswith("MiB")
    assert rows["cuda device 1"].endswith("MiB; not for the CUDA kernels: made for 9.0")


@pytest.mark.parametrize("refusals", (("",), ("", "made for 9.0")))
def test_a_name_leaves_no_choice(gpus, refusals):
    gpus(*refusals)
    for name in ("cuda", "triton"):
        with softkern.use_backend(name):
            assert active() == [name]
            assert info.environment()["active on cuda"] == f"{name} (forced)"
    with softkern.use_backend("portable"):
        assert active() == []


def test_emulated_on_the_cpu_it_has_to_be_named(gpus, free, monkeypatch):
    gpus("")
    builds(monkeypatch, emulated=True)
    monkeypatch.setattr(_C, "why_no_cuda", lambda index: pytest.fail("asked for a device"))
    found = entry()
    assert (found.device, found.compiled, found.usable, found.active) == ("cpu", True, True, False)
    assert active() == ["triton"]
    assert info.environment()["cuda kernels"] == "emulated on the CPU, for tests"
    with softkern.use_backend("cuda"):
        assert [b.name for b in softkern.backends() if b.active] == ["cuda"]
        assert info.environment()["active on cpu"] == "cuda (forced)"
    assert "cuda" not in runner.choose("cpu", None)
    assert runner.choose("cpu", ["cuda"]) == ["cuda"]


def test_the_choices_name_it_without_looking_for_it(monkeypatch):
    monkeypatch.setattr(backends, "_why_no_cuda", lambda: pytest.fail("looked for"))
    with pytest.raises(ValueError, match="'cuda', 'triton', got 'mmx'"), softkern.use_backend("mmx"):
        pytest.fail("entered an unknown backend")


def test_the_environment_may_name_an_instruction_set_beside_it(gpus, monkeypatch):
    gpus("")
    chosen: list[tuple[str, bool]] = []
    monkeypatch.setattr(_C, "choose_for_process", lambda *choice: chosen.append(choice))
    monkeypatch.setenv("SOFTKERN_CPU_ISA", "portable")
    monkeypatch.setenv("SOFTKERN_BACKEND", "cuda")
    backends.choose_from_environment()
    assert chosen == [("portable", False), ("cuda", True)]


@pytest.fixture
def named() -> Iterator[list[str]]:
    """Named past the check of Python's, and what Triton, which computes everywhere, was asked meanwhile."""
    asked: list[str] = []
    _C.set_triton_probe(lambda device_type: asked.append(device_type) is None)
    _C.choose_for_thread("cuda")
    yield asked
    _C.choose_for_thread("")
    _C.set_triton_probe(backends._triton_computes)


def test_nothing_computes_instead(named):
    assert (_C.thread_choice(), _C.required()) == ("cuda", "cuda")
    asked_for = "backend 'cuda' was asked for and does not compute"
    devices = {"cpu", "cuda", "xpu"} - ({"cpu"} if EMULATED else {"cuda"} if ON_GPU else set())
    if torch.version.cuda:  # where torch makes no tensors of others, fake ones neither
        devices -= {"xpu"}
    for device in sorted(devices):
        with FakeTensorMode():
            x = torch.empty(2, 3, device=device)
            target = torch.zeros(2, dtype=torch.int64, device=device)
            with pytest.raises(RuntimeError, match=asked_for):
                softkern.softmax(x, 1)
            with pytest.raises(RuntimeError, match=asked_for):
                softkern.cross_entropy(x, target)
    assert named == []


@pytest.mark.skipif(EMULATED, reason="CPU tensors are computed")
def test_cpu_tensors_are_refused_past_autograd_too(named):
    y = torch.full((2, 3), 1 / 3)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="backend 'cuda' was asked for"):
        softkern.log_softmax(y.clone(), 1)
    with pytest.raises(RuntimeError, match="'cuda' was asked for and does not compute tensors on cpu"):
        torch.ops.softkern.softmax_backward(y, y, 1)
    assert named == []


def test_a_choice_is_put_back(named):
    with softkern.use_backend("portable"):
        assert (_C.thread_choice(), _C.required()) == ("portable", "portable")
        softkern.softmax(torch.zeros(2, 3), 1)
        assert _C.last_isa() == "portable"
    assert (_C.thread_choice(), _C.required()) == ("cuda", "cuda")
    _C.choose_for_thread("")
    assert _C.thread_choice() == ""


def test_a_choice_of_the_process_is_every_threads():
    code = """
import threading
from softkern import _C
_C.choose_for_process("cuda", False)
seen = [_C.thread_choice(), _C.required()]
thread = threading.Thread(target=lambda: seen.append(_C.required()))
thread.start(), thread.join()
_C.choose_for_process("", False)
print(seen, [_C.required()])
"""
    done = python("-c", code)
    assert done.stdout.strip() == "['', 'cuda', 'cuda'] ['']", done.stderr


def of_every_op(device: str) -> list[str]:
    """What each way through the kernels reports."""
    ran = []
    target = torch.tensor([0, 2], device=device)
    for inplace in (False, True):
        x = torch.randn(2, 3, device=device, requires_grad=True)
        z = x * 1
        _C.set_last("", "")
        loss = softkern.cross_entropy(z, target, inplace_backward=inplace)
        ran.append(_C.last_isa())
        (grad,) = torch.autograd.grad(loss, z)
        (want,) = torch.autograd.grad(F.cross_entropy(x, target), x)
        assert_close(grad, want)
    for name in ("softmax", "log_softmax"):
        y = getattr(F, name)(x, 1).detach()
        for call in (
            lambda name=name: getattr(softkern, name)(x, 1),
            lambda name=name, y=y: getattr(torch.ops.softkern, f"{name}_backward")(y, y, 1),
        ):
            _C.set_last("", "")
            call()
            ran.append(_C.last_isa())
    grad, one = torch.ones(2, 3, device=device), torch.ones([], device=device)
    for name in ("cross_entropy_backward", "cross_entropy_backward_"):
        _C.set_last("", "")
        getattr(torch.ops.softkern, name)(one * 2, grad, one, target, -100)
        ran.append(_C.last_isa())
    return ran


@pytest.mark.skipif(not EMULATED, reason="the CUDA kernels are not emulated in this build")
def test_the_emulated_kernels_compute_what_they_are_named_for(free):
    isa = _C.active_isa()
    assert of_every_op("cpu") == [isa] * 8
    with softkern.use_backend("cuda"):
        assert of_every_op("cpu") == ["cuda"] * 8
    assert of_every_op("cpu") == [isa] * 8


@pytest.mark.skipif(not ON_GPU, reason="no GPU that the CUDA kernels run on")
def test_on_a_gpu(free):
    assert of_every_op("cuda") == ["cuda"] * 8
    with softkern.use_backend("cuda"):
        assert of_every_op("cuda") == ["cuda"] * 8
        with pytest.raises(RuntimeError, match="'cuda' was asked for"):
            softkern.softmax(torch.zeros(2, 3), 1)
    if not backends._why_no_triton():
        with softkern.use_backend("triton"):
            assert of_every_op("cuda") == ["triton"] * 8
