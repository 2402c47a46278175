# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' distribution of a run's time, with a clock that only the tests move."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import pytest
from rich.console import Console

from benchmarks import cli
from benchmarks.engine.budget import Budget, Part, level
from benchmarks.engine.plan import groups_of, parts_of
from benchmarks.progress import Progress
from benchmarks.providers.base import LARGE

PATIENCE = 6.0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run(budget: Budget, fixed: float, fewest: float, use: Callable[[int], float]) -> list[float]:
    """A run whose parts take `fixed` and `fewest` times what is expected and whose k-th cell needs `use(k)`
    of its share; returns the shares."""
    shares = []
    for part in budget.parts:
        budget.clock.now += fixed * part.fixed
        if part.fewest:
            shares.append(budget.share())
            budget.clock.now += fewest * part.fewest
            budget.had_fewest()
            budget.clock.now += max(0.0, use(len(shares) - 1) * shares[-1] - fewest * part.fewest)
            budget.measured()
        budget.end()
    return shares


def test_level_is_what_all_can_have_beside_those_who_need_more():
    assert level(12, [1, 2, 3]) == 4
    assert level(12, [1, 2, 8]) == 2
    assert level(12, [8, 3, 1]) == 1
    assert level(5, [3, 3]) == 0
    assert level(inf, [1]) == inf
    assert level(5, []) == 0


def test_few_cells_have_all_the_patience():
    budget = Budget(1680, [Part(10), *3 * [Part(2, 1)]], PATIENCE, Clock())
    assert budget.needed() < budget.seconds
    assert run(budget, 1, 1, lambda _: 1.0) == [PATIENCE] * 3


def test_cells_have_equal_shares_of_what_is_left():
    budget = Budget(55, [Part(5), *10 * [Part(2, 0.5)]], PATIENCE, Clock())
    assert budget.left() == pytest.approx(55)
    assert run(budget, 1, 1, lambda _: 1.0) == pytest.approx([3.0] * 10)
    assert budget.clock() - budget.start == pytest.approx(55)
    assert budget.left() == 0


@pytest.mark.parametrize(("fixed", "fewest"), [(3, 1), (0.2, 1), (1, 4), (2, 2)])
def test_a_run_on_another_machine_ends_in_time(fixed, fewest):
    parts = [Part(10), *100 * [Part(0.5, 0.1)], Part(10), *50 * [Part(3, 1)]]
    budget = Budget(900, parts, PATIENCE, Clock())
    shares = run(budget, fixed, fewest, lambda _: 1.0)
    # What was expected at first keeps some weight to the end.
    assert 800 < budget.clock() - budget.start < 930
    assert min(shares[:100]) > 0.2


def test_time_for_the_fewest_rounds_of_later_cells_is_kept():
    budget = Budget(60, [*10 * [Part(1, 0.1)], Part(1, 20)], PATIENCE, Clock())
    shares = run(budget, 1, 1, lambda _: 1.0)
    assert shares[:10] == pytest.approx([(60 - 11 - 20) / 10] * 10)
    assert budget.clock() - budget.start == pytest.approx(60)


def test_more_is_kept_where_the_fewest_rounds_take_longer():
    budget = Budget(200, [*100 * [Part(0.1, 0.5)], Part(1, 10)], PATIENCE, Clock())
    run(budget, 1, 3, lambda _: 1.0)
    assert budget.clock() - budget.start < 205


def test_fewest_rounds_beyond_the_share_are_not_its_use():
    budget = Budget(250, [*10 * [Part(1, 20)], *10 * [Part(1, 0.1)]], PATIENCE, Clock())
    assert run(budget, 1, 1, lambda _: 1.0)[10:] == pytest.approx([3.0] * 10)


def test_what_some_cells_do_not_need_is_for_all_others():
    """Not for the last ones alone."""
    budget = Budget(600, 200 * [Part(1, 0.1)], PATIENCE, Clock())
    shares = run(budget, 1, 1, lambda k: 1.0 if k % 2 else 0.25)
    assert 590 < budget.clock() - budget.start < 610
    assert sum(shares[50:100]) == pytest.approx(sum(shares[150:]), rel=0.25)
    assert min(shares) >= 2  # as if all needed theirs


