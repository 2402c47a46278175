# SPDX-License-Identifier: Apache-2.0
"""The chosen instruction set is the one that runs, in its scope and nowhere else."""

from __future__ import annotations

import platform
import threading

import pytest
import torch
from cases import HALVES, logits, name
from cross_entropy_cases import OPTIONS, problem
from isas import FORCED_ISA, ISAS, cpu_isas
from places import ROOT
from processes import python

import softkern

CALLS = {
    "softmax": lambda x, t, k: softkern.softmax(x, 1),
    "softmax, first dim": lambda x, t, k: softkern.softmax(x, 0),
    "log_softmax": lambda x, t, k: softkern.log_softmax(x, 1),
    "cross_entropy": lambda x, t, k: softkern.cross_entropy(x, t, **k),
    "module": lambda x, t, k: softkern.CrossEntropyLoss()(x, t),
}


def active() -> str:
    (backend,) = (b for b in softkern.backends() if b.active and b.device == "cpu")
    return backend.name


def ran() -> str:
    """The instruction set named by the kernel that ran last in this thread."""
    return softkern._C.last_isa()


def other(isa: str) -> str | None:
    """Another instruction set that runs here."""
    return next((b.name for b in cpu_isas() if b.usable and b.name != isa), None)


REPORT = """
import torch, softkern
softkern.softmax(torch.zeros(3, 4), 1)
active = [b.name for b in softkern.backends() if b.active and b.device == "cpu"]
print(active, softkern._C.last_isa())
"""


def test_the_registry_lists_every_instruction_set_in_order_of_preference():
    backends = softkern.backends()
    names = [b.name for b in backends]
    assert [b.name for b in backends if b.device == "cpu"][: len(ISAS)] == list(ISAS)
    assert set(ISAS) == {path.stem for path in (ROOT / "csrc/cpu/isa").glob("*.cpp")}
    assert names.index("avx512") < names.index("avx2")
    assert ISAS[-1] == "portable"
    assert len(set(names)) == len(names)
    for b in backends:
        assert isinstance(b.compiled, bool) and isinstance(b.usable, bool)
        assert b.usable <= b.compiled
        assert bool(b.reason) != b.usable, f"{b.name}: a reason if and only if it cannot run"
    assert next(b for b in backends if b.name == "portable").compiled


def test_those_of_another_kind_of_cpu_are_not_compiled_and_say_so():
    is_arm = platform.machine() in ("aarch64", "arm64")
    reasons = {b.name: b.reason for b in softkern.backends() if not b.compiled and b.device == "cpu"}
    text = "softkern was compiled for a CPU that is not "
    of_x86 = dict.fromkeys(("avx512", "avx2"), f"{text}x86-64")
    missing = of_x86 if is_arm else {"neon": f"{text}64-bit ARM"}
    assert {name: reason for name, reason in reasons.items() if name in ISAS} == missing
    for isa in missing:
        with pytest.raises(RuntimeError, match=missing[isa]), softkern.use_backend(isa):
            pytest.fail("entered a backend of another kind of CPU")


def test_the_active_one_is_the_best_that_runs_or_the_forced_one():
    usable = [b.name for b in cpu_isas() if b.usable]
    assert active() == (FORCED_ISA or usable[0])
    softkern.softmax(torch.zeros(2, 3), 1)
    assert ran() == active()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, *HALVES), ids=name)
@pytest.mark.parametrize("kind", ({}, OPTIONS[5], OPTIONS[-1]), ids=("indices", "all", "probs"))
def test_the_chosen_one_runs_forward_and_backward(isa, call, dtype, kind):
    x, target, kwargs = problem((4, 9), dtype, **kind)
    y = CALLS[call](x, target, kwargs)
    assert ran() == isa == active()
    leaf = x.requires_grad_()
    y = CALLS[call](leaf, target, kwargs)
    assert ran() == isa
    _run_another_kernel(isa)
    y.sum().backward()
    if call.startswith(("softmax", "log_softmax")):
        assert ran() == isa, "backward ran on another instruction set"


def _run_another_kernel(isa):
    """So that last_isa() is not what the forward left behind."""
    if other(isa):
        with softkern.use_backend(other(isa)):
            softkern.softmax(torch.zeros(2, 3), 1)
        assert ran() == other(isa)


