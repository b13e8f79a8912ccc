"""The status of a run comes from the process that drives it, not from an earlier one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from batchrun.commands.brief_status import BriefStatusReader
from batchrun.commands.status import read_status, render
from batchrun.config import RunOptions
from batchrun.engine.published_status import PublishedStatus
from batchrun.scheduler.states import RowState
from batchrun.state.lock import StateLock
from batchrun.state.records import Batch, FailureRecord, JobEnd, SourceRecord, Submission
from batchrun.state.staging import StagedLine, merge, stage
from batchrun.state.store import Store
from batchrun.state.stored_options import store_options
from tests.support.statuses import NOW, ONE

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A run of nine rows, of which six failed one after another; a process says that it has a thousand."""
    path = tmp_path / "out.jsonl.state"
    with Store(path) as store:
        store_options(store, RunOptions(("a",), "abc", tmp_path / "out.jsonl", False, path))
        stage(store, [StagedLine(f"r{n}", False, 0, n, n, 1, b"d") for n in range(1, 10)])
        merge(store, [SourceRecord(0, "a", "/a", "/a", "", 1)], whole=True, limit=None)
        session = store.begin_session(os.getpid(), round(NOW * 1000))
        store.commit(Batch(submitted=[Submission(n, n, 1, 1, n) for n in range(1, 7)]), session, round(NOW * 1000))
        published = PublishedStatus(None, session, lambda: NOW)
        published.look = lambda: {"abc": ONE}
        batch = Batch(
            ended=[JobEnd(n, n, RowState.FAILED, "FAILED", 0, 0, None, None) for n in range(1, 7)],
            failures=[
                FailureRecord(n, "FAILED", "even" if n % 2 == 0 else "odd", f"message {n}", "", None, 1000 * (9 - n))
                for n in range(1, 7)
            ],
            settings=published.take(1.0, is_last=False),
        )
        store.commit(batch, session, round(NOW * 1000))
    return path


def test_the_status_of_a_driven_run_is_that_of_its_process(state: Path):
    lock = StateLock(state)
    seen = BriefStatusReader(state).read()
    lock.release()
    assert (seen.total, seen.done, seen.process) == (1000, 600, f"process {os.getpid()}")
    assert seen.obstacles == [ONE.note]
    assert seen.cost == ONE.cost
    assert [each.id for each in seen.failures.latest] == ["r1", "r2", "r3", "r4", "r5"]
    assert [tuple(each) for each in seen.failures.kinds] == [("even", 3), ("odd", 3)]


def test_a_run_that_nobody_drives_is_counted_however_fresh_the_record_is(state: Path):
    seen = BriefStatusReader(state).read()
    assert (seen.total, seen.done, seen.process, seen.whole, seen.ending) == (9, 6, "", None, "cut off")


def test_a_process_that_has_begun_no_session_yet_does_not_get_the_record_of_the_one_that_was_killed(state: Path):
    with Store(state) as store, store.transaction() as db:
        db.execute("UPDATE sessions SET pid = 1")
    lock = StateLock(state)
    seen = BriefStatusReader(state).read()
    lock.release()
    assert (seen.total, seen.whole) == (9, None)


@pytest.mark.parametrize("sql", ["UPDATE sessions SET outcome = 'finished'", "UPDATE sessions SET session = 2"])
def test_the_record_of_a_session_that_is_over_is_old(state: Path, sql: str):
    with Store(state) as store, store.transaction() as db:
        db.execute(sql)
    lock = StateLock(state)
    seen = BriefStatusReader(state).read()
    lock.release()
    assert (seen.total, seen.whole) == (9, None)


def test_a_run_whose_inputs_are_still_being_read_is_starting(tmp_path: Path):
    lock = StateLock(tmp_path / "new.state")
    seen = BriefStatusReader(tmp_path / "new.state").read()
    lock.release()
    assert seen.ending == f"starting, process {os.getpid()}"


def test_why_a_session_stopped_is_shown_until_the_next_one(state: Path):
    with Store(state) as store:
        store.end_session(1, round(NOW * 1000), "stopped", "the budget is used up")
    assert BriefStatusReader(state).read().ending == "stopped: the budget is used up"
    with Store(state) as store:
        store.begin_session(1, round(NOW * 1000))
    assert BriefStatusReader(state).read().ending == "cut off"


def test_status_shows_the_pace_of_the_last_minutes_while_a_process_drives_the_run(state: Path):
    assert "over a running time of" in render(read_status(state, NOW))
    published = PublishedStatus(None, 1, lambda: NOW)
    published.look = lambda: {"abc": ONE}
    published.update({"abc": ONE})
    with Store(state) as store:
        pace = {"every_s": 2, "ended": [8, 4, 8, 4, 8, 4, 8, 4, 2], "since_s": 160.0, "until_s": 161.0}
        store.set_setting("live", published.take(1.0, is_last=False)["live"] | {"pace": pace})
    lock = StateLock(state)
    seen = read_status(state, NOW)
    lock.release()
    assert seen.pace.rows_per_s == pytest.approx(50 / 17)
    assert seen.pace.left_s == pytest.approx(3 * 17 / 50)
    text = render(seen)
    assert "  2.9 rows/s over the last 17 s" in text
    assert "obstacle: slowed down: 429" in text
    assert "running time" not in text
