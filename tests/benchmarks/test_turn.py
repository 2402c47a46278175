# SPDX-License-Identifier: Apache-2.0
"""How often each worker of a cell takes samples; the workers' answers come from the tests."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import results
from benchmarks.cells import Cell
from benchmarks.cli import FULL_ROUNDS
from benchmarks.engine import conductor
from benchmarks.engine.budget import Budget, Part
from benchmarks.engine.group import Group
from benchmarks.engine.process import Options, WorkerLost
from benchmarks.engine.regimes import HUGE_PAGE
from benchmarks.engine.turn import Turn
from benchmarks.engine.worker import MOST_CALIBRATING, Session

PATIENCE = 6.0
SMALL, MIDDLE, LARGE = (
    Cell("softmax", "no-grad", "float32", shape) for shape in ((64, 10), (512, 1000), (8192, 1000))
)


class Fake:
    """A worker whose k-th sample takes `seconds(k)`, and as much of the clock as the test says."""

    def __init__(self, label: str, seconds: Callable[[int], float]) -> None:
        self.label, self.seconds, self.version = label, seconds, "1"
        self.asked: list[str] = []
        self.messages: list[dict[str, Any]] = []
        self.at_work = False
        self.provider: Any = None

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        self.tell(message)
        return self.answer()

    def tell(self, message: dict[str, Any]) -> None:
        assert not self.at_work
        self.asked.append(message["do"])
        self.messages.append(message)
        self.at_work = True

    def answer(self) -> dict[str, Any]:
        self.at_work = False
        what = self.asked[-1]
        if what.startswith("sample"):
            clock.now += clock.tick
            return {"seconds": self.seconds(self.asked.count(what) - 1), "faults": 0}
        return {"repeats": 1, "bytes": 3 << 20}


class Clock:
    now, tick = 0.0, 1e-3

    def __call__(self) -> float:
        return self.now


clock = Clock()


@pytest.fixture(autouse=True)
def fresh_clock():
    clock.tick = 1e-3


def steady(time: float) -> Callable[[int], float]:
    return lambda k: time


def noisy(time: float) -> Callable[[int], float]:
    return lambda k: time * (1 + 0.5 * (k % 2))


def drifting(k: int) -> float:
    """The machine becomes half as fast after 21 rounds."""
    return 1.0 if k < 21 else 2.0


def turn_of(
    *workers: Fake,
    cell: Cell = SMALL,
    regime: str = "default",
    share: float = PATIENCE,
    most: int = 101,
    at_once: bool = False,
    leave_out: Callable[[str, str], None] | None = None,
) -> Turn:
    """A turn whose providers are ready; it has that share of the time."""
    group = SimpleNamespace(
        plan=SimpleNamespace(rounds=FULL_ROUNDS._replace(most=most), patience=PATIENCE, sample=3e-3),
        budget=Budget(share, [Part(0, 1e-9)], PATIENCE, clock),
        workers=list(workers),
        copy=Fake("copy", steady(1.0)),
        regime=regime,
        threads=2,
        inputs_of=lambda cell: None,
        leave_out=leave_out,
    )
    turn = Turn(group, cell, list(workers))
    turn.prepare(at_once)
    return turn


def counts(turn: Turn) -> list[int]:
    return [len(row["samples"]) for row in turn.rows()]


def test_who_is_known_is_not_asked_further():
    """And is compared with the baseline in the rounds that both had."""
    torch, known, open_ = Fake("torch", drifting), Fake("known", steady(0.5)), Fake("open", noisy(1.0))
    turn = turn_of(torch, known, open_, most=42)
    turn.rounds()
    assert counts(turn) == [42, 21, 42]
    rows = {row["provider"]: row for row in turn.rows()}
    assert [rows[name]["baseline"] for name in rows] == ["torch"] * 3
    assert rows["known"]["ratio"] == 2
    assert rows["torch"]["ratio"] == 1 and rows["torch"]["median"] == 1.5
    assert rows["open"]["ratio"] == pytest.approx(
        median(drifting(k) / open_.seconds(k) for k in range(42)), abs=1e-4
    )


def test_who_is_known_leaves_no_memory_behind():
    """Its pages are free before others are placed anew; it takes none, and its peak is known by then."""
    torch, known, open_ = Fake("torch", steady(1.0)), Fake("known", steady(0.5)), Fake("open", noisy(1.0))
    turn = turn_of(torch, known, open_, cell=MIDDLE, most=35)
    turn.rounds()
    turn.peaks()
    turn.finish()
    last = len(known.asked) - known.asked[::-1].index("sample") - 1
    assert known.asked[last + 1 :] == ["peak", "release"]
    assert known.asked.count("place_anew") == 2 and torch.asked.count("place_anew") == 4
    for worker in (torch, open_):
        assert worker.asked[-2:] == ["peak", "release"] and worker.asked.count("peak") == 1
    assert [row["peak_bytes"] for row in turn.rows()] == [3 << 20] * 3
    assert turn.group.copy.asked.count("sample_copy") == 35


def test_who_has_had_its_rounds_is_not_asked_further():
    """A provider whose calls take very long; its ratio is that of the rounds it had."""
    torch, slow = Fake("torch", noisy(1.0)), Fake("slow", steady(40.0))
    slow.provider = SimpleNamespace(rounds=lambda cell: 1)
    turn = turn_of(torch, slow, cell=MIDDLE, most=35)
    turn.rounds()
    assert counts(turn) == [21, 1] and slow.asked.count("sample") == 1
    assert slow.asked[-2:] == ["peak", "release"] and "place_anew" not in slow.asked
    first, second = turn.rows()
    assert second["ratio"] == pytest.approx(first["samples"][0] / 40.0, rel=1e-2)
    assert second["peak_bytes"] == 3 << 20


def test_the_cell_ends_when_all_are_known():
    workers = [Fake("torch", steady(1.0)), Fake("a", steady(0.5)), Fake("b", steady(2.0))]
    turn = turn_of(*workers)
    turn.rounds()
    assert counts(turn) == [21, 21, 21]
    alone = turn_of(Fake("torch", steady(1.0)))
    alone.rounds()
    assert counts(alone) == [21]
    alone = turn_of(Fake("torch", noisy(1.0)), most=35)
    alone.rounds()
    assert counts(alone) == [35]


@pytest.mark.parametrize(
    ("cell", "regime", "fewest", "least"),
    [(SMALL, "default", 7, 21), (LARGE, "default", 5, 9), (LARGE, "preallocated", 6, 9)],
)
def test_how_few_rounds_a_cell_may_have(cell, regime, fewest, least):
    """Where they use its share up, and where the run has time."""
    clock.tick = 10.0
    for share, expected in ((1e-3, fewest), (100.0, least)):
        workers = Fake("torch", noisy(1.0)), Fake("other", lambda k: 1 + k % 3)
        turn = turn_of(*workers, cell=cell, regime=regime, share=share)
        turn.rounds()
        assert counts(turn) == [expected] * 2


@pytest.mark.parametrize(("share", "rounds"), [(0.1, 7), (2.4, 14), (2.9, 21), (3.6, 28), (PATIENCE, 35)])
def test_a_cell_ends_at_the_placement_nearest_to_its_share(share, rounds):
    clock.tick = 0.14 / 2  # a round of two; a placement takes 0.98
    turn = turn_of(Fake("torch", steady(1.0)), Fake("other", noisy(1.0)), share=share)
    turn.rounds()
    assert counts(turn) == [rounds] * 2


@pytest.mark.parametrize(("cell", "fewest"), [(SMALL, 7), (LARGE, 5)])
def test_the_budget_learns_what_rounds_take(cell, fewest):
    clock.tick = 1.0
    for most in (fewest, 20):
        turn = turn_of(Fake("torch", steady(1.0)), Fake("other", noisy(1.0)), cell=cell, most=most)
        samples = 2 + ("copy" in turn.state)
        turn.rounds()
        assert turn.group.budget.fewest_took == samples * fewest
        assert turn.group.budget.rounds_took == samples * counts(turn)[0]


def test_ctrl_c_within_a_round_leaves_pairs():
    def interrupted(k: int) -> float:
        if k == 1:
            raise KeyboardInterrupt
        return 1.0

    turn = turn_of(Fake("torch", interrupted), Fake("other", steady(0.5)), Fake("third", steady(2.0)))
    with pytest.raises(KeyboardInterrupt):
        turn.rounds()
    assert [len(samples) for samples in turn.samples.values()] == [1, 2, 2]
    assert counts(turn) == [1, 1, 1]
    assert [row["ratio"] for row in turn.rows()] == [1, 2, 0.5]


def test_a_cell_ends_with_a_baseline_that_was_known_when_the_first_was_lost():
    """Nothing can be compared with it in later rounds."""

    def lost(k: int) -> float:
        if k == 30:
            raise WorkerLost("exit status 3")
        return 1.0

    turn = turn_of(Fake("torch", lost), Fake("known", steady(0.5)), Fake("open", noisy(1.0)))
    turn.rounds()
    rows = {row["provider"]: row for row in turn.rows()}
    assert (rows["torch"]["status"], rows["torch"]["reason"]) == ("failed", "exit status 3")
    assert len(rows["known"]["samples"]) == len(rows["open"]["samples"]) == 21
    assert len(turn.samples["open"]) == 35
    assert rows["open"]["baseline"] == "known" and rows["open"]["ratio"] == 0.5


def test_figures_of_rows_of_different_lengths_are_from_their_own_samples():
    turn = turn_of(Fake("torch", drifting), Fake("known", steady(0.5)), Fake("open", noisy(1.0)), most=42)
    turn.rounds()
    for row in turn.rows():
        assert row["median"] == pytest.approx(results.summary(row["samples"])["median"])


def test_an_untimed_call_precedes_a_sample():
    """On the copy that was used last: the next one is to come from memory."""
    called: list[int] = []
    timed: list[tuple[int, int]] = []
    session = Session(1)
    session.step, session.repeats, session.cursor = called.append, 5, 3
    session.device = SimpleNamespace(
        sample=lambda step, first, repeats: timed.append((first, repeats)) or (0.1, 0)
    )
    assert session.sample()["seconds"] == 0.1
    assert called == [2] and timed == [(3, 5)] and session.cursor == 8


def test_how_many_calls_a_sample_has_does_not_depend_on_those_that_wait():
    """No third of 1.0 and 0.1 s: it would take as long as several samples."""
    for first, second in ((1.0, 0.1), (0.1, 1.0)):
        assert calibrated(first, second).repeats == 1
    assert calibrated(5e-3, 4e-3, 3e-3, 2.5e-4, 3e-4, 3e-3).repeats == 12
    assert calibrated(*[1e-5] * MOST_CALIBRATING).repeats == 300
    assert calibrated(*[2e-3] * 8, copy=True).repeats == 2


def calibrated(*seconds: float, copy: bool = False) -> Session:
    """Of calls that take so long: all of them, and no more."""
    session, taken = Session(1), iter(seconds)
    if copy:
        session.copy = SimpleNamespace(run=lambda repeats: next(taken))
    session.step = lambda i: None
    session.device = SimpleNamespace(sample=lambda step, first, repeats: (next(taken), 0))
    session.calibrate(3e-3)
    assert next(taken, None) is None
    return session


@pytest.mark.parametrize("count", (1, 2, 3))
def test_each_sets_other_pages_aside_before_it_is_placed_anew(count):
    """Or it gets those that it had."""
    workers = [Fake(f"provider {i}", noisy(1.0)) for i in range(count)]
    turn = turn_of(*workers, cell=MIDDLE)
    for k in range(1, 5):
        turn._place_anew(k)
    asides = [[m["aside"] for m in w.messages if m["do"] == "place_anew"] for w in workers]
    for sizes in asides:
        assert len(sizes) == 4 and all(a != b for a, b in pairwise(sizes))
        assert all(size > 0 and size % HUGE_PAGE == 0 for size in sizes)
    for at_once in zip(*asides, strict=True):
        assert len(set(at_once)) == len(workers)


def test_what_is_set_aside_is_there_until_the_next_release():
    session = Session(1)
    seen = []
    session.prepare = lambda **message: seen.append([len(part) for part in session.aside]) or message
    for k in (1, 2):
        assert session.place_anew(aside=k * HUGE_PAGE, cell={}) == {"cell": {}}
    (pages, heap), (more_pages, more_heap) = seen
    assert (pages, more_pages) == (HUGE_PAGE, 2 * HUGE_PAGE) and (more_heap - heap) % 4096
    session.release()
    assert session.aside is None


def test_a_cell_that_needs_more_memory_than_there_is_is_left_out():
    worker = Fake("a", steady(1e-3))
    worker.provider = SimpleNamespace(left_out=lambda cell, threads: None, peer=False)
    into = {"left_out": [], "rows": []}
    plan = SimpleNamespace(all_threads=2, options=Options())
    group = Group(plan, "default", None, into, Path(), Budget(60, [Part(1.0)], PATIENCE))
    group.workers, group.copy = [worker], Fake("copy", steady(1e-3))  # who knows of 3 MiB
    assert not conductor.measure(group, LARGE)
    (left_out,) = into["left_out"]
    assert left_out == {"provider": "a", "reason": "the providers together need about 0 GiB", "cells": 1}
    assert worker.asked == [] and into["rows"] == []


@pytest.mark.parametrize("at_once", (False, True))
def test_all_may_prepare_at_once_but_are_timed_in_turn(at_once):
    """What a device needs is compiled; how many calls make a sample must not depend on the others."""
    workers = [Fake("torch", steady(1.0)), Fake("broken", steady(1.0)), Fake("a", steady(1.0))]
    at_work: list[list[str]] = []

    def answer(worker: Fake) -> dict[str, Any]:
        at_work.append([other.label for other in workers if other.at_work])
        given = Fake.answer(worker)
        return {"failed": "no kernel"} if worker.label == "broken" else given

    for worker in workers:
        worker.answer = lambda worker=worker: answer(worker)
    turn = turn_of(*workers, at_once=at_once)
    prepared = [message for worker in workers for message in worker.messages if message["do"] == "prepare"]
    assert {message["room"] for message in prepared} == {at_once}  # for graphs, which keep memory
    if at_once:
        assert at_work[:3] == [["torch", "broken", "a"], ["broken", "a"], ["a"]]
        del at_work[:3]
    assert all(len(labels) == 1 for labels in at_work)
    assert workers[0].asked == workers[2].asked == ["prepare", "calibrate"]
    assert workers[1].asked == ["prepare"] and turn.lost == {"broken": ("failed", "no kernel")}
    assert turn.state["a"]["repeats"] == 1


def test_who_lacks_what_a_cell_needs_is_not_asked_further():
    """The data of a whole job, say: no row, and one line that says why."""
    torch, without = Fake("torch", steady(1.0)), Fake("without", steady(1.0))
    without.answer = lambda: Fake.answer(without) and {"absent": "no data set"}
    left_out = []
    turn = turn_of(torch, without, most=7, leave_out=lambda label, reason: left_out.append((label, reason)))
    turn.rounds()
    turn.peaks()
    turn.finish()
    assert without.asked == ["prepare"] and left_out == [("without", "no data set")]
    assert [row["provider"] for row in turn.rows()] == ["torch"] and turn.lost == {}