def test_too_little_time_is_foreseen():
    budget = Budget(60, 20 * [Part(2, 1.5)], PATIENCE, Clock())
    assert budget.needed() == pytest.approx(70)
    shares = run(budget, 1, 1, lambda _: 1.0)
    assert shares == [0] * 20
    assert budget.clock() - budget.start == pytest.approx(70)
    budget = Budget(60, 20 * [Part(2, 0.5)], PATIENCE, Clock())
    run(budget, 1.5, 1, lambda _: 1.0)
    assert budget.needed() > 60


def test_a_provider_that_hung_says_nothing_of_others():
    parts = 20 * [Part(2, 0.5)]
    lefts = []
    for typical in (True, False):
        budget = Budget(10_000, parts, PATIENCE, Clock())
        budget.clock.now += 100
        budget.share()
        budget.clock.now += 300
        budget.had_fewest()
        budget.measured()
        budget.end(typical)
        lefts.append(budget.left())
    assert lefts[1] == pytest.approx(19 * (2 + PATIENCE)) and lefts[0] > 1.5 * lefts[1]


def test_a_cell_that_was_passed_over_says_nothing_of_others():
    budget = Budget(10_000, 20 * [Part(50, 0.5)], PATIENCE, Clock())
    before = budget.left()
    budget.end()
    assert budget.left() == pytest.approx(before * 19 / 20)


def test_what_is_left_knows_how_soon_cells_are_done():
    budget = Budget(inf, 100 * [Part(1, 0.1)], PATIENCE, Clock())
    assert budget.left() == pytest.approx(100 * (1 + PATIENCE))
    for _ in range(50):
        budget.clock.now += 1
        budget.share()
        budget.clock.now += 0.1
        budget.had_fewest()
        budget.clock.now += 0.5
        budget.measured()
        budget.end()
    assert 50 * (1 + 0.6) < budget.left() < 50 * (1 + 0.25 * PATIENCE)
    without_patience = Budget(inf, 100 * [Part(1, 0.1)], 0.0, Clock())
    assert without_patience.left() == pytest.approx(110)


def test_the_full_run_is_expected_to_fit():
    """With room for a machine that takes longer; and its parts are those that the run goes through."""
    plan = cli.plan_of(cli.parse_run([]))
    groups = list(groups_of(plan))
    parts = parts_of(plan, groups)
    assert len(parts) == sum(1 + len(cells) for _, _, cells in groups)
    assert [part.fewest > 0 for part in parts[:3]] == [False, True, True]
    assert 60 * plan.minutes < 1800
    assert Budget(60 * plan.minutes, parts, plan.patience, Clock()).needed() < 0.8 * 60 * plan.minutes


def test_one_thread_is_asked_in_large_cells_that_are_main():
    plan = cli.plan_of(cli.parse_run([]))
    cells = [c for _, threads, cells in groups_of(plan) if threads == 1 for c in cells]
    large = {c.shape_text for c in cells if c.input_bytes > LARGE}
    assert "2048x32000" in large and "8192x4096" not in large
    assert "1200x10" in {c.shape_text for c in cells} and all(c.main for c in cells if c.input_bytes > LARGE)


def test_progress_is_time_passed_of_time_expected():
    progress = Progress(Console())
    progress.start -= 60
    for left, text, share in ((30.0, "30 s left", 2 / 3), (120.0, "2 min left", 1 / 3), (0.0, "0 s left", 1)):
        progress.report("a cell", left)
        assert progress.bar.tasks[0].fields["left"] == text
        assert progress.bar.tasks[0].completed == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("minutes", ["0", "-1", "nan"])
def test_minutes_are_positive(minutes, capsys):
    assert cli.main(["--quick", "--minutes", minutes]) == 2
    assert "expected a positive number" in capsys.readouterr().err
