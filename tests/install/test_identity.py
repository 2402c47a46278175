# SPDX-License-Identifier: Apache-2.0
"""Under softkern.install torch's functions stay the same objects: pickles, overrides, registries."""

from __future__ import annotations

import copy
import functools
import operator
import pickle
import subprocess
import sys
from itertools import combinations_with_replacement

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cross_entropy_cases import problem
from install_checks import OWNERS, ops_run
from torch.nn.functional import cross_entropy, log_softmax, softmax
from torch.overrides import get_overridable_functions, get_testing_overrides, resolve_name

import softkern

NAMES = tuple(f"{owner}.{name}" for owner, names in OWNERS for name in names)
OWNER_OF = {f"{owner}.{name}": owner for owner, names in OWNERS for name in names}
X, Y, _ = problem((6, 10))

TIMES = ("before", "while", "after")  # softkern is installed

over_names = pytest.mark.parametrize("name", NAMES)


def current(name):
    owner, _, attribute = name.rpartition(".")
    return getattr(eval(owner, {"torch": torch}), attribute)


def others(name):
    """The arguments of a call behind the first one."""
    if name.endswith("linear_cross_entropy"):
        return {"linear_weight": torch.eye(10), "target": Y}
    return {"target": Y} if name.endswith("cross_entropy") else {"dim": 1}


