# SPDX-License-Identifier: Apache-2.0
"""A row's bits depend only on the row, not on the instruction set, the number of threads, or the row's
place in the batch or in memory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from cases import logits, name, upstream
from compare import assert_same_bits
from cross_entropy_cases import KINDS, over_kinds, problem
from isas import ISAS
from places import SUPPORT
from tolerances import DTYPES

import softkern

over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=name)
over_softmaxes = pytest.mark.parametrize("op", ("softmax", "log_softmax"))


@pytest.fixture(scope="module")
def results_of(tmp_path_factory):
    """The results of reproducibility_cases.py on one ISA, each computed once, in its own process.

    Not with use_backend: the suite may be running with another instruction set forced.
    """
    folder, kept = tmp_path_factory.mktemp("bits"), {}
    script = SUPPORT / "reproducibility_cases.py"

    def run(isa: str) -> dict[str, torch.Tensor]:
        if isa not in kept:
            env = {k: v for k, v in os.environ.items() if k != "SOFTKERN_BACKEND"}
            out = folder / isa
            command = [sys.executable, str(script), str(out)]
            subprocess.run(command, env={**env, "SOFTKERN_CPU_ISA": isa}, check=True)
            saved = torch.load(out)
            assert saved["isa"] == isa, "another instruction set ran"
            kept[isa] = saved["tensors"]
        return kept[isa]

    return run


@pytest.mark.parametrize("isa_name", [isa for isa in ISAS if isa != "portable"])
def test_every_instruction_set_gives_the_bits_of_the_portable_one(isa_name, results_of):
    backend = next(b for b in softkern.backends() if b.name == isa_name)
    if not backend.compiled or not _cpu_runs(backend):
        pytest.skip(backend.reason or f"this CPU does not run {isa_name}")
    expected, actual = results_of("portable"), results_of(isa_name)
    assert expected.keys() == actual.keys() and len(expected) > 1000
    for case, want in expected.items():
        assert_same_bits(actual[case], want, case)


def _cpu_runs(backend: softkern.Backend) -> bool:
    """By torch where it knows the instruction set, because a forced one makes the others unusable here."""
    known = ("DEFAULT", "AVX2", "AVX512")  # torch's names, each with those before it
    have, wanted = torch.backends.cpu.get_cpu_capability(), backend.name.upper()
    if wanted not in known:
        return backend.usable
    return have in known and known.index(have) >= known.index(wanted)


@over_dtypes
@over_kinds
@pytest.mark.parametrize(
    ("shape", "way"),
    (
        ((4099, 40), "wide lanes"),
        ((160, 1001), "rows"),
        ((400, 10, 40), "lanes"),
        ((7, 30011), "rows"),
        ((60, 40, 70), "tiles"),
    ),
    ids=name,
)
def test_the_number_of_threads_changes_no_bit(shape, way, kind, dtype, threads):
    """160,000 logits and more: the threads really share the work, whichever way it goes."""
    x, target, kwargs = problem(shape, dtype, **kind)

    def everything():
        leaf = x.clone().requires_grad_()
        for reduction in ("none", "mean", "sum"):
            loss = softkern.cross_entropy(leaf, target, reduction=reduction, **kwargs)
            assert softkern._C.last_path() == way
            grad = upstream(loss, "random")
            yield loss, torch.autograd.grad(loss, leaf, grad)[0]
        for op in (softkern.softmax, softkern.log_softmax):
            y = op(leaf, 1)
            assert softkern._C.last_path() == way
            yield y, torch.autograd.grad(y, leaf, upstream(y, "random"))[0]

    threads(1)
    alone = list(everything())
    for n in (2, 3, 5, 8):
        threads(n)
        for some, one in zip(everything(), alone, strict=True):
            assert_same_bits(some[0], one[0], f"value, {n} threads")
            assert_same_bits(some[1], one[1], f"gradient, {n} threads")


def test_a_run_repeated_changes_no_bit(threads):
    threads(2)
    x, target, kwargs = problem((4099, 40), **KINDS[1])
    first = softkern.cross_entropy(x, target, **kwargs)
    for _ in range(20):
        assert_same_bits(softkern.cross_entropy(x, target, **kwargs), first)


@over_dtypes
@over_kinds
@pytest.mark.parametrize("classes", (3, 10, 33, 1000))
def test_a_row_alone_has_the_bits_it_has_in_any_place_of_a_batch(classes, kind, dtype):
    x, target, kwargs = problem((37, classes), dtype, **kind)

    def of(rows):
        leaf = x[rows].clone().requires_grad_()
        loss = softkern.cross_entropy(leaf, target[rows], reduction="none", **kwargs)
        grad = upstream(x, "random")[:, 0][rows]
        y = softkern.softmax(leaf, 1)
        z = softkern.log_softmax(leaf, 1)
        dy = upstream(x, "random")[rows]
        grads = (torch.autograd.grad(o, leaf, g)[0] for o, g in ((loss, grad), (y, dy), (z, dy)))
        return loss, y, z, *grads

    whole = of(slice(None))
    for i in (0, 1, 15, 16, 17, 31, 32, 36):
        for alone, all_rows in zip(of(slice(i, i + 1)), whole, strict=True):
            assert_same_bits(alone[0], all_rows[i], f"row {i}")
    for part in (slice(5, 23), slice(1, 37)):
        for some, all_rows in zip(of(part), whole, strict=True):
            assert_same_bits(some, all_rows[part], f"rows {part}")


def _at(x: torch.Tensor, offset: int) -> torch.Tensor:
    flat = torch.empty(x.numel() + offset, dtype=x.dtype)
    return flat[offset:].view(x.shape).copy_(x)


@over_dtypes
@pytest.mark.parametrize("classes", (7, 64, 1025))
def test_alignment_changes_no_bit(classes, dtype):
    """Every offset from a cache line on, in elements: heads and tails must not change the order."""
    x, target, kwargs = problem((3, classes), dtype, **KINDS[1])
    want_y, want = softkern.softmax(x, 1), softkern.cross_entropy(x, target, **kwargs)
    for offset in range(1, 33):
        moved = _at(x, offset)
        assert_same_bits(softkern.softmax(moved, 1), want_y, f"offset {offset}")
        assert_same_bits(softkern.cross_entropy(moved, target, **kwargs), want, f"{offset}")


@over_softmaxes
@over_dtypes
@pytest.mark.parametrize("length", (5, 33, 200))
def test_the_dim_and_the_strides_change_no_bit(op, dtype, length):
    """The same rows: along the last dim, the first, the middle one, and with a gap between."""
    f, x = getattr(softkern, op), logits(12, length, dtype=dtype)
    rows = f(x, 1)
    assert_same_bits(f(x.t().contiguous(), 0).t(), rows, "first dim")
    assert_same_bits(f(x.t(), 0).t(), rows, "transposed")
    middle = x.reshape(3, 4, length).transpose(1, 2).contiguous()
    assert_same_bits(f(middle, 1).transpose(1, 2).reshape(12, length), rows, "middle dim")
    gaps = torch.zeros(12, 2 * length, dtype=dtype)
    gaps[:, ::2] = x
    assert_same_bits(f(gaps[:, ::2], 1), rows, "every other element")
