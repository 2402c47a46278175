# SPDX-License-Identifier: Apache-2.0
"""Collects the cells of docs/compatibility.md from the tests that carry the `feature` marker.

    @pytest.mark.feature("vmap(grad)")             # with a parameter `op`, or
    @pytest.mark.feature("DTensor", "softmax")     # with the ops named
    def test_...(op, watch):
        with watch:
            got = ...                              # softkern alone; torch's answer is computed outside

The test compares values, `watch` finds who computed them. Features are listed in `compatibility.py`. A test
without `watch` adds proof to a row and no cell.
"""

from __future__ import annotations

import pytest
from compatibility import COLUMNS, PAGE, committed, features, render
from watch import Watch

_KEY = "compatibility"


def pytest_addoption(parser):
    parser.addoption(
        "--write-compatibility",
        action="store_true",
        help="write docs/compatibility.md from what is found",
    )


def marked(item) -> list[tuple[str, str]]:
    """(feature, op) of every marker of a test."""
    pairs = []
    for marker in item.iter_markers("feature"):
        feature, *ops = marker.args
        if not ops and hasattr(item, "callspec") and "op" in item.callspec.params:
            ops = [item.callspec.params["op"]]
        if feature not in features():
            raise pytest.UsageError(f"{item.nodeid}: tests/support/compatibility.py has no {feature!r}")
        if not ops or not set(ops) <= set(COLUMNS):
            raise pytest.UsageError(
                f"{item.nodeid}: name the ops, feature({feature!r}, ...), of {list(COLUMNS)}"
            )
        pairs += [(feature, op) for op in ops]
    return pairs


def pytest_collection_modifyitems(items):
    for item in items:
        marked(item)


@pytest.fixture
def watch():
    return Watch()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    result = yield
    if isinstance(watch := pyfuncitem.funcargs.get("watch"), Watch):
        for feature, op in marked(pyfuncitem):
            pyfuncitem.user_properties.append((_KEY, (feature, op, watch.way)))
            if not pyfuncitem.config.getoption("--write-compatibility"):
                stated = committed().get((feature, op))
                if watch.way != stated:
                    pytest.fail(
                        f"{feature}, {op}: {watch.way!r}, but {PAGE.name} says {stated!r}", pytrace=False
                    )
    return result


class Collector:
    """Lives as long as a session that writes."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], set[str]] = {}
        self.failed = False
        self.outcome = ""

    def pytest_runtest_logreport(self, report):
        self.failed |= report.failed
        if report.when == "call":
            for key, value in report.user_properties:
                if key == _KEY:
                    feature, op, way = value
                    self.found.setdefault((feature, op), set()).add(way)

    def pytest_sessionfinish(self, session):
        several = {cell: ways for cell, ways in self.found.items() if len(ways) > 1}
        if self.failed or several:
            why = f"one cell's tests went different ways: {several}" if several else "tests failed"
            self.outcome = f"{PAGE.name} is not written: {why}"
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            return
        cells = committed() | {cell: ways.pop() for cell, ways in self.found.items()}
        PAGE.write_text(render(cells), encoding="utf-8")
        self.outcome = f"{PAGE.name}: {len(self.found)} of {len(cells)} cells found by this run"

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.write_line(self.outcome)


def pytest_configure(config):
    if config.getoption("--write-compatibility"):
        config.pluginmanager.register(Collector())
