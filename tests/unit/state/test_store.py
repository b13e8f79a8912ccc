from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest

from batchrun.errors import InputError, OutputError, StateError
from batchrun.scheduler.states import RowState
from batchrun.state.figures import execution, failure_groups, percentiles
from batchrun.state.invariants import INVARIANTS
from batchrun.state.reader import StateReader
from batchrun.state.records import Acceptance, Batch, FailureRecord, JobEnd, SourceRecord, Submission
from batchrun.state.schema import SCHEMA_VERSION
from batchrun.state.staging import StagedLine, merge, stage
from batchrun.state.store import Store

if TYPE_CHECKING:
    from pathlib import Path

SOURCES = [SourceRecord(0, "a.jsonl", "/a.jsonl", "/a.jsonl", "1:2:3", 1)]


def line(row_id: str, number: int, *, derived: bool = False, digest: bytes = b"d") -> StagedLine:
    return StagedLine(row_id, derived, 0, number, number * 10, 9, digest + row_id.encode())


def take(store: Store, *lines: StagedLine, whole: bool = True, limit: int | None = None):
    stage(store, lines)
    return merge(store, SOURCES, whole=whole, limit=limit)


@pytest.fixture
def store(tmp_path: Path):
    with Store(tmp_path / "run.state") as store, store.transaction() as db:
        db.execute("INSERT INTO outputs VALUES (1, 'out.jsonl', 0)")
    with Store(tmp_path / "run.state") as store:
        yield store


def read_all(path: Path) -> None:
    with Store(path) as store:
        store.counts()
        store.row_by_id("r1999")


def commit(store: Store, **fields) -> None:
    store.commit(Batch(**fields), session=1, now_ms=1000)


def submit(store: Store, row: int, job: int, *, accepted: bool = True) -> None:
    commit(store, submitted=[Submission(job, row, 1, 500, row)])
    if accepted:
        commit(store, accepted=[Acceptance(job, row, f"remote-{job}", 600)])


def test_rows_come_back_in_input_order_and_by_the_window(store: Store):
    take(store, *(line(f"r{n}", n) for n in range(1, 8)))
    first = store.pending(0, 3)
    assert [record.id for record in first] == ["r1", "r2", "r3"]
    assert [record.id for record in store.pending(first[-1].row, 10)] == ["r4", "r5", "r6", "r7"]


def test_equal_lines_without_an_id_are_numbered_in_input_order(store: Store):
    take(store, line("aa", 1, derived=True), line("bb", 2, derived=True), line("aa", 3, derived=True))
    assert [record.id for record in store.pending(0, 9)] == ["aa", "bb", "aa-2"]


def test_an_id_on_two_lines_is_refused_with_both_lines_and_changes_nothing(store: Store):
    with pytest.raises(InputError, match=r"'x': a.jsonl:1 and a.jsonl:7"):
        take(store, line("x", 1), line("y", 2), line("x", 7))
    assert store.pending(0, 9) == []


def test_a_reordered_input_keeps_what_was_done(store: Store):
    take(store, line("x", 1), line("y", 2))
    submit(store, row=1, job=1)
    take(store, line("y", 1), line("x", 2))
    moved = store.row_by_id("x")
    assert (moved.state, moved.line, moved.offset) == (RowState.SUBMITTED, 2, 20)


def test_added_lines_become_rows_and_unsent_ones_that_are_gone_are_dropped(store: Store):
    take(store, line("x", 1), line("y", 2))
    merged = take(store, line("x", 1), line("z", 2))
    assert (merged.rows, merged.added, merged.dropped) == (2, 1, 1)


def test_a_line_that_changed_after_its_submission_is_refused_by_name(store: Store):
    take(store, line("x", 1), line("y", 2))
    submit(store, row=1, job=1)
    with pytest.raises(StateError, match=r"has changed since it was submitted: a.jsonl:4 \(id 'x'\)"):
        take(store, line("y", 3), line("x", 4, digest=b"other"))
    assert store.row_by_id("x").line == 1


