# SPDX-License-Identifier: Apache-2.0
"""Many threads and many processes: the bits are those of a single one, and none waits for ever."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import process_cases
import pytest
import torch
import torch.nn.functional as F
from cases import logits, name, upstream
from compare import assert_same_bits
from compatibility import OPS
from cross_entropy_cases import KINDS, problem
from isas import cpu_isas
from tolerances import DTYPES
from watch import Watch

import softkern

WORKERS = 8
over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=name)


def work(seed: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Every op on tensors of one thread's own, small ones and some that are shared among torch's threads."""
    results = []
    for shape, kind in (((5 + seed, 7), KINDS[1]), ((40 + seed, 10, 3), KINDS[2]), ((90 + seed, 900), {})):
        x, target, kwargs = problem(shape, dtype, **kind)
        results += process_cases.of_every_op(x + seed / 8, target, kwargs)
    return results


def at_once(f, arguments) -> list:
    """f of each argument, in as many threads, none of which starts before all are there."""
    barrier = threading.Barrier(len(arguments), timeout=60)

    def start(argument):
        barrier.wait()
        return f(argument)

    with ThreadPoolExecutor(len(arguments)) as pool:
        return [future.result(timeout=60) for future in [pool.submit(start, a) for a in arguments]]


@pytest.mark.feature("several Python threads")
@pytest.mark.parametrize("op", OPS)
def test_who_computes_in_another_thread(op, watch):
    x, target, _ = problem((20, 7))

    def call(seen):
        leaf = x.clone().requires_grad_()
        with seen:
            y = getattr(softkern, op)(leaf, target if op == "cross_entropy" else 1)
            return torch.autograd.grad(y, leaf, upstream(y, "random"))[0]

    want = call(Watch())
    seen = Watch()
    assert_same_bits(at_once(call, [seen])[0], want)
    watch.seen_elsewhere(seen)


@over_dtypes
@pytest.mark.parametrize("torchs", (1, 2), ids="{}-of-torchs".format)
def test_many_threads_at_once_have_the_bits_of_one(torchs, dtype):
    def rounds(seed):
        torch.set_num_threads(torchs)
        return [work(seed, dtype) for _ in range(3)]

    alone = [work(seed, dtype) for seed in range(WORKERS)]
    for want, runs in zip(alone, at_once(rounds, range(WORKERS)), strict=True):
        for results in runs:
            for a, b in zip(results, want, strict=True):
                assert_same_bits(a, b)


def test_threads_that_share_the_logits():
    """Readers of one tensor, each with a graph and a backward of its own."""
    x, target, kwargs = problem((300, 70), weight=True, smoothing=0.1)
    leaf = x.clone().requires_grad_()

    def losses(_):
        for _ in range(5):
            loss = softkern.cross_entropy(leaf, target, **kwargs)
            yield loss.detach(), torch.autograd.grad(loss, leaf)[0]

    want = next(losses(None))
    for runs in at_once(lambda i: list(losses(i)), range(WORKERS)):
        for got in runs:
            for a, b in zip(got, want, strict=True):
                assert_same_bits(a, b)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=name)
def test_the_weight_of_many_rows_does_not_depend_on_the_number_of_threads(dtype):
    """Added up in blocks of rows by as many threads as there are, some rows ignored."""
    x, target = logits(20_011, 3, dtype=dtype), torch.arange(20_011) % 3
    target[::7] = -100
    weight = torch.tensor([0.1, 1.7, 0.9], dtype=dtype)
    want = F.cross_entropy(x.double(), target, weight.double())
    counted = weight.double()[target[target >= 0]].sum()
    threads = torch.get_num_threads()
    got = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            got.append(softkern.cross_entropy(x, target, weight))
    finally:
        torch.set_num_threads(threads)
    for loss in got:
        assert_same_bits(loss, got[0])
    none = softkern.cross_entropy(x.float(), target, weight.float(), reduction="none").double()
    assert torch.finfo(dtype).eps >= abs(got[0].double() / want - 1)
    assert abs(none.sum() / counted / want - 1) <= 1e-6


def test_threads_that_add_to_one_gradient():
    """backward() from several threads: autograd adds, and no addend is lost or counted twice."""
    x, target, kwargs = problem((200, 50), torch.float64)
    leaves = {ns: x.clone().requires_grad_() for ns in (softkern, F)}

    def backward(_):
        for _ in range(5):
            softkern.cross_entropy(leaves[softkern], target, **kwargs).backward()

    at_once(backward, range(WORKERS))
    for _ in range(5 * WORKERS):
        F.cross_entropy(leaves[F], target, **kwargs).backward()
    torch.testing.assert_close(leaves[softkern].grad, leaves[F].grad, rtol=1e-13, atol=1e-15)


