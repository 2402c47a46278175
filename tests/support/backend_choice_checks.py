# SPDX-License-Identifier: Apache-2.0
"""The way to Triton's kernels, with a stand-in: a program that kernels/triton/test_choice.py starts."""

from __future__ import annotations

import json
import sys
import threading
import traceback
from contextlib import contextmanager
from pathlib import Path

import triton_stand_in as triton  # before softkern
from isas import ISAS

# isort: split
import torch
import torch.nn.functional as F
from cases import upstream
from cross_entropy_cases import KINDS, REDUCTIONS, problem
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import softkern
from softkern import _C, info, verify
from softkern.verify import runner

CHECKS = {}
ISA = _C.active_isa()
probe = sys.modules["softkern.backends"]._triton_computes


def check(function):
    CHECKS[function.__name__] = function
    return function


def named():
    return softkern.use_backend("triton")


@contextmanager
def ran(*names: str, isa: str = "triton"):
    """These of the stand-in's kernels, in this order, and no others."""
    _C.set_last("", "")
    triton.RAN.clear()
    yield
    assert list(names) == triton.RAN, triton.RAN
    assert _C.last_isa() == isa, _C.last_isa()


@contextmanager
def raises(kind: type[Exception], *words: str):
    try:
        yield
    except kind as error:
        assert all(word in str(error) for word in words), str(error)
    else:
        raise AssertionError(f"no {kind.__name__}")


@contextmanager
def asking(answer):
    """Another probe; yields what it was asked."""
    asked: list[str] = []

    def ask(device_type: str) -> bool:
        asked.append(device_type)
        return answer(device_type)

    _C.set_triton_probe(ask)
    try:
        yield asked
    finally:
        _C.set_triton_probe(probe)


class Seen(TorchDispatchMode):
    def __enter__(self):
        self.ops = []
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops.append(func._schema.name)
        return func(*args, **(kwargs or {}))


X, TARGET, _ = problem((6, 10))


@check
def softmaxes_forward_and_backward():
    for name in ("softmax", "log_softmax"):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            x = X.to(dtype, copy=True).requires_grad_()
            for kind in ("ones", "random"):
                with named(), ran(name, f"{name}_backward"):
                    y = getattr(softkern, name)(x, 1)
                    g = upstream(y, kind)
                    (dx,) = torch.autograd.grad(y, x, g)
                want = getattr(F, name)(x, 1)
                assert torch.equal(y, want)
                assert torch.equal(dx, torch.autograd.grad(want, x, g)[0])


@check
def cross_entropy_forward_and_backward():
    for kind in KINDS:
        for reduction in REDUCTIONS:
            x, target, kwargs = problem((6, 10), torch.float64, **kind)
            x.requires_grad_()
            for upstream_kind in ("ones", "random"):
                with named(), ran("cross_entropy_rows", "scale_gradient in place"):
                    loss = softkern.cross_entropy(x, target, reduction=reduction, **kwargs)
                    g = upstream(loss, upstream_kind)
                    (dx,) = torch.autograd.grad(loss, x, g)
                want = F.cross_entropy(x, target, reduction=reduction, **kwargs)
                assert_close(loss, want)
                assert_close(dx, torch.autograd.grad(want, x, g)[0])


@check
def a_retained_graph_and_the_second_backward():
    x = X.clone().requires_grad_()
    with named(), ran("cross_entropy_rows", "scale_gradient", "scale_gradient in place"):
        loss = softkern.cross_entropy(x, TARGET)
        (first,) = torch.autograd.grad(loss, x, torch.tensor(3.0), retain_graph=True)
        (second,) = torch.autograd.grad(loss, x, torch.tensor(3.0))
    assert torch.equal(first, second)


@check
def the_gradient_in_place_of_the_logits():
    leaf = X.clone().requires_grad_()
    x = leaf.clone()
    with named(), ran("cross_entropy_rows over the logits", "scale_gradient in place"):
        softkern.cross_entropy(x, TARGET, inplace_backward=True).backward()
    (want,) = torch.autograd.grad(F.cross_entropy(leaf, TARGET), leaf)
    assert_close(leaf.grad, want)


@check
def without_gradients():
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), named():
            x = X.clone()
            with ran("softmax", "log_softmax", "cross_entropy_rows"):
                softkern.softmax(x, 1), softkern.log_softmax(x, 1), softkern.cross_entropy(x, TARGET)
            whole = torch.zeros(2, 3, dtype=torch.int64)
            for module in (F, softkern):
                with ran(isa=""), raises(RuntimeError, "not implemented for 'Long'"):
                    module.softmax(whole, 1)


