"""A run over time, in a few hundred points."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from batchrun.display.timeline import MOST_POINTS, Point, Timeline, sparkline


def play(timeline: Timeline, from_s: int, seconds: int) -> None:
    for second in range(from_s, from_s + seconds):
        if timeline.is_due(second * 1000):
            timeline.add(Point(second * 1000, second, 1, 1, 1, 0, 0))


@given(st.integers(1, 20_000))
def test_a_run_of_any_length_has_a_few_hundred_points_evenly_over_it(seconds: int):
    timeline = Timeline()
    play(timeline, 0, seconds)
    windows = timeline.windows()
    assert windows[0] == 0
    assert min(seconds, MOST_POINTS // 2) <= len(windows) <= MOST_POINTS
    gaps = {b - a for a, b in pairwise(windows)}
    assert len(gaps) <= 2
    assert seconds - windows[-1] <= max(gaps, default=1)


def test_a_further_session_continues_where_the_last_one_was():
    first = Timeline()
    play(first, 0, 1000)
    again = Timeline(first.to_json())
    play(again, 5000, 1000)
    windows = again.windows()
    assert windows[0] == 0
    assert windows[-1] > 5900
    assert len(windows) <= MOST_POINTS


@given(st.one_of(st.none(), st.integers(), st.lists(st.one_of(st.integers(), st.lists(st.text())))))
def test_anything_else_in_the_state_is_no_timeline(value):
    assert Timeline(value).windows() == []


def test_a_line_of_blocks_shows_where_it_was_high():
    assert sparkline([], 10) == ""
    assert sparkline([0, 0], 10) == "▁▁"
    assert sparkline([1, 4, 8, 4], 10) == "▂▅█▅"
    assert sparkline(list(range(100)), 4) == "▃▄▆█"
