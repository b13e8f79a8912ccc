"""The screen of `status --watch`, at any size and whatever names and messages contain."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.display.brief_status import BriefStatus, Failures, KindOfFailure, LastFailure
from batchrun.display.screen import rate, screen
from batchrun.display.summary import merged
from batchrun.display.text import columns_of
from tests.support.statuses import NOW, ONE, STATUS


def shown(status: BriefStatus, columns: int = 80, lines: int | None = None, **given: bool) -> str:
    return "\n".join(line.text for line in screen(status, NOW, columns, lines, **given))


def test_everything_that_a_run_does_is_on_one_usual_screen():
    text = shown(STATUS, 79, 24)
    for said in (
        "running, process 4242",
        "600 of 1,000 rows  60.0%  █",
        "590 succeeded, 10 failed, 3 to retry, 347 not run",
        "obstacle    slowed down: 429 Too many requests",
        "pace        6.0 rows/s over 1 min 40 s, now 5.5 rows/s, 1,234 tokens/s",
        "▁▅█▆",
        "left        about 1 min 06 s, from 1 min 00 s to 1 min 15 s, until ",
        "jobs        50 in flight, window 60, 4 retried",
        "workers     12 running, 1 idle, 2 starting, 3 throttled, 4 unhealthy",
        "endpoint    21 jobs running, 35 queued",
        "cost        $2.00 to $4.00, about $3.33 to $6.67 for the whole run",
        "  10 timed_out",
        "timed_out  r7: too slow",
    ):
        assert said in text
    assert len(text.splitlines()) <= 24


ANY = st.text(st.characters(codec="utf-8"), max_size=60)


@given(ANY, ANY, ANY, st.integers(20, 200), st.integers(1, 60), st.booleans())
def test_it_fits_any_terminal_and_sends_no_control_characters(name, note, message, columns, lines, ascii_only):
    hostile = replace(
        STATUS,
        state=name,
        obstacles=[note],
        parts={name: replace(ONE, note=note), "other": ONE},
        failures=Failures([KindOfFailure("kind", 1)], [LastFailure(name, "kind", message, None)]),
    )
    drawn = screen(hostile, NOW, columns, lines, ascii_only=ascii_only)
    assert len(drawn) <= lines
    for line in drawn:
        assert columns_of(line.text) <= columns
        assert not {char for char in line.text if ord(char) < 32 or 127 <= ord(char) < 160}


def test_the_most_important_lines_are_left_on_a_small_screen():
    text = shown(STATUS, 40, 8)
    assert "60.0%" in text
    assert "obstacle    slowed down: 429" in text
    assert "\n\n" not in text


def test_a_terminal_without_block_characters_gets_ascii():
    assert shown(STATUS, ascii_only=True).isascii()


def test_endpoints_are_listed_below_each_other():
    parts = {"first": ONE, "second": replace(ONE, note="", running=5)}
    text = shown(replace(STATUS, parts=parts, whole=merged(parts)))
    assert "  first   5.5 rows/s, 20 running, 30 queued, 12 of 15 workers busy, $4.00" in text
    assert "  second  5.5 rows/s, 5 running" in text
    assert "workers     24 running" in text


def test_a_run_that_nobody_drives_says_why_and_by_when_to_resume():
    dead = BriefStatus("a b.state", "abc", outcome="stopped", reason="the budget is used up", began_at=NOW - 900,
                    seen_at=NOW - 600, total=10, succeeded=6, in_flight=2, resume_by=NOW + 1200)  # fmt: skip
    text = shown(dead)
    assert "stopped: the budget is used up" in text
    assert "(in 20 min 00 s), or results may expire" in text
    assert "batchrun resume 'a b.state'" in text
    assert "may have expired" in shown(replace(dead, resume_by=NOW - 1))
    assert "cut off" in shown(replace(dead, outcome=None))
    assert "resume" not in shown(replace(dead, outcome="finished", succeeded=10, in_flight=0, resume_by=None))


def test_a_process_that_writes_nothing_is_noticed():
    assert "has written nothing since" in shown(replace(STATUS, silent_s=90.0))
    assert "has written nothing" not in shown(replace(STATUS, silent_s=20.0))


def test_99_percent_and_a_bit_is_not_all():
    assert "99.9%" in shown(replace(STATUS, total=1_000_000, succeeded=999_989, failed=10))


@pytest.mark.parametrize(
    ("rows_per_s", "said"), [(12.34, "12.3 rows/s"), (0.5, "30.0 rows/min"), (0.01, "36.0 rows/h"), (0.0, "0.0 rows/s")]
)
def test_a_slow_pace_is_shown_per_minute_or_hour(rows_per_s: float, said: str):
    assert rate(rows_per_s) == said