def test_a_line_that_is_gone_after_its_submission_is_refused_by_name(store: Store):
    take(store, line("x", 1), line("y", 2))
    submit(store, row=2, job=1)
    with pytest.raises(StateError, match=r"missing from the input: a.jsonl:2 \(id 'y'\)"):
        take(store, line("x", 1))


def test_a_line_that_changed_before_it_was_submitted_is_simply_taken(store: Store):
    take(store, line("x", 1))
    take(store, line("x", 1, digest=b"other"))
    assert store.row_by_id("x").digest == b"otherx"


def test_a_limit_takes_the_first_rows_and_a_later_larger_one_the_rest(store: Store):
    lines = [line(f"r{n}", n) for n in range(1, 6)]
    assert take(store, *lines, limit=2).rows == 2
    assert take(store, *lines, limit=4).added == 2
    assert take(store, *lines).rows == 5


def test_the_life_of_a_row_can_be_read_back_at_every_step(store: Store):
    take(store, line("x", 1))
    submit(store, row=1, job=1, accepted=False)
    assert store.row(1).state is RowState.SUBMITTING
    commit(store, accepted=[Acceptance(1, 1, "remote-1", 600)])
    (job,) = store.open_jobs()
    assert (job.job, job.remote_id, job.submitted_ms) == (1, "remote-1", 600)
    assert ([(row.id, row.attempts) for row in job.rows], job.all_rows) == ([("x", 1)], (1,))
    assert not job.is_cancelling
    commit(store, ended=[JobEnd(1, 1, RowState.SUCCEEDED, "COMPLETED", 0, 0, 30, 1400)], committed_bytes={1: 77})
    assert store.open_jobs() == []
    assert store.counts()[RowState.SUCCEEDED] == 1
    assert store.outputs()[0].committed_bytes == 77
    assert percentiles(store, "execution_ms", (0.5, 0.99)) == (1400, 1400)
    assert store.next_job() == 2


def test_a_job_that_is_about_to_be_cancelled_is_open_and_known_as_such(store: Store):
    take(store, line("x", 1))
    submit(store, row=1, job=1)
    commit(store, cancelling=[(1,)])
    assert [job.is_cancelling for job in store.open_jobs()] == [True]
    assert execution(store).jobs == 0, "it has not ended"
    commit(store, ended=[JobEnd(1, 1, RowState.PENDING, "CANCELLED", 0, 0, None, None)])
    assert store.open_jobs() == []


def test_jobs_that_never_ran_make_no_other_job_look_cheap(store: Store):
    ends = [("COMPLETED", 1000), ("FAILED", None), ("TIMED_OUT", 500), ("CANCELLED", None), ("REJECTED", None)]
    take(store, *(line(f"r{n}", n) for n in range(1, 6)))
    for number, (status, execution_ms) in enumerate(ends, 1):
        submit(store, row=number, job=number)
        commit(store, ended=[JobEnd(number, number, RowState.PENDING, status, 0, 0, None, execution_ms)])
    assert execution(store) == (3, 1500, 500)


def test_a_submission_that_made_no_job_is_forgotten(store: Store):
    take(store, line("x", 1))
    submit(store, row=1, job=1, accepted=False)
    commit(store, ended=[JobEnd(1, 1, RowState.PENDING, None, 0, 0, None, None)])
    row = store.row(1)
    assert (row.state, row.attempts) == (RowState.PENDING, 0)
    assert store.query("SELECT count(*) FROM jobs") == [(0,)]


def test_a_submission_that_made_no_job_hides_no_unconfirmed_one(store: Store):
    take(store, line("a", 1))
    (row,) = [record.row for record in store.pending(0, 1)]
    commit(store, submitted=[Submission(1, row, 1, 1000, row, 7)])
    commit(store, ended=[JobEnd(1, row, RowState.PENDING, "UNCONFIRMED", 0, 1, None, None)])
    commit(store, submitted=[Submission(2, row, 2, 2000, row, 7)])
    commit(store, ended=[JobEnd(2, row, RowState.PENDING, None, 0, 1, None, None)])
    assert store.homes([row]) == {row: 7}


