"""The pace of the last minutes, and the time that is left at it."""

from __future__ import annotations

from random import Random

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.display.pace import MOST_COUNTS, SPAN_S, PaceCounts


def steady(rows_per_s: float, seconds: float, counts: PaceCounts | None = None, from_s: float = 0.0) -> PaceCounts:
    counts = counts or PaceCounts()
    for quarter in range(1, int(seconds * 4) + 1):
        counts.note(from_s + quarter / 4, int((from_s + quarter / 4) * rows_per_s))
    return counts


@pytest.mark.parametrize("seconds", [7.5, 59.0, 61.0, 200.0, 1000.0, 3601.0])
def test_a_steady_run_has_its_pace_and_its_time_left_whatever_its_age(seconds: float):
    pace = steady(8.0, seconds).pace(4000)
    assert pace.rows_per_s == pytest.approx(8.0, rel=0.01)
    assert pace.left_s == pytest.approx(500.0, rel=0.01)
    assert pace.least_s < 500 < pace.most_s
    assert min(seconds, SPAN_S) * 0.9 < pace.span_s <= min(seconds, SPAN_S)


@given(st.lists(st.tuples(st.floats(0, 40), st.integers(0, 50)), min_size=1, max_size=200))
def test_no_row_of_the_last_minutes_is_counted_twice_or_forgotten(steps: list[tuple[float, int]]):
    counts, now_s, ended = PaceCounts(), 0.0, 0
    for gap_s, rows in steps:
        now_s, ended = now_s + gap_s, ended + rows
        counts.note(now_s, ended)
        assert len(counts.ended) <= MOST_COUNTS
        assert sum(counts.ended) <= ended
        if now_s < MOST_COUNTS:
            assert sum(counts.ended) == ended


def test_only_the_last_minutes_count():
    counts = steady(50.0, 2000.0)
    for second in range(1, 301):
        counts.note(2000.0 + second, 100_000 + 2 * second)
    pace = counts.pace(100)
    assert pace.rows_per_s == pytest.approx(2.0, rel=0.1)


def test_a_run_without_progress_has_no_time_left_and_one_with_little_may_take_forever():
    assert PaceCounts().pace(10) is None
    still = steady(0.0, 60.0).pace(10)
    assert (still.rows_per_s, still.left_s, still.least_s, still.most_s) == (0.0, None, None, None)
    slow = steady(0.02, 200.0).pace(10)
    assert slow.left_s > slow.least_s
    assert slow.most_s is None


def test_after_the_machine_slept_the_pace_is_that_since_then():
    counts = steady(10.0, 600.0)
    counts.note(600.0 + 8 * 3600, 6000)
    assert counts.pace(10) is None
    assert steady(10.0, 30.0, counts, 600.0 + 8 * 3600).pace(10).span_s == pytest.approx(30.0)


def test_the_range_holds_the_truth_in_some_95_of_100_runs():
    rng, held = Random(1), 0
    for _ in range(400):
        counts, ended, at_s = PaceCounts(), 0, 0.0
        while at_s < 150:
            at_s += rng.expovariate(3.0)
            ended += 1
            counts.note(at_s, ended)
        pace = counts.pace(300)
        held += pace.least_s <= 100.0 <= (pace.most_s or 1e9)
    assert 0.93 <= held / 400 <= 1.0


def test_counts_are_read_as_they_were_written():
    counts = steady(3.0, 321.0)
    again = PaceCounts.from_json(orjson.loads(orjson.dumps(counts.to_json())))
    assert again.pace(77) == counts.pace(77)


@pytest.mark.parametrize(
    "value", [None, {}, [], {"every_s": 0, "ended": [1], "since_s": 0, "until_s": 1}, {"ended": 3}]
)
def test_what_was_not_written_so_is_refused(value: object):
    with pytest.raises((ValueError, TypeError, KeyError)):
        PaceCounts.from_json(value)