@check
def a_choice_is_put_back():
    with named():
        for isa in (name for name, _, reason in _C.isas() if not reason):
            with softkern.use_backend(isa):
                assert (_C.thread_choice(), _C.required()) == (isa, isa)
                with ran(isa=isa):
                    softkern.softmax(X, 1)
        assert (_C.thread_choice(), _C.required()) == ("triton", "triton")
        with ran("softmax"):
            softkern.softmax(X, 1)
    assert (_C.thread_choice(), _C.required()) == ("", "")
    with raises(ZeroDivisionError), named():
        raise ZeroDivisionError
    with softkern.use_backend(ISA), named(), ran("softmax"):
        softkern.softmax(X, 1)
    with ran(isa=ISA):
        softkern.cross_entropy(X.clone().requires_grad_(), TARGET).backward()


@check
def a_choice_of_the_process_is_every_threads():
    _C.choose_for_process("triton", True)
    try:
        seen = []
        thread = threading.Thread(target=lambda: seen.append((_C.required(), softkern.softmax(X, 1))))
        with ran("softmax", "softmax"):
            softkern.softmax(X, 1)
            thread.start()
            thread.join()
        assert seen[0][0] == "triton"
        with softkern.use_backend("portable"), ran(isa="portable"):
            softkern.softmax(X, 1)
    finally:
        _C.choose_for_process("", False)
    with ran(isa=ISA):
        softkern.softmax(X, 1)


@check
def a_choice_of_a_thread_is_that_threads():
    with named(), ran(isa=""):
        thread = threading.Thread(target=lambda: softkern.softmax(X, 1))
        thread.start()
        thread.join()


@check
def a_backward_is_computed_by_the_choice_at_its_time():
    for name in ("softmax", "cross_entropy"):
        x = X.clone().requires_grad_()

        def call(name=name, x=x):
            return getattr(softkern, name)(x, TARGET if name == "cross_entropy" else 1)

        def gradient(y, x=x):
            return torch.autograd.grad(y, x, torch.full_like(y, 0.5))[0]

        want = gradient(call())
        with named():
            y = call()
        with ran(isa=ISA):
            assert_close(gradient(y), want)
        y = call()
        with named(), ran("softmax_backward" if name == "softmax" else "scale_gradient in place"):
            assert_close(gradient(y), want)


@check
def what_it_does_not_take_is_refused():
    asked = "backend 'triton' was asked for and does not compute"
    with named():
        for call in (
            lambda: softkern.softmax(torch.zeros(2, 3, device="meta"), 1),
            lambda: torch.func.vmap(lambda x: softkern.log_softmax(x, 0))(torch.zeros(2, 3)),
            lambda: softkern.cross_entropy(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.float64)),
        ):
            with raises(RuntimeError, asked):
                call()
        with raises(ValueError, "batch_size"):  # torch's opinion comes first
            softkern.cross_entropy(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))


@check
def cpu_tensors_where_it_computes_on_a_gpu_alone():
    ops = torch.ops.softkern
    y = softkern.softmax(X, 1)
    with asking(lambda device_type: device_type == "cuda") as asked, named():
        for _ in range(2):
            with ran(isa=""), raises(RuntimeError, "backend 'triton' was asked for"):
                softkern.softmax(X, 1)
            with raises(RuntimeError, "backend 'triton' was asked for"), torch.inference_mode():
                softkern.log_softmax(X.clone(), 1)
            with raises(RuntimeError, "backend 'triton' was asked for and does not compute tensors on cpu"):
                ops.softmax_backward(y, y, 1)
            with raises(RuntimeError, "backend 'triton' was asked for"):
                softkern.cross_entropy(X, TARGET)
        assert asked == ["cpu"]
    with asking(lambda device_type: False) as asked:
        softkern.softmax(X, 1)
        assert asked == []


@check
def a_probe_that_raises():
    def broken(device_type: str) -> bool:
        raise OSError("no such library")

    with asking(broken):
        with FakeTensorMode(), Seen() as seen:
            softkern.softmax(torch.empty(2, 3, device="xpu"), 1)
        assert any(op.startswith("aten::") and "softmax" in op for op in seen.ops), seen.ops
        _C.choose_for_thread("triton")
        try:
            # Through a library of C, the exception's type is a part of the text.
            extension = _C.binding()[0] == "pybind"
            with raises(OSError if extension else RuntimeError, "no such library"):
                softkern.softmax(X, 1)
        finally:
            _C.choose_for_thread("")


