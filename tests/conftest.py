# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by all tests.

Without `SOFTKERN_CPU_ISA`, every test runs on the instruction set that softkern prefers, and tests with
the fixture `isa` run once on each. With it, the whole suite runs only on that instruction set.
"""

from __future__ import annotations

import os

# torch.compile tells what it keeps on disk apart by the names of ops, not by what softkern says of them: it
# may be another checkout's.
os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "0")
os.environ.setdefault("TORCHINDUCTOR_AUTOGRAD_CACHE", "0")

import pytest
import torch
from hypothesis import HealthCheck, settings
from isas import cpu_isas
from needs import why_no_inductor

import softkern

pytest_plugins = ["compatibility_plugin"]

# How wide a terminal is, and whether it has colours, is no part of what tests look at. Here, so that the
# processes that they start have the same.
os.environ.update(COLUMNS="80", LINES="24")
for variable in (
    "NO_COLOR",
    "FORCE_COLOR",
    "CLICOLOR",
    "CLICOLOR_FORCE",
    "TTY_COMPATIBLE",
    "TTY_INTERACTIVE",
):
    os.environ.pop(variable, None)

# `ci` finds the same examples on every run, so that a red run means a change and not bad luck;
# `thorough` searches: pytest --hypothesis-profile=thorough
settings.register_profile(
    "ci", max_examples=40, derandomize=True, deadline=None, database=None, print_blob=True
)
settings.register_profile(
    "thorough",
    max_examples=2000,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("ci")


def pytest_configure(config):
    config.addinivalue_line("markers", "inductor: compiles C++ at run time; needs a compiler")


def pytest_runtest_setup(item):
    if item.get_closest_marker("inductor") and (reason := why_no_inductor()):
        pytest.skip(reason)


def pytest_generate_tests(metafunc):
    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", [b.name for b in cpu_isas() if b.compiled], indirect=True)


@pytest.fixture
def isa(request):
    """Runs the test on one instruction set; skips with the registry's own reason."""
    backend = next(b for b in softkern.backends() if b.name == request.param)
    if not backend.usable:
        pytest.skip(backend.reason)
    with softkern.use_backend(backend.name):
        yield backend.name


@pytest.fixture(autouse=True)
def _same_start():
    """One seed; and one thread, so that a busy machine does not slow thousands of tiny tests down.

    Threads are not left out: test_reproducibility demands the same bits from one and from two.
    """
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def threads():
    """Sets the number of threads for one test; `_same_start` puts it back."""
    return torch.set_num_threads


@pytest.fixture
def restored():
    """Uninstalls what a failing test of softkern.install has left behind."""
    yield
    try:
        while True:
            softkern.uninstall()
    except RuntimeError as e:
        assert "not installed" in str(e)