def test_choices_nest_and_are_put_back():
    before = active()
    usable = [b.name for b in cpu_isas() if b.usable]
    for outer in usable:
        with softkern.use_backend(outer):
            for inner in usable:
                with softkern.use_backend(inner):
                    softkern.softmax(torch.zeros(2, 3), 1)
                    assert (active(), ran()) == (inner, inner)
                assert active() == outer
            softkern.softmax(torch.zeros(2, 3), 1)
            assert ran() == outer
    assert active() == before


def test_a_choice_is_put_back_after_an_exception():
    before = active()
    with pytest.raises(ZeroDivisionError), softkern.use_backend(cpu_isas()[-1].name):
        raise ZeroDivisionError
    assert active() == before


def test_another_thread_is_not_affected(isa):
    if other(isa) is None:
        pytest.skip("a single instruction set runs here, or one is forced: nothing to tell apart")
    seen = []

    def work():
        seen.append(ran())
        softkern.softmax(torch.zeros(2, 3), 1)
        seen.extend((ran(), active()))

    with softkern.use_backend(other(isa)):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert active() == other(isa)
    default = FORCED_ISA or next(b.name for b in cpu_isas() if b.usable)
    assert seen == ["", default, default]


def test_an_unknown_name_is_refused_with_the_choices():
    with pytest.raises(ValueError) as info, softkern.use_backend("mmx"):
        pytest.fail("entered with an unknown backend")
    for word in ("mmx", *ISAS):
        assert word in str(info.value)


def test_one_that_cannot_run_here_is_refused_with_the_reason(monkeypatch):
    """The CPU is made out to lack one: on a machine that has all there is nothing to refuse."""
    reason = "this CPU lacks AVX-512"
    rest = [isa for isa in softkern._C.isas() if isa[0] != "avx512"]
    monkeypatch.setattr(softkern._C, "isas", lambda: [("avx512", True, reason), *rest])
    (b,) = (b for b in softkern.backends() if b.name == "avx512")
    assert (b.compiled, b.usable, b.reason) == (True, False, reason)
    with pytest.raises(RuntimeError, match=reason), softkern.use_backend("avx512"):
        pytest.fail("entered a backend that cannot run")


@pytest.mark.parametrize("isa_name", ISAS)
def test_the_environment_forces_one_for_the_process(isa_name):
    done = python("-c", REPORT, SOFTKERN_CPU_ISA=isa_name)
    if done.returncode:  # then because it cannot run, and the message says so
        assert isa_name in done.stderr and "SOFTKERN_CPU_ISA" in done.stderr, done.stderr
        assert isa_name != "portable"
        assert not any(b.name == isa_name and b.usable for b in softkern.backends())
    else:
        assert done.stdout.strip() == f"['{isa_name}'] {isa_name}"


@pytest.mark.parametrize("variable", ("SOFTKERN_CPU_ISA", "SOFTKERN_BACKEND"))
def test_an_unknown_name_in_the_environment_is_refused_at_import(variable):
    done = python("-c", "import softkern", **{variable: "mmx"})
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError"), done.stderr
    for word in (variable, "mmx", *ISAS):
        assert word in last


def test_the_backend_variable_chooses():
    done = python("-c", REPORT, SOFTKERN_BACKEND="portable")
    assert done.stdout.strip() == "['portable'] portable", done.stderr


def test_importing_says_nothing():
    done = python("-c", "import softkern")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_isa_computes(isa):
    """Right, and not only named: one value of each op that is known in closed form."""
    x = torch.tensor([[0.0, 0.0, 0.0, 0.0]])
    assert torch.equal(softkern.softmax(x, 1), torch.full((1, 4), 0.25))
    log4 = torch.tensor(4.0).log()
    torch.testing.assert_close(softkern.log_softmax(x, 1), -log4.expand(1, 4))
    torch.testing.assert_close(softkern.cross_entropy(x, torch.tensor([2])), log4)
    y = softkern.softmax(logits(3, 100), 1)
    torch.testing.assert_close(y.sum(1), torch.ones(3))
