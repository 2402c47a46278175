# SPDX-License-Identifier: Apache-2.0
"""softkern behind torch's names: the replaced names, the results, and restoring everything."""

from __future__ import annotations

import contextlib
import copy
import pickle
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from compare import assert_same_bits
from cross_entropy_cases import problem
from install_checks import LINEAR, OWNERS, ops_run

import softkern

NAMES = tuple(f"{owner}.{name}" for owner, names in OWNERS for name in names)
X, Y, _ = problem((6, 10))
W = torch.linspace(-1, 1, 50).sin().reshape(5, 10)
Y5 = Y % 5


def current(name):
    owner, _, attribute = name.rpartition(".")
    return getattr(eval(owner, {"torch": torch}), attribute)


TORCHS = {name: current(name) for name in NAMES}


def arguments(name, x=X):
    """Of a call of the name's function."""
    return (x, W, Y5) if "linear" in name else (x, Y if name.endswith("cross_entropy") else 1)


def softkern_runs(name) -> bool:
    """Whether the name's function runs softkern's op."""
    _, ops = ops_run(lambda: current(name)(*arguments(name)))
    return any("softkern" in op for op in ops)


CALLS = {
    "F.softmax": lambda x: F.softmax(x, 1),
    "F.softmax, dim by name": lambda x: F.softmax(x, dim=1),
    "F.softmax, dtype": lambda x: F.softmax(x, 1, dtype=torch.float64),
    "F.log_softmax": lambda x: F.log_softmax(x, -1, 3, None),
    "F.cross_entropy": lambda x: F.cross_entropy(x, Y),
    "F.cross_entropy, options": lambda x: F.cross_entropy(x, Y, None, reduction="sum", label_smoothing=0.1),
    "torch.softmax": lambda x: torch.softmax(x, 1),
    "torch.softmax, all by name": lambda x: torch.softmax(input=x, dim=1, dtype=None),
    "torch.log_softmax": lambda x: torch.log_softmax(x, dim=0, dtype=torch.float64),
    "Tensor.softmax": lambda x: x.softmax(-1),
    "Tensor.softmax, unbound": lambda x: torch.Tensor.softmax(x, 1, torch.float64),
    "Tensor.log_softmax": lambda x: x.log_softmax(dim=1),
    "special.softmax": lambda x: torch.special.softmax(x, 1),
    "special.log_softmax": lambda x: torch.special.log_softmax(x, 1, dtype=torch.float64),
    "nn.Softmax": torch.nn.Softmax(1),
    "nn.LogSoftmax": torch.nn.LogSoftmax(1),
    "nn.Softmax2d": lambda x: torch.nn.Softmax2d()(x.view(1, 2, 3, 10)),
    "nn.CrossEntropyLoss": lambda x: torch.nn.CrossEntropyLoss(torch.ones(10), label_smoothing=0.1)(x, Y),
}
if LINEAR:
    HEAD = torch.nn.LinearCrossEntropyLoss(10, 5, bias=True, reduction="sum")
    MANY = torch.nn.LinearCrossEntropyLoss(10, 5, out_features=(2, 3))
    CALLS |= {
        "F.linear_cross_entropy": lambda x: F.linear_cross_entropy(x, W, Y5),
        "F.linear_cross_entropy, options": lambda x: F.linear_cross_entropy(
            x, W, Y5, reduction="none", ignore_index=2, options=torch.nn.LinearCrossEntropyOptions()
        ),
        "nn.LinearCrossEntropyLoss": lambda x: HEAD(x, Y5),
        "nn.LinearCrossEntropyLoss, K-dim": lambda x: MANY(x, Y5[:, None, None].expand(6, 2, 3)),
    }
over_calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@over_calls
def test_softkern_computes_it_and_then_torch_does_again(call):
    before, ops = ops_run(call, X)
    assert not any("softkern" in op for op in ops)
    with softkern.installed():
        ours, ops = ops_run(call, X)
        assert [op for op in ops if "softmax" in op or "entropy" in op or "nll" in op] == [
            op for op in ops if "softkern" in op
        ]
        assert sum("softkern" in op for op in ops) == 1
    after, _ = ops_run(call, X)
    assert_same_bits(after, before)
    torch.testing.assert_close(ours, before)


class Plain(torch.Tensor):
    """A subclass that overrides nothing."""

    __torch_function__ = torch._C._disabled_torch_function_impl