@pytest.fixture
def packed(store: Store) -> Store:
    """Four rows of which job 7 has carried the third, the first and the second, in this order."""
    take(store, *(line(f"r{n}", n) for n in range(1, 5)))
    rows = (3, 1, 2)
    commit(store, submitted=[Submission(7, row, 1, 500, rows if row == 3 else None) for row in rows])
    commit(store, accepted=[Acceptance(7, row, "remote-7", 600) for row in rows])
    return store


def test_the_rows_of_a_job_come_back_in_the_order_in_which_they_were_sent(packed: Store):
    (job,) = packed.open_jobs()
    assert (job.job, [row.row for row in job.rows], job.all_rows) == (7, [3, 1, 2], (3, 1, 2))
    assert [row.row for row in packed.pending(0, 9)] == [4]
    assert packed.recent_submissions_ms(0) == [600], "a job is one submission"


def test_a_job_whose_rows_have_ended_in_part_is_open_for_the_others_in_their_places(packed: Store):
    ended = [JobEnd(7, 1, RowState.SUCCEEDED, "COMPLETED", 0, 0, 30, 1400)]
    commit(packed, ended=ended, may_end_in_part=True)
    (job,) = packed.open_jobs()
    assert ([row.row for row in job.rows], job.all_rows) == ([3, 2], (3, 1, 2))
    assert packed.query("SELECT status FROM jobs") == [(None,)]


def test_a_row_that_is_to_be_sent_again_lets_go_of_a_job_that_others_have_results_of(packed: Store):
    states = {1: RowState.SUCCEEDED, 2: RowState.PENDING, 3: RowState.FAILED}
    ended = [JobEnd(7, row, state, "COMPLETED", 1, 0, 30, 1400) for row, state in states.items()]
    failure = FailureRecord(3, "FAILED", "bad_request", "no", "no", None, None)
    commit(packed, ended=ended, left=[(2,)], failures=[failure], parts=[(7, 3, b'"half"')])
    assert packed.query("SELECT row, job FROM rows ORDER BY row") == [(1, 7), (2, None), (3, 7), (4, None)]
    assert packed.open_jobs() == []
    assert percentiles(packed, "execution_ms", (0.5,)) == (1400,), "one job, whatever rows it had"
    ((row, _, failed),) = packed.failures()
    assert (row.row, failed.remote_id, failed.output, failed.same_as) == (3, "remote-7", b'"half"', None)
    assert not [kind for kind, invariant in INVARIANTS.items() if packed.query(f"SELECT 1 {invariant.breach}")]


def test_a_job_of_several_rows_that_was_never_made_is_forgotten_for_all_of_them(packed: Store):
    commit(packed, ended=[JobEnd(7, row, RowState.PENDING, None, 0, 0, None, None) for row in (3, 1, 2)])
    assert [(row.row, row.attempts) for row in packed.pending(0, 9)] == [(1, 0), (2, 0), (3, 0), (4, 0)]
    assert packed.query("SELECT count(*) FROM jobs") == [(0,)]


@pytest.mark.parametrize(("policy", "state"), [("resubmit", RowState.PENDING), ("hold", RowState.HELD)])
def test_a_submission_cut_off_by_a_crash_is_counted_and_treated_as_the_user_wishes(store: Store, policy, state):
    take(store, line("x", 1), line("y", 2))
    submit(store, row=1, job=1, accepted=False)
    assert store.settle_unconfirmed(policy) == 1
    row = store.row(1)
    assert (row.state, row.attempts, row.unconfirmed) == (state, 1, 1)
    assert store.counters() == {"unconfirmed": 1}