@check
def fake_tensors_of_a_gpu():
    # Where the CUDA kernels run, Triton is not asked for CUDA's tensors.
    (cuda,) = (b for b in softkern.backends() if b.name == "cuda")
    devices = ("xpu",) if cuda.usable and cuda.device == "cuda" else ("cuda", "xpu")
    for there in (False, True):
        for device in devices:
            with asking(lambda device_type, there=there: there) as asked, FakeTensorMode(), Seen() as seen:
                x = torch.empty(2, 3, device=device)
                softkern.softmax(x, 1)
                softkern.cross_entropy(x, torch.zeros(2, dtype=torch.int64, device=device))
                ours = {op for op in seen.ops if op.startswith("softkern")}
                all_of_them = {"softkern::softmax", "softkern::cross_entropy"}
                assert ours == (all_of_them if there else set()), ours
                assert asked == [device]
                with raises(RuntimeError, "'portable' was asked for"), softkern.use_backend("portable"):
                    softkern.softmax(x, 1)
                with named():
                    if there:
                        softkern.softmax(x, 1)
                    else:
                        with raises(RuntimeError, "'triton' was asked for"):
                            softkern.softmax(x, 1)


@check
def compiled():
    @torch.compile(backend="aot_eager", fullgraph=True)
    def step(x, target):
        return softkern.cross_entropy(x, target) + softkern.log_softmax(x, 1).sum()

    x = X.clone().requires_grad_()
    step(x, TARGET).backward()
    want, x.grad = x.grad, None
    with named():
        step(x, TARGET)
        triton.RAN.clear()
        step(x, TARGET).backward()
        assert {"cross_entropy_rows", "scale_gradient", "log_softmax", "log_softmax_backward"} == {
            name.removesuffix(" in place") for name in triton.RAN
        }, triton.RAN
    assert_close(x.grad, want)


@check
def installed():
    with softkern.installed(), named(), ran("softmax", "cross_entropy_rows"):
        F.softmax(X, 1)
        torch.nn.CrossEntropyLoss()(X, TARGET)


@check
def the_registry():
    def state():
        return {b.name: (b.device, b.usable, b.reason, b.active) for b in softkern.backends()}

    assert [b.name for b in softkern.backends()] == [*ISAS, "cuda", "triton"]
    assert state()["triton"] == ("cpu", True, "", False) and state()[ISA][3]
    with named():
        assert state()["triton"] == ("cpu", True, "", True)
        assert [name for name, values in state().items() if values[3]] == ["triton"]
        assert info.environment()["active on cpu"] == "triton (forced)"
    with softkern.use_backend("portable"):
        assert [name for name, values in state().items() if values[3]] == ["portable"]


@check
def verification():
    assert "triton" not in runner.choose("cpu", None)
    assert runner.choose("cpu", ["triton"]) == ["triton"]
    whole = runner.matrix
    runner.matrix = lambda quick: (c for c in whole(quick) if c.dtype == "float64" and c.group == "upstream")
    try:
        names = list(dict.fromkeys((ISA, "triton", "portable")))
        report = verify.run(backends=names, quick=True)
        assert report.backends == names
        by_group = {}
        for row in report.rows:
            by_group.setdefault(row.group, set()).add(row.backend)
        isas = set(names) - {"triton"}
        assert by_group["upstream"] == by_group["a row alone"] == set(names)
        assert by_group["threads"] == isas
        assert by_group.get(f"same bits as {ISA}", set()) == isas - {ISA}
        assert not any(f.backend == "triton" and f.group == "upstream" for f in report.failures)
        alone = verify.run(backends=["triton"], quick=True)
        assert "bits of the backends against each other" in alone.not_checked
        assert "backend triton" not in alone.not_checked
        assert "named" in verify.run(quick=True).not_checked["backend triton"]
    finally:
        runner.matrix = whole


@check
def planted():
    with ran("softmax", isa=ISA):
        softkern.softmax(X, 1)


def main(path: str) -> None:
    results = {}
    for name, function in CHECKS.items():
        try:
            function()
            results[name] = ""
        except Exception:
            results[name] = traceback.format_exc()
        Path(path).write_text(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1])