# What torch accepts and softkern does not: torch's answer, bit for bit.
INT = torch.arange(6).view(2, 3)
LEFT_TO_TORCH = {
    "out": lambda: torch.softmax(X, 1, out=torch.empty(6, 10)),
    "out and dtype": lambda: torch.softmax(X, 1, dtype=torch.float64, out=torch.empty(6, 10).double()),
    "out=None": lambda: torch.softmax(X, 1, out=None),
    "numpy's names": lambda: torch.log_softmax(x=X, axis=1),
    "a tensor for dim": lambda: torch.softmax(X, torch.tensor(1)),
    "a Python type": lambda: torch.softmax(X, 1, dtype=float),
    "sparse": lambda: torch.sparse.softmax(X.to_sparse(), 1).to_dense(),
    "sparse, by the method": lambda: X.to_sparse().softmax(1).to_dense(),
    "complex": lambda: torch.softmax(X, 1, dtype=torch.complex64),
    "int and dtype": lambda: F.softmax(INT, 1, dtype=torch.float32),
    "a probability in another dtype": lambda: F.cross_entropy(X, X.double().softmax(1)),
}


def outcome(call):
    """The result, or the exception's type and text."""
    try:
        return call()
    except Exception as e:
        return type(e), str(e)


@pytest.mark.parametrize("call", LEFT_TO_TORCH.values(), ids=LEFT_TO_TORCH)
def test_what_softkern_does_not_take_is_as_before(call):
    before = outcome(call)
    with softkern.installed():
        now = outcome(call)
    if isinstance(before, tuple):
        assert now == before
    else:
        torch.testing.assert_close(now, before)


def test_out_is_filled_and_returned():
    out = torch.empty(6, 10)
    with softkern.installed():
        y = torch.softmax(X, 1, out=out)
    assert y is out
    assert_same_bits(out, torch.softmax(X, 1))


WRONG = {
    "no dim": lambda: torch.softmax(X),
    "no dim of the method": lambda: X.softmax(),
    "dim=None": lambda: torch.softmax(X, None),
    "a float": lambda: torch.softmax(X, 1.0),
    "a bool": lambda: F.softmax(X, True),
    "out of range": lambda: X.softmax(5),
    "a name": lambda: torch.special.softmax(X, "rows"),
    "a list": lambda: torch.softmax([1.0], 0),
    "a list, F": lambda: F.softmax([1.0], 0),
    "twice": lambda: torch.softmax(X, 1, dim=1),
    "twice, the method": lambda: X.softmax(1, input=X),
    "too many": lambda: torch.softmax(X, 1, None, None),
    "unknown": lambda: torch.softmax(X, 1, keepdim=True),
    "integers": lambda: torch.softmax(INT, 1),
    "not a dtype": lambda: X.softmax(1, "float32"),
    "a class too many": lambda: F.cross_entropy(X, Y + 10),
    "a reduction": lambda: F.cross_entropy(X, Y, reduction="max"),
    "shapes": lambda: F.cross_entropy(X, Y[:2]),
}
if LINEAR:
    WRONG |= {
        "features": lambda: F.linear_cross_entropy(X[:, :9], W, Y5),
        "more dims than torch takes": lambda: F.linear_cross_entropy(X.view(2, 3, 10), W, Y5.view(2, 3)),
        "ignore_index": lambda: F.linear_cross_entropy(X, W, torch.ones(6, 5), ignore_index=0),
        "softkern's own keyword": lambda: F.linear_cross_entropy(X, W, Y5, z_loss=0.1),
    }


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_errors_are_torchs(call):
    before = outcome(call)
    assert isinstance(before, tuple), "torch accepts it"
    with softkern.installed():
        assert outcome(call) == before


def test_install_says_what_it_is_behind_and_uninstall_leaves_nothing(restored):
    own = {owner: set(vars(eval(owner, {"torch": torch}))) for owner, _ in OWNERS}
    code = F.cross_entropy.__code__
    assert softkern.install() == NAMES
    assert all(softkern_runs(name) for name in NAMES)
    assert all(current(name) is TORCHS[name] for name in NAMES)
    softkern.uninstall()
    assert not any(softkern_runs(name) for name in NAMES)
    assert all(current(name) is TORCHS[name] for name in NAMES)
    assert F.cross_entropy.__code__ is code and not vars(F.cross_entropy)
    assert all(not vars(current(f"torch.nn.functional.{name}")) for name in LINEAR)
    assert {owner: set(vars(eval(owner, {"torch": torch}))) for owner, _ in OWNERS} == own