def test_a_backend_chosen_in_one_thread_is_that_threads():
    names = [b.name for b in cpu_isas() if b.usable]
    if len(names) < 2:
        pytest.skip("a single instruction set runs here, or one is forced: nothing to tell apart")
    default = next(b.name for b in softkern.backends() if b.active and b.device == "cpu")
    x, target, _ = problem((40, 20))

    def ran():
        seen = set()
        leaf = x.clone().requires_grad_()
        for _ in range(200):
            softkern.cross_entropy(leaf, target).backward()
            seen.add(softkern._C.last_isa())
            softkern.softmax(x, 1)
            seen.add(softkern._C.last_isa())
        return seen

    def chosen(choice):
        if choice is None:
            return ran()
        with softkern.use_backend(choice):
            return ran()

    asked = [*names, None, *reversed(names), None]
    for choice, seen in zip(asked, at_once(chosen, asked), strict=True):
        assert seen == {choice or default}
    assert softkern._C.thread_choice() == ""


def test_errors_in_one_thread_do_not_disturb_the_others():
    x, target, _ = problem((64, 33))
    far, want = torch.full_like(target, 33), softkern.cross_entropy(x, target)

    def alternately(index):
        for _ in range(50):
            if index % 2:
                with pytest.raises(IndexError, match="Target 33 is out of bounds"):
                    softkern.cross_entropy(x, far)
            else:
                assert_same_bits(softkern.cross_entropy(x, target), want)

    at_once(alternately, range(WORKERS))


def ticks_during(f) -> int:
    """How often another thread ran while `f` did.

    Threads take turns after a switch interval, which is set to a day: only a call that gives the interpreter
    lock away lets the other one run.
    """
    ticks, stop = [0], threading.Event()

    def tick():
        while not stop.is_set():
            ticks[0] += 1
            time.sleep(0)  # gives the lock back

    other, interval = threading.Thread(target=tick), sys.getswitchinterval()
    other.start()
    try:
        sys.setswitchinterval(86400)
        time.sleep(0.01)  # the other thread begins to wait anew, by the new interval
        before = ticks[0]
        f()
        return ticks[0] - before
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        other.join()


BIG = logits(3000, 2000).requires_grad_()
TARGET = torch.arange(3000) % 2000


@pytest.mark.parametrize(
    "call",
    (
        lambda: softkern.softmax(BIG, 1),
        lambda: softkern.log_softmax(BIG, 0),
        lambda: softkern.cross_entropy(BIG, TARGET),
    ),
    ids=("softmax", "log_softmax", "cross_entropy"),
)
def test_the_interpreter_lock_is_released(call):
    """Some milliseconds without the lock; on a busy machine the other thread may miss a few of them."""
    assert any(ticks_during(call) for _ in range(50))


def test_a_call_that_keeps_the_lock_shows():
    numbers = list(range(300000, 0, -1))
    assert not any(ticks_during(lambda: sorted(numbers)) for _ in range(5))


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """{case: [what each process computed]} of process_cases.py; of a run that hangs, what it had by then."""
    if not hasattr(os, "fork"):
        pytest.skip("this system does not fork")
    folder = tmp_path_factory.mktemp("processes")
    script, out = Path(process_cases.__file__), folder / "out"
    command = [sys.executable, "-W", "error", str(script), str(out)]
    with (folder / "log").open("w+") as log:
        try:
            subprocess.run(command, stdout=log, stderr=log, timeout=240, check=False)
        except subprocess.TimeoutExpired:
            print("not done after 240 s", file=log)
        log.seek(0)
        text = log.read()
    return (torch.load(out) if out.exists() else {}), text


@pytest.mark.parametrize("case", process_cases.CASES)
def test_processes_have_the_bits_of_this_one(case, processes):
    results, log = processes
    assert case in results, f"it did not come to this: {log}"
    want = process_cases.compute()
    assert results[case]
    for of_one in results[case]:
        for a, b in zip(of_one, want, strict=True):
            assert_same_bits(a, b)


def test_batches_of_forked_workers_are_those_of_none(processes):
    results, log = processes
    assert "batches" in results, f"it did not come to this: {log}"
    without, forked = results["batches"]
    assert len(without) == len(forked) == 4
    for a, b in zip(forked, without, strict=True):
        assert_same_bits(a, b)
