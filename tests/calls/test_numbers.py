# SPDX-License-Identifier: Apache-2.0
"""Numbers of other types than Python's: F's value from the kernels if F accepts them, otherwise F's error."""

from __future__ import annotations

import enum
import fractions

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from install_checks import ops_run
from messages import X, Y, raised, text
from torch.fx.experimental.proxy_tensor import make_fx

import softkern


class Kind(enum.IntEnum):
    ONE = 1


class Int(int):
    """What it says as an index is not what it is: F looks at neither method."""

    def __index__(self):
        return 0

    __int__ = __index__


class Float(float):
    def __float__(self):
        return 0.5


class Index:
    def __index__(self):
        return 1


INTEGERS = {
    **{t.__name__: t(1) for t in (np.int8, np.int16, np.int32, np.int64)},
    **{t.__name__: t(1) for t in (np.uint8, np.uint16, np.uint32, np.uint64)},
    "IntEnum": Kind.ONE,
    "a subclass of int": Int(1),
    "a tensor": torch.tensor(1),
    "a tensor of int8": torch.tensor(1, dtype=torch.int8),
}
INDICES = {
    "an array": np.array(1),
    "an array of int32": np.array(1, dtype=np.int32),
    "an object with __index__": Index(),
}
DOUBLES = {
    **{t.__name__: t(0.25) for t in (np.float16, np.float32, np.float64, np.longdouble)},
    "a subclass of float": Float(0.25),
    "a tensor": torch.tensor(0.25),
    "a tensor of float64": torch.tensor(0.25, dtype=torch.float64),
    "a tensor of bool": torch.tensor(True),
    "bool": True,
    "np.bool": np.bool_(True),
}
# Refused by F for some argument, or for all.
OTHERS = {
    "a complex number of numpy": np.complex64(0.25),
    "an array": np.array(0.25),
    "an array of one": np.array([1]),
    "a fraction": fractions.Fraction(1, 4),
    "a string of numpy": np.str_("1"),
    "too large": 2**70,
    "much too large": 2**2000,
    "too large for int64": np.uint64(2**63),
    "NaN": np.float64("nan"),
    "a tensor of one": torch.tensor([1]),
    "a tensor that requires grad": torch.tensor(0.25, requires_grad=True),
    "a meta tensor": torch.tensor(1, device="meta"),
    "a large tensor": torch.tensor(2**63, dtype=torch.uint64),
    "None": None,
}
EVERYTHING = {
    **{f"{name}, an integer": value for name, value in INTEGERS.items()},
    **{f"{name}, an index": value for name, value in INDICES.items()},
    **{f"{name}, a double": value for name, value in DOUBLES.items()},
    **OTHERS,
}
SOFTMAXES = ("softmax", "log_softmax")


def by_the_kernels(op, *args, **kwargs):
    got, ops = ops_run(lambda: getattr(softkern, op)(*args, **kwargs))
    assert any(f"softkern.{op}" in name for name in ops), ops
    torch.testing.assert_close(got, getattr(F, op)(*args, **kwargs))


@pytest.mark.parametrize("number", INTEGERS)
@pytest.mark.parametrize("op", SOFTMAXES)
def test_dims(op, number):
    by_the_kernels(op, X[:, :3], INTEGERS[number])


@pytest.mark.parametrize("op", SOFTMAXES)
def test_a_dtype_by_pythons_name(op):
    by_the_kernels(op, X, 1, dtype=float)


@pytest.mark.parametrize("number", (*INTEGERS, *INDICES))
def test_ignored_indices(number):
    target = torch.tensor([0, 1, 2])
    by_the_kernels("cross_entropy", X, target, ignore_index={**INTEGERS, **INDICES}[number])
    module = softkern.CrossEntropyLoss(ignore_index={**INTEGERS, **INDICES}[number])
    torch.testing.assert_close(module(X, target), F.cross_entropy(X, target, ignore_index=1))


