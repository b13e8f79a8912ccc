from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pytest

from batchrun.commands import status
from batchrun.config import RunOptions
from batchrun.scheduler.states import RowState
from batchrun.state.figures import rescue_by
from batchrun.state.lock import StateLock
from batchrun.state.reader import StateReader
from batchrun.state.records import Acceptance, Batch, FailureRecord, JobEnd, SourceRecord, Submission
from batchrun.state.staging import StagedLine, merge, stage
from batchrun.state.store import Store
from batchrun.state.stored_options import store_options

if TYPE_CHECKING:
    from pathlib import Path

NOW = 1_800_000_000.0


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A run of five rows: one done, one failed, one in flight for ten minutes, one submitting, one pending."""
    path = tmp_path / "out.jsonl.state"
    with Store(path) as store:
        store_options(store, RunOptions(("a",), "abc", tmp_path / "out.jsonl", False, path))
        stage(store, [StagedLine(f"r{n}", False, 0, n, n, 1, b"d") for n in range(1, 6)])
        merge(store, [SourceRecord(0, "a", "/a", "/a", "", 1)], whole=True, limit=None)
        session = store.begin_session(1, round((NOW - 700) * 1000))
        ago_ms = round((NOW - 600) * 1000)
        batch = Batch(
            submitted=[Submission(n, n, 1, ago_ms, n) for n in range(1, 5)],
            counters={"unconfirmed": 1},
        )
        store.commit(batch, session, ago_ms)
        batch = Batch(
            accepted=[Acceptance(n, n, f"job-{n}", ago_ms) for n in range(1, 4)],
            ended=[
                JobEnd(1, 1, RowState.SUCCEEDED, "COMPLETED", 0, 0, 40_000, 20_000),
                JobEnd(2, 2, RowState.FAILED, "FAILED", 0, 0, None, None),
            ],
            failures=[FailureRecord(2, "FAILED", "bad_request", "too long", "raw", None, None)],
        )
        store.commit(batch, session, round(NOW * 1000))
    return path


def test_a_run_is_counted_by_where_its_rows_stand(state: Path):
    seen = status.read_status(state, NOW)
    assert (seen.total, seen.succeeded, seen.failed, seen.in_flight, seen.submitting, seen.pending) == (
        5,
        1,
        1,
        1,
        1,
        1,
    )
    assert seen.failures == [("bad_request", 1, "r2", "too long")]
    assert seen.rows_per_s == pytest.approx(2 / 700)
    assert seen.counters == {"unconfirmed": 1}


def test_a_job_in_flight_is_shown_with_its_age_and_how_long_its_result_can_be_rescued(state: Path):
    (job,) = status.read_status(state, NOW).jobs
    assert (job.id, job.job_id) == ("r3", "job-3")
    assert job.age_s == pytest.approx(600)
    assert job.rescue_in_s == pytest.approx(60 + 1800 - 600), "a minute in the system as the last job, then 30 minutes"
    with StateReader(state) as store:
        assert rescue_by(store, NOW) == pytest.approx(NOW - 600 + 60 + 1800)


def test_the_picture_names_what_a_person_looks_for(state: Path):
    text = status.render(status.read_status(state, NOW))
    assert "not running" in text
    assert "bad_request" in text
    assert "fetch within 21 min 00 s" in text
    assert f"resume: batchrun resume {state}" in text
    assert "may have expired" in status.render(status.read_status(state, NOW + 3600))


def test_a_run_that_is_going_on_is_shown_with_its_process(state: Path):
    lock = StateLock(state)
    seen = status.read_status(state, NOW)
    assert f"running (process {seen.pid})" in status.render(seen)
    assert "resume:" not in status.render(seen)
    lock.release()


def test_as_json_it_is_one_object(state: Path):
    data = orjson.loads(status.to_json(status.read_status(state, NOW)))
    assert data["failures"] == [{"kind": "bad_request", "count": 1, "id": "r2", "message": "too long"}]
    assert data["jobs"][0]["job_id"] == "job-3"