def test_calls_count(restored):
    with softkern.installed() as names:
        assert names == NAMES
        assert softkern.install() == NAMES
        with softkern.installed():
            assert softkern_runs(NAMES[0])
        softkern.uninstall()
        assert softkern_runs(NAMES[0]) and softkern_runs(NAMES[2])
    assert not softkern_runs(NAMES[0]) and not softkern_runs(NAMES[2])
    with pytest.raises(RuntimeError, match="softkern is not installed"):
        softkern.uninstall()


def test_an_exception_in_the_block_uninstalls():
    with pytest.raises(ZeroDivisionError), softkern.installed():
        raise ZeroDivisionError
    assert not any(softkern_runs(name) for name in NAMES)


def test_a_torch_that_is_built_otherwise_is_left_as_it_is(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(softkern.patching, "_IN_C", {**softkern.patching._IN_C, len: "softmax"})
        with pytest.raises(
            ValueError, match="not a C function of arguments and keywords: <built-in function len>"
        ):
            softkern.install()
    assert not any(softkern_runs(name) for name in NAMES)
    with pytest.raises(RuntimeError, match="not installed"):
        softkern.uninstall()


@pytest.mark.parametrize("name", NAMES)
def test_somebody_elses_patch_is_not_thrown_away(name, restored, monkeypatch):
    owner, _, attribute = name.rpartition(".")
    owner = eval(owner, {"torch": torch})

    def theirs(*args, **kwargs):
        return TORCHS[name](*args, **kwargs)

    softkern.install()
    with monkeypatch.context() as patch:
        patch.setattr(owner, attribute, theirs)
        with pytest.raises(RuntimeError) as error:
            softkern.uninstall()
        assert f"{name} (now {theirs!r})" in str(error.value)
        assert str(error.value).count("now") == 1, "names that nobody touched"
        assert current(name) is theirs
        assert all(softkern_runs(other) for other in NAMES), "half uninstalled"
        with softkern.installed():  # not the last one: nothing to restore
            pass
    softkern.uninstall()
    assert all(current(n) is TORCHS[n] and not softkern_runs(n) for n in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_what_somebody_had_put_there_before_is_put_back(name, restored, monkeypatch):
    owner, _, attribute = name.rpartition(".")
    calls = []

    def theirs(*args, **kwargs):
        calls.append(args)
        return TORCHS[name](*args, **kwargs)

    monkeypatch.setattr(eval(owner, {"torch": torch}), attribute, theirs)
    with softkern.installed():
        assert current(name) is not theirs
        current(name)(*arguments(name))
        assert not calls
        tagged = X.as_subclass(Plain)  # which softkern leaves to what was there
        current(name)(*arguments(name, tagged))
        assert calls
    assert current(name) is theirs


def test_threads_count_together(restored):
    """Each thread finds softkern installed for as long as it has it, whatever the others do."""
    barrier, wrong = threading.Barrier(8), []

    def work():
        barrier.wait()
        for _ in range(50):
            with softkern.installed():
                wrong.extend(n for n in NAMES if not softkern_runs(n))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert not any(softkern_runs(name) for name in NAMES)


def test_calls_of_other_threads_while_it_comes_and_goes(restored):
    """A call finds torch's function or softkern's, never half of one."""
    want, done, wrong = [current(n)(*arguments(n)) for n in NAMES], threading.Event(), []

    def call():
        while not done.is_set():
            for name, expected in zip(NAMES, want, strict=True):
                got = current(name)(*arguments(name))
                if not torch.allclose(got, expected):
                    wrong.append(name)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for t in threads:
        t.start()
    for _ in range(200):
        with softkern.installed():
            pass
    done.set()
    for t in threads:
        t.join()
    assert not wrong


def test_modules_stay_torchs():
    loss = torch.nn.CrossEntropyLoss(ignore_index=3)
    data = pickle.dumps(loss)
    with softkern.installed():
        made = torch.nn.CrossEntropyLoss(ignore_index=3)
        assert type(made) is type(loss) is type(pickle.loads(data)) is type(copy.deepcopy(loss))
        assert pickle.dumps(made) == pickle.dumps(loss) and b"softkern" not in pickle.dumps(made)
        assert isinstance(softkern.CrossEntropyLoss(), torch.nn.CrossEntropyLoss)
        assert_same_bits(made(X, Y), softkern.cross_entropy(X, Y, ignore_index=3))


@pytest.mark.parametrize("call", (lambda: F.softmax(X), lambda: torch.nn.LogSoftmax()(X)), ids=("F", "nn"))
def test_the_warning_points_where_torchs_does(call):
    where = []
    for state in (contextlib.nullcontext, softkern.installed):
        with state(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        where.append([(str(w.message), w.filename, w.lineno) for w in caught])
    assert len(where[0]) == 1
    assert where[0] == where[1]