@pytest.mark.parametrize("number", (*INTEGERS, *DOUBLES))
def test_smoothing(number):
    by_the_kernels("cross_entropy", X, Y, label_smoothing={**INTEGERS, **DOUBLES}[number])


@pytest.mark.parametrize("number", EVERYTHING)
@pytest.mark.parametrize("argument", ("dim", "ignore_index", "label_smoothing"))
@pytest.mark.filterwarnings("ignore:Casting complex values")
def test_what_torch_takes_and_refuses(argument, number):
    """The same value, or the same words."""
    for op in SOFTMAXES if argument == "dim" else ("cross_entropy",):
        args = (X,) if argument == "dim" else (X, Y)
        try:
            want = getattr(F, op)(*args, **{argument: EVERYTHING[number]})
        except Exception as error:
            got = raised(getattr(softkern, op), *args, **{argument: EVERYTHING[number]})
            assert (type(got), text(got)) == (type(error), text(error))
        else:
            got = getattr(softkern, op)(*args, **{argument: EVERYTHING[number]})
            torch.testing.assert_close(got, want, equal_nan=True)


def test_a_backend_that_was_named_takes_them():
    with softkern.use_backend("portable"):
        softkern.softmax(X, np.int64(1))
        softkern.cross_entropy(X, Y, ignore_index=np.int64(7), label_smoothing=np.float32(0.25))


@pytest.mark.filterwarnings("ignore:size_average and reduce args will be deprecated")
@pytest.mark.parametrize("truth", (np.bool_(True), np.bool_(False)))
def test_reductions_of_numpy(truth):
    for kwargs in ({"reduction": np.str_("sum")}, {"size_average": truth}, {"reduce": truth}):
        by_the_kernels("cross_entropy", X, Y, **kwargs)


def test_a_gradient_in_place_with_a_bool_of_numpy():
    ours, theirs = X.clone().requires_grad_(), X.clone().requires_grad_()
    softkern.cross_entropy(ours * 1, Y, inplace_backward=np.bool_(True)).backward()
    F.cross_entropy(theirs, Y).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
@pytest.mark.parametrize(
    "number", ("int64, an integer", "IntEnum, an integer", "an array, an index", "NaN", "bool, a double")
)
@pytest.mark.parametrize("argument", ("ignore_index", "label_smoothing"))
def test_compiled(argument, number):
    """As torch's function compiles with them, or is refused by the compiler."""
    found = []
    for namespace in (F, softkern):
        torch._dynamo.reset()

        def loss(x, n, namespace=namespace):
            return namespace.cross_entropy(x, Y, **{argument: n})

        try:
            found.append(torch.compile(loss, backend="aot_eager", fullgraph=True)(X, EVERYTHING[number]))
        except Exception as error:
            found.append(type(error))
    torch._dynamo.reset()
    if isinstance(found[0], torch.Tensor):
        torch.testing.assert_close(found[1], found[0], equal_nan=True)
    else:
        assert found[0] is found[1]


@pytest.mark.parametrize("argument", ("dim", "ignore_index", "label_smoothing"))
def test_symbolic_numbers(argument):
    """Traced, an ignored index stays an argument of the graph."""

    def graph(namespace, n):
        def f(x, y, n):
            if argument == "dim":
                return namespace.softmax(x, n.shape[0])
            if argument == "ignore_index":
                return namespace.cross_entropy(x, y, ignore_index=n.shape[0])
            return namespace.cross_entropy(x, y, label_smoothing=1 / n.shape[0])

        return make_fx(f, tracing_mode="symbolic")(X, Y, torch.ones(2 if n else 1))(X, Y, torch.ones(n or 1))

    for n in (2, 4) if argument == "ignore_index" else (0,):
        torch.testing.assert_close(graph(softkern, n), graph(F, n))
    if argument == "ignore_index":
        assert not graph(F, 2).equal(graph(F, 4))