def test_held_rows_are_submitted_when_the_user_changes_their_mind(store: Store):
    take(store, line("x", 1))
    submit(store, row=1, job=1, accepted=False)
    store.settle_unconfirmed("hold")
    assert store.settle_unconfirmed("resubmit") == 0
    assert store.row(1).state is RowState.PENDING


def test_failed_rows_are_taken_up_again_by_kind_with_fresh_retries(store: Store):
    take(store, line("x", 1), line("y", 2))
    for row, kind in ((1, "timed_out"), (2, "bad_request")):
        submit(store, row=row, job=row)
        commit(
            store,
            ended=[JobEnd(row, row, RowState.FAILED, "FAILED", 3, 0, None, None)],
            failures=[FailureRecord(row, "FAILED", kind, "message", "raw", None, 1)],
        )
    assert failure_groups(store) == [("timed_out", 1, "x", "message"), ("bad_request", 1, "y", "message")]
    assert store.retry_failed(("timed_out",)) == 1
    assert (store.row(1).state, store.row(1).retries) == (RowState.PENDING, 0)
    assert [failure.kind for _, failure, _ in store.failures(1)] == ["bad_request"]
    assert store.retry_failed(()) == 1


def test_a_batch_is_written_whole_or_not_at_all(store: Store):
    take(store, line("x", 1), line("y", 2))
    submit(store, row=1, job=1, accepted=False)
    with pytest.raises(StateError):
        commit(store, accepted=[Acceptance(1, 1, "remote-1", 600)], submitted=[Submission(1, 2, 1, 700, 2)])
    assert store.row(1).state is RowState.SUBMITTING


def test_a_newer_state_file_is_refused_and_left_alone(tmp_path: Path):
    path = tmp_path / "run.state"
    Store(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StateError, match="newer batchrun"):
        Store(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b'{"prompt": "x"}\n'])
def test_a_file_that_is_no_state_file_is_refused_and_left_alone(tmp_path: Path, content: bytes):
    path = tmp_path / "run.state"
    path.write_bytes(content)
    with pytest.raises(StateError):
        Store(path)
    assert path.read_bytes() == content


def test_another_sqlite_database_is_refused_and_left_alone(tmp_path: Path):
    path = tmp_path / "run.state"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE precious (x)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StateError, match="not a state file of batchrun"):
        Store(path)
    assert path.read_bytes() == before


def test_a_folder_and_a_missing_file_are_refused_in_one_line(tmp_path: Path):
    with pytest.raises(StateError, match="is a folder"):
        Store(tmp_path)
    with pytest.raises(StateError, match="no such state file"):
        StateReader(tmp_path / "none.state")


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be created"):
        Store(tmp_path / "file" / "run.state")


def test_a_truncated_state_file_never_passes_for_an_empty_one(tmp_path: Path):
    path = tmp_path / "run.state"
    with Store(path) as store:
        take(store, *(line(f"r{n}", n) for n in range(2000)))
    whole = path.read_bytes()
    for pages in range(1, 10):
        path.write_bytes(whole[: pages * 4096])
        with pytest.raises(StateError):
            read_all(path)


def test_a_row_costs_less_than_190_bytes(tmp_path: Path):
    path = tmp_path / "run.state"
    rows = 20_000
    with Store(path) as store:
        take(store, *(line(f"{n:016x}", n, digest=b"") for n in range(rows)))
        for start in range(0, rows, 1000):
            numbers = range(start + 1, start + 1001)
            commit(store, submitted=[Submission(n, n, 1, 1_700_000_000_000, n) for n in numbers])
            remote = "2f0a4c1e-6b1d-4a7e-9f39-0c1d2e3f4a5b-u1"
            commit(store, accepted=[Acceptance(n, n, remote, 1_700_000_000_000) for n in numbers])
            commit(store, ended=[JobEnd(n, n, RowState.SUCCEEDED, "COMPLETED", 0, 0, 31, 1437) for n in numbers])
    assert path.stat().st_size / rows < 190
