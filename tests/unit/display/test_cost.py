"""What a run costs, and how it is said."""

from __future__ import annotations

import pytest

from batchrun.display.cost import WorkCost, cost_lines, cost_of, money, span

WORK = WorkCost(
    running_s=3600.0, most_s=7200.0, unwatched_s=360.0, jobs=100, execution_s=10_000.0, failed_s=1000.0, duplicates=2
)


def test_the_two_bounds_the_price_of_a_thousand_rows_and_where_it_is_heading():
    cost = cost_of(WORK, price_per_hour=2.0, done=50, total=1000)
    assert (cost.least, cost.most) == (2.0, 4.0)
    assert (cost.least_per_1000, cost.most_per_1000) == (40.0, 80.0)
    assert (cost.least_projected, cost.most_projected) == (40.0, 80.0)


def test_what_was_lost_and_what_nobody_saw():
    cost = cost_of(WORK, price_per_hour=2.0, done=50, total=1000)
    assert cost.failed == pytest.approx(0.4), "a tenth of the jobs' time was of failed ones"
    assert cost.duplicates == pytest.approx(0.08), "two jobs more than a hundred"
    assert cost.unwatched == pytest.approx(0.2)


def test_nothing_is_projected_before_two_percent_are_done():
    assert cost_of(WORK, price_per_hour=2.0, done=19, total=1000).most_projected is None
    assert cost_of(WORK, price_per_hour=2.0, done=20, total=1000).most_projected == 200.0
    nothing = cost_of(WorkCost(0.0, 0.0), price_per_hour=2.0, done=0, total=0)
    assert (nothing.most, nothing.most_per_1000, nothing.most_projected) == (0.0, None, None)


def test_money_is_said_in_cents_and_small_money_in_more():
    assert [money(amount) for amount in (0, 0.00123, 0.1, 12.3, 1234.5)] == [
        "$0.00",
        "$0.0012",
        "$0.10",
        "$12.30",
        "$1,234.50",
    ]
    assert span(1.001, 1.004) == "$1.00"


def test_the_lines_say_what_matters_and_no_more():
    cost = cost_of(WORK, price_per_hour=2.0, done=50, total=1000)
    assert cost_lines(cost, is_over=False) == [
        "$2.00 to $4.00, $40.00 to $80.00 per 1,000 rows",
        "$40.00 to $80.00 for the whole run",
        "$0.40 of it for jobs without a result",
        "up to $0.0800 of it for possible duplicates",
        "up to $0.20 more for jobs that ran between sessions",
    ]
    plain = cost_of(WorkCost(3600.0, 3600.0, jobs=10, execution_s=1.0), price_per_hour=2.0, done=10, total=10)
    assert cost_lines(plain, is_over=True) == ["$2.00, $200.00 per 1,000 rows"]
