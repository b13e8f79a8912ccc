"""What a session writes for other processes: rarely, but soon after a change."""

from __future__ import annotations

from dataclasses import replace

import orjson

from batchrun.display.live import LiveRecord
from batchrun.engine.published_status import PublishedStatus
from tests.support.statuses import ONE


def published() -> PublishedStatus:
    found = PublishedStatus(None, 3, lambda: 1_800_000_000.0)
    found.look = lambda: {"abc": ONE}
    return found


def test_the_present_moment_is_written_once_a_second_and_at_the_end():
    taken = published()
    assert "live" in taken.take(10.0, is_last=False)
    assert "live" not in taken.take(10.9, is_last=False)
    assert "live" in taken.take(11.0, is_last=False)
    assert "live" in taken.take(11.1, is_last=True)


def test_the_points_of_a_run_are_written_at_once_and_soon_and_then_every_15_seconds():
    now = [1_800_000_000.0]
    taken = PublishedStatus(None, 3, lambda: now[0])
    taken.look = lambda: {"abc": ONE}
    written = {}
    for second in range(60):
        now[0] += 1
        found = taken.take(float(second), is_last=False)
        if "timeline" in found:
            written[second] = len(found["timeline"])
    assert written == {0: 1, 2: 3, 6: 7, 14: 15, 29: 30, 44: 45, 59: 60}


def test_there_is_news_until_it_is_written_but_not_of_times_and_costs():
    taken = published()
    assert not taken.is_news
    taken.update({"abc": ONE})
    assert taken.is_news
    taken.take(10.0, is_last=False)
    assert not taken.is_news
    taken.update({"abc": replace(ONE, elapsed_s=200.0, cost=None, rows_per_s=1.0)})
    assert not taken.is_news
    taken.update({"abc": replace(ONE, note="")})
    assert taken.is_news


def test_what_was_written_is_read_back_and_anything_else_is_nothing():
    written = orjson.loads(orjson.dumps(published().take(1.0, is_last=False)["live"]))
    record = LiveRecord.from_json(written)
    assert (record.session, record.parts, record.whole) == (3, {"abc": ONE}, ONE)
    assert LiveRecord.from_json({**written, "parts": {}}) is None
    assert LiveRecord.from_json({**written, "parts": {"abc": {**written["parts"]["abc"], "later": 1}}}) is None
    for other in (None, [], "live", {}, {**written, "session": None}, {**written, "pace": 3}):
        assert LiveRecord.from_json(other) is None