HELD = {name: current(name) for name in NAMES}
CALLS = {
    "imported F.softmax": lambda x: softmax(x, 1),
    "imported F.log_softmax": lambda x: log_softmax(x, dim=1),
    "imported F.cross_entropy": lambda x: cross_entropy(x, Y),
    "partial": functools.partial(HELD["torch.softmax"], dim=1),
    "partial of F": functools.partial(HELD["torch.nn.functional.cross_entropy"], target=Y),
    "bound method": lambda x: x.softmax,
    "arguments in a tuple": lambda x: HELD["torch.Tensor.softmax"](*(x, 1)),
    "arguments in a dict": lambda x: HELD["torch.log_softmax"](**{"input": x, "dim": 1}),
    "map": lambda x: next(map(HELD["torch.special.softmax"], [x], [1])),
    "method caller": lambda x: operator.methodcaller("log_softmax", 1)(x),
    "numpy's integer": lambda x: x.softmax(np.int64(1)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_functions_held_from_before_run_softkern(call):
    def run(x):
        result = call(x)
        return result(1) if callable(result) else result

    before, ops = ops_run(run, X)
    assert not any("softkern" in op for op in ops)
    with softkern.installed():
        now, ops = ops_run(run, X)
    assert sum("softkern" in op for op in ops) == 1, ops
    torch.testing.assert_close(now, before)


class Holder(torch.nn.Module):
    """A model that holds functions, as many do for activations and losses."""

    def __init__(self, name):
        super().__init__()
        self.others = others(name)
        self.function = current(name)
        self.partial = functools.partial(current(name), **self.others)

    def forward(self, x):
        return self.partial(x) + self.function(x, *self.others.values())


@over_names
@pytest.mark.parametrize(("made", "saved"), list(combinations_with_replacement(TIMES, 2)))
def test_models_that_hold_functions_pickle(name, made, saved, restored):
    """Made at one time, saved at the same or a later one, loaded at each."""
    model = data = None
    for time in TIMES:
        if time == "while":
            softkern.install()
        if time == "after":
            softkern.uninstall()
        if time == made:
            model = Holder(name)
        if time == saved:
            data = pickle.dumps(model), pickle.dumps(model.function)
            assert not any(b"softkern" in d for d in data)
            twin = copy.deepcopy(model)
        if data is not None:
            loaded, function = (pickle.loads(d) for d in data)
            for m in (loaded, twin):
                torch.testing.assert_close(m(X), model(X))
            assert function == loaded.function == HELD[name]


@over_names
def test_pickles_are_those_of_torch(name):
    want = pickle.dumps(HELD[name])
    with softkern.installed():
        assert pickle.dumps(current(name)) == want
        assert pickle.loads(want) is HELD[name]


@over_names
def test_cloudpickle(name):
    cloudpickle = pytest.importorskip("cloudpickle", reason="not needed by softkern")
    want = cloudpickle.dumps(HELD[name])
    with softkern.installed():
        assert cloudpickle.dumps(current(name)) == want


SPAWNED = """
import multiprocessing, torch, torch.nn.functional as F

def work(function, argument):
    return function(torch.arange(12.0).view(3, 4), argument).shape

if __name__ == "__main__":
    import softkern
    with softkern.installed():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            calls = [(F.cross_entropy, torch.tensor([0, 1, 3])), (F.softmax, 1), (torch.log_softmax, 1)]
            shapes = pool.starmap(work, [*calls, (torch.Tensor.softmax, 1), (torch.special.softmax, 1)])
    assert shapes == [(), (3, 4), (3, 4), (3, 4), (3, 4)], shapes
"""


def test_functions_go_to_spawned_processes(tmp_path):
    script = tmp_path / "spawned.py"
    script.write_text(SPAWNED)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@over_names
def test_torch_knows_the_functions_by_name(name):
    """What torch's own tests ask of every function that can be overridden."""
    owner = OWNER_OF[name]
    for _ in range(2):
        with softkern.installed():
            assert resolve_name(current(name)) == resolve_name(HELD[name]) == name
            assert eval(resolve_name(current(name)), {"torch": torch}) is current(name)
            assert current(name) in get_overridable_functions()[eval(owner, {"torch": torch})]
            assert current(name) in get_testing_overrides()
            assert hash(current(name)) == hash(HELD[name])


def test_torch_knows_them_if_it_asks_first_while_softkern_is_installed():
    asked = f"""
import torch, softkern
from torch.overrides import resolve_name, get_testing_overrides
names = {NAMES!r}
with softkern.installed():
    functions = [eval(name) for name in names]
    assert [resolve_name(f) for f in functions] == list(names)
    assert all(f in get_testing_overrides() for f in functions)
assert [resolve_name(eval(name)) for name in names] == list(names)
assert all(eval(name) in get_testing_overrides() for name in names)
"""
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


REGISTRY = {HELD[name]: name for name in NAMES}


class Strict(torch.Tensor):
    """Knows the functions of its registry alone."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func not in REGISTRY:
            raise TypeError(f"no implementation of {func}")
        return REGISTRY[func], kwargs


class Duck:
    """Not a tensor, and unwraps what it doesn't know."""

    def __init__(self, value):
        self.value = value

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in REGISTRY:
            return f"own {REGISTRY[func]}"
        return func(*(a.value if isinstance(a, Duck) else a for a in args), **(kwargs or {}))


FUNCTIONAL = {
    "softmax": lambda x: softkern.softmax(x, 1),
    "softmax, an implicit dim": lambda x: softkern.softmax(x),
    "softmax, dtype": lambda x: softkern.softmax(x, 1, dtype=torch.float64),
    "log_softmax": lambda x: softkern.log_softmax(x, 1),
    "cross_entropy": lambda x: softkern.cross_entropy(x, Y, label_smoothing=0.1),
    "cross_entropy, in place": lambda x: softkern.cross_entropy(x, Y, inplace_backward=True),
    "cross_entropy, the target": lambda x: softkern.cross_entropy(X, x),
    "cross_entropy, the weight": lambda x: softkern.cross_entropy(X, Y, x),
}
MODULES = {
    "softmax": softkern.Softmax(1),
    "log_softmax": softkern.LogSoftmax(1),
    "cross_entropy": lambda x: softkern.CrossEntropyLoss(inplace_backward=True)(x, Y),
}
OURS = [*((name.partition(",")[0], f) for name, f in FUNCTIONAL.items()), *MODULES.items()]


@pytest.mark.parametrize("install", (False, True))
@pytest.mark.parametrize(("op", "call"), OURS, ids=[*FUNCTIONAL, *(f"module {name}" for name in MODULES)])
def test_classes_are_handed_torchs_function_by_softkerns(op, call, install):
    if install:
        with softkern.installed():
            name, options = call(X.as_subclass(Strict))
            assert call(Duck(X)) == f"own torch.nn.functional.{op}"
    else:
        name, options = call(X.as_subclass(Strict))
        assert call(Duck(X)) == f"own torch.nn.functional.{op}"
    assert name == f"torch.nn.functional.{op}"
    assert "inplace_backward" not in options, "torch's function has no such argument"


@pytest.mark.parametrize("op", ("softmax", "log_softmax", "cross_entropy"))
def test_classes_see_the_same_call_from_softkern_and_from_torch(op):
    second = Y if op == "cross_entropy" else 1
    seen = []
    for namespace in (softkern, F):
        seen.append(getattr(namespace, op)(X.as_subclass(Strict), second))
    assert seen[0] == seen[1]


@over_names
def test_classes_are_handed_the_function_they_registered(name):
    rest = others(name).values()
    want = current(name)(X.as_subclass(Strict), *rest)
    with softkern.installed():
        assert current(name)(X.as_subclass(Strict), *rest) == want
        assert HELD[name](Duck(X), *rest) == f"own {name}" if "Tensor" not in name else True


def test_a_named_backend_is_not_replaced_by_what_a_class_does():
    class Plain(torch.Tensor):
        pass

    name = next(b.name for b in softkern.backends() if b.active)
    with softkern.use_backend(name), pytest.raises(RuntimeError, match="was asked for"):
        softkern.softmax(X.as_subclass(Plain), 1)


NO_COMPILER = """
import sys, torch, softkern
import torch.nn.functional as F
before = set(sys.modules)
with softkern.installed():
    x = torch.randn(4, 8)
    F.cross_entropy(x, torch.arange(4)), x.softmax(1), torch.log_softmax(x, 1), F.softmax(x, 1)
new = sorted(set(sys.modules) - before)
assert not new, new
assert "torch._dynamo" not in sys.modules and "sympy" not in sys.modules
"""


def test_a_process_that_never_compiles_does_not_load_the_compiler():
    done = subprocess.run([sys.executable, "-c", NO_COMPILER], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


COMPILER_LATER = """
import sys, torch, softkern
import torch.nn.functional as F
from torch.nn.functional import cross_entropy

x, y = torch.randn(4, 8), torch.arange(4)
def f(x):
    return cross_entropy(x, y) + torch.softmax(x, 1).sum()

with softkern.installed():
    assert "torch._dynamo" not in sys.modules
    import torch._dynamo.testing
    count = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    g = torch.compile(f, backend=count, fullgraph=True)
    g(x)
for _ in range(2):
    g(x)
    with softkern.installed():
        g(x)
assert count.frame_count == 2, count.frame_count
targets = [[str(n.target) for n in graph.graph.nodes] for graph in count.graphs]
assert ["softkern.cross_entropy" in t for t in targets] == [True, False], targets
assert not any("softkern.softmax" in t for t in targets), targets
"""


def test_the_compiler_is_told_when_it_is_imported_later():
    done = subprocess.run([sys.executable, "-c", COMPILER_LATER], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("install", (False, True))
def test_classes_with_overrides_compile(install, restored):
    class Plain(torch.Tensor):
        pass

    x = X.as_subclass(Plain)
    calls = (
        lambda x: F.cross_entropy(x, Y),
        lambda x: F.softmax(x, 1),
        lambda x: softkern.softmax(x, 1),
        lambda x: softkern.cross_entropy(x, Y),
    )
    want = [call(x) for call in calls]
    if install:
        softkern.install()
    for call, expected in zip(calls, want, strict=True):
        torch._dynamo.reset()
        got = torch.compile(call, fullgraph=True, backend="eager")(x)
        assert type(got) is Plain
        torch.testing.assert_close(got.as_subclass(torch.Tensor), expected.as_subclass(torch.Tensor))
