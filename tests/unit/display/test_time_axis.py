"""The time axis of a run: gaps are gaps, and nothing is lost or invented."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.display.time_axis import TimeAxis, unit_of_rate
from batchrun.display.timeline import Point

HOUR_MS = 3_600_000


def points(*spans: tuple[int, int], gap_ms: int = 60_000) -> list[Point]:
    """Points within spans of time; each has one more succeeded row than the one before."""
    moments = [at for start, end in spans for at in range(start, end + 1, gap_ms)]
    return [Point(at, 10, 9, 8, number, 0, 0) for number, at in enumerate(moments)]


def test_a_gap_between_sessions_interrupts_the_lines_and_is_drawn_short():
    spans = [(0, 2 * HOUR_MS), (20 * HOUR_MS, 21 * HOUR_MS)]
    time = TimeAxis(spans, points(*spans))
    (gap,) = time.axis.gaps
    assert gap.label == "pause of 18 h 00 min"
    assert gap.high - gap.low == pytest.approx(3 * HOUR_MS / 4)
    assert [len(part) for part in time.values("window", "window").parts] == [121, 61]
    assert time.axis.label == "hours of running time"
    assert [label for _, label in time.axis.ticks] == ["0.0", "0.5", "1.0", "1.5", "2.0", "2.5", "3.0"]
    _, pace = time.pace("rows", "succeeded")
    assert not [x for part in pace.parts for x, _ in part if gap.low < x < gap.high]


def test_a_short_gap_keeps_its_length():
    spans = [(0, HOUR_MS), (HOUR_MS + 60_000, 2 * HOUR_MS)]
    (gap,) = TimeAxis(spans, points(*spans)).axis.gaps
    assert gap.high - gap.low == 60_000


def test_a_computer_that_slept_leaves_a_gap_within_a_session():
    time = TimeAxis([(0, 10 * HOUR_MS)], points((0, HOUR_MS), (9 * HOUR_MS, 10 * HOUR_MS)))
    assert [gap.label for gap in time.axis.gaps] == ["pause of 8 h 00 min"]
    assert len(time.values("window", "window").parts) == 2


def test_a_run_without_sessions_or_points_has_an_axis():
    time = TimeAxis([], [])
    assert not time.is_known
    assert time.at(5) == 0
    assert time.pace("rows", "succeeded")[1].parts == []
    assert TimeAxis([(5, 5)], points((5, 5))).axis.high > 0


def test_slow_runs_are_counted_by_the_minute_or_the_hour():
    assert [unit_of_rate(rate)[1] for rate in (3, 1, 0.5, 0.01, 0)] == ["second", "second", "minute", "hour", "hour"]


SESSIONS = st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), min_size=1, max_size=6)


@given(SESSIONS, st.lists(st.integers(-(10**6), 10**9), min_size=2, max_size=20))
def test_later_is_never_to_the_left_even_if_the_clock_was_set_back(sessions, moments):
    time = TimeAxis(sessions, [])
    places = [time.at(at) for at in sorted(moments)]
    assert all(time.axis.low <= place <= time.axis.high for place in places)
    assert all(a <= b for a, b in pairwise(places))


@given(st.lists(st.integers(1, 5), min_size=2, max_size=400), st.integers(1, 900))
def test_the_area_below_the_pace_is_the_rows_that_ended(gaps: list[int], rows: int):
    at, found = 0, []
    for number, gap in enumerate(gaps):
        at += gap * 1000
        found.append(Point(at, 1, 1, 1, number * rows, 0, 0))
    unit, series = TimeAxis([(0, at)], found).pace("rows", "succeeded")
    per_s = {"second": 1, "minute": 1 / 60, "hour": 1 / 3600}[unit]
    area = sum((b[0] - a[0]) / 1000 * a[1] * per_s for part in series.parts for a, b in pairwise(part) if a[1] == b[1])
    assert area == pytest.approx(found[-1].succeeded - found[0].succeeded)
    assert sum(map(len, series.parts)) <= 202
