"""The order of writes, for each way in which a row can end: what goes to which file, and what is synced before what.

The journal writes to the real state file and the real results files, and a layer between notes what it does to them.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from batchrun.config import JobPolicy
from batchrun.endpoint.packing import Packing
from batchrun.endpoint.protocol import JobAnswer, JobStatus
from batchrun.engine.dedupe import SharedAnswers
from batchrun.engine.journal import Journal, Outgoing, PendingWrites, Unusable, Written
from batchrun.errors import OutputError
from batchrun.files.exactjson import load
from batchrun.runs.opening import open_run
from batchrun.scheduler import commands as cmd
from batchrun.scheduler.failures import Failure, FailureKind
from batchrun.state.records import Acceptance, Share
from tests.support.rehearsal import Listener, options_for, read_lines, write_lines
from tests.support.state_files import told

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from batchrun.engine.endings import Ending
    from batchrun.runs.opening import OpenRun

REFUSED = Failure(FailureKind.BAD_REQUEST, "vLLM returned HTTP 400", "vLLM returned HTTP 400")
CRASHED = Failure(FailureKind.WORKER_ERROR, "CUDA error", "CUDA error")
EXPIRED = Failure(FailureKind.EXPIRED, "the job is gone", "the job is gone")
LOST = Failure(FailureKind.UNCONFIRMED, "no answer to its submission", "no answer to its submission")
CHANGED = Failure(FailureKind.INVALID, "in.jsonl:1 has changed", "in.jsonl:1 has changed")


class BrokenError(Exception):
    """A write that did not succeed."""


@dataclass
class Log:
    """What was done to the files, in order, and the call that fails; None: all succeed."""

    entries: list[str] = field(default_factory=list)
    fails_at: str | None = None

    def note(self, entry: str) -> None:
        if self.fails_at is not None and entry.startswith(self.fails_at):
            raise BrokenError
        self.entries.append(entry)


class WatchedResults:
    """A results file that tells what is done to it."""

    def __init__(self, file: Any, log: Log) -> None:
        self._file, self._log = file, log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def append(self, lines: list[bytes]) -> None:
        self._log.note(f"append {self._file.path.name}: {ids_of(lines)}")
        self._file.append(lines)

    def sync(self) -> None:
        self._log.note(f"sync {self._file.path.name}")
        self._file.sync()


class WatchedState:
    """A state file that tells what each commit has changed, as another process then reads it."""

    def __init__(self, store: Any, log: Log) -> None:
        self._store, self._log = store, log
        self.has_failed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def commit(self, *args: Any) -> None:
        before = told(self._store.path)
        self._log.note("begin")
        self._store.commit(*args)
        self._log.entries.pop()
        after = told(self._store.path)
        self._log.note(committed(*(f"{key} {after[key]}" for key in after if after[key] != before.get(key))))


def ids_of(lines: list[bytes]) -> str:
    return " ".join(load(line)["id"] for line in lines)


@dataclass
class Desk:
    """An open run, its journal, and the log of what that does."""

    run: OpenRun
    journal: Journal
    log: Log

    def write(self, *endings: Ending, answers: dict[int, JobAnswer] | None = None, **more: Any) -> Written:
        """Write one batch; its entries alone are then in the log."""
        self.log.entries.clear()
        return self.journal.write(PendingWrites(endings=list(endings), answers=answers or {}, **more), 2_000)


@contextmanager
def desk_of(folder: Path, lines: list, *submits: cmd.Submit, transport: Any = None, **options: Any) -> Iterator[Desk]:
    """A run of these lines with jobs in flight, by default job 1 with the first row and job 2 with the second."""
    write_lines(folder, lines)
    log = Log()
    with open_run(options_for(folder, **options), Listener(), clock=lambda: 0.0, wall=lambda: 1.0) as run:
        run.results.update({number: WatchedResults(file, log) for number, file in run.results.items()})
        store = WatchedState(run.store, log)
        shares = run.options.dedupe
        journal = Journal(
            store,
            run.session,
            run.lines,
            run.results,
            transport or Packing(JobPolicy(), 1, "run"),
            share=Share(),
            shared_answers=SharedAnswers(store, run.lines, run.results) if shares else None,
            deliver=None if shares else lambda lines: log.note(f"deliver {ids_of(lines)}"),
        )
        desk = Desk(run, journal, log)
        journal.load(10)
        submits = submits or (submit(1, 1), submit(2, 2))
        desk.write(submits=submits)
        desk.write(accepted=[accepted(job.job, row) for job in submits for row in job.rows])
        yield desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """Rows a and b in flight as jobs 1 and 2, and c pending."""
    with desk_of(tmp_path, [{"id": name, "prompt": f"p {name}"} for name in ("a", "b", "c")]) as desk:
        yield desk


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Desk]:
    """The same, and a2 and a3 ask for what a asks for."""
    lines = [{"id": name, "prompt": f"p {name[0]}"} for name in ("a", "b", "c", "a2", "a3")]
    with desk_of(tmp_path, lines, dedupe=True) as desk:
        yield desk


@pytest.fixture
def packed(tmp_path: Path) -> Iterator[Desk]:
    """Rows a and b in flight as job 1."""
    lines = [{"id": name, "prompt": f"p {name}"} for name in ("a", "b")]
    with desk_of(tmp_path, lines, submit(1, 1, 2), transport=Packing(JobPolicy(), 2, "run")) as desk:
        yield desk


def committed(*changes: str) -> str:
    """The entry of a commit with these changes."""
    return f"commit {', '.join(changes)}"


def submit(job: int, *rows: int) -> cmd.Submit:
    return cmd.Submit(job, rows, (1,) * len(rows))


def accepted(job: int, row: int) -> Acceptance:
    return Acceptance(job, row, f"job-{job}", 1_000)


def answer(output: Any = "well", status: JobStatus = JobStatus.COMPLETED) -> JobAnswer:
    return JobAnswer("job-1", status, 10.0, 20.0, "w1", output=output, has_output=output is not None)


def succeeded(row: int, job: int | None = None) -> cmd.Finish:
    return cmd.Finish(job or row, row, "COMPLETED", None, 1, 0, is_answered=True)


def failed(row: int, failure: Failure = REFUSED, status: str = "FAILED", job: int | None = 0, **given) -> cmd.Finish:
    return cmd.Finish(row if job == 0 else job, row, status, failure, given.get("attempts", 1), given.get("lost", 0))


def requeued(status: str | None, failure: Failure | None, retries: int = 0, unconfirmed: int = 0) -> cmd.Requeue:
    return cmd.Requeue(1, 1, status, failure, retries, unconfirmed)


FAILED_ANSWER = answer(None, JobStatus.FAILED)

WAYS = {
    "a result": (
        succeeded(1),
        answer(),
        [
            "append out.jsonl: a",
            "sync out.jsonl",
            committed("a SUCCEEDED job 1", "job 1 COMPLETED", "out.jsonl whole"),
            "deliver a",
        ],
    ),
    "a failure of its job": (
        failed(1),
        FAILED_ANSWER,
        [committed("a FAILED job 1 bad_request", "job 1 FAILED"), "deliver a"],
    ),
    "a failure with a part of an output": (
        failed(1),
        answer(["half"], JobStatus.FAILED),
        [committed("a FAILED job 1 bad_request part", "job 1 FAILED"), "deliver a"],
    ),
    "a job that is gone": (
        failed(1, EXPIRED, "EXPIRED"),
        None,
        [committed("a FAILED job 1 expired", "job 1 EXPIRED"), "deliver a"],
    ),
    "a failure that is retried": (
        requeued("FAILED", CRASHED, retries=1),
        FAILED_ANSWER,
        [committed("a PENDING job 1 retries 1", "job 1 FAILED")],
    ),
    "a job that the user cancelled": (
        requeued("CANCELLED", None),
        None,
        [committed("a PENDING job 1", "job 1 CANCELLED")],
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_written_when_a_row_ends_whose_job_was_accepted(desk: Desk, way: str):
    ending, said, expected = WAYS[way]
    desk.write(ending, answers={} if said is None else {1: said})
    assert desk.log.entries == expected


BEFORE_ITS_ANSWER = {
    "an answer that was lost": (
        cmd.Requeue(3, 3, "UNCONFIRMED", LOST, 0, 1),
        [committed("c PENDING job 3 unconfirmed 1", "job 3 UNCONFIRMED")],
    ),
    "an answer that was lost too often": (
        failed(3, LOST, "UNCONFIRMED", lost=1),
        [committed("c FAILED job 3 unconfirmed unconfirmed 1", "job 3 UNCONFIRMED"), "deliver c"],
    ),
    "an answer that was lost, and is held": (
        cmd.Hold(3, 3, 1, "502"),
        [committed("c HELD job 3 unconfirmed 1", "job 3 UNCONFIRMED")],
    ),
    "a submission that surely made no job": (
        cmd.Requeue(3, 3, None, None, 0, 0),
        [committed("c PENDING")],
    ),
    "a submission that the API rejected": (
        failed(3, REFUSED, "REJECTED"),
        [committed("c FAILED job 3 bad_request", "job 3 REJECTED"), "deliver c"],
    ),
}


@pytest.mark.parametrize("way", BEFORE_ITS_ANSWER)
def test_what_is_written_when_a_row_ends_whose_job_was_not_accepted(desk: Desk, way: str):
    ending, expected = BEFORE_ITS_ANSWER[way]
    desk.write(submits=[submit(3, 3)])
    desk.write(ending)
    assert desk.log.entries == expected


def test_a_submission_that_made_no_job_leaves_none(desk: Desk):
    desk.write(submits=[submit(3, 3)])
    assert "job 3" in told(desk.run.store.path)
    desk.write(cmd.Requeue(3, 3, None, None, 0, 0))
    assert "job 3" not in told(desk.run.store.path)


# Followers: rows that ask for the same as another


@pytest.mark.parametrize(
    ("ending", "expected", "counted"),
    [
        (
            succeeded(1),
            [
                "append out.jsonl: a",
                "append out.jsonl: a2 a3",
                "sync out.jsonl",
                committed(
                    "a SUCCEEDED job 1",
                    "a2 SUCCEEDED job 1",
                    "a3 SUCCEEDED job 1",
                    "job 1 COMPLETED",
                    "out.jsonl whole",
                ),
            ],
            (2, 0, 0),
        ),
        (
            failed(1),
            [
                committed(
                    "a FAILED job 1 bad_request",
                    "a2 FAILED job 1 bad_request",
                    "a3 FAILED job 1 bad_request",
                    "job 1 FAILED",
                ),
            ],
            (0, 2, 0),
        ),
        (
            cmd.Hold(1, 1, 1, "502"),
            [committed("a HELD job 1 unconfirmed 1", "a2 HELD job 1", "a3 HELD job 1", "job 1 UNCONFIRMED")],
            (0, 0, 2),
        ),
        (requeued("FAILED", CRASHED, retries=1), [committed("a PENDING job 1 retries 1", "job 1 FAILED")], (0, 0, 0)),
    ],
    ids=["a result", "a failure", "held", "retried"],
)
def test_followers_end_in_the_transaction_of_their_leader_with_lines_behind_its_own(
    shared: Desk, ending: Ending, expected: list[str], counted: tuple[int, int, int]
):
    written = shared.write(ending, answers={1: answer()} if ending == succeeded(1) else {})
    assert shared.log.entries == expected
    assert (written.shared_succeeded, written.shared_failed, written.shared_held) == counted


# Jobs of several rows


def test_of_a_job_with_a_result_a_row_that_is_retried_has_no_job_and_the_job_is_still_polled(packed: Desk):
    retried = cmd.Requeue(1, 2, "FAILED", CRASHED, 1, 0, is_answered=True)
    packed.write(succeeded(1, job=1), retried, answers={1: answer(), 2: FAILED_ANSWER})
    assert packed.log.entries == [
        "append out.jsonl: a",
        "sync out.jsonl",
        committed("a SUCCEEDED job 1", "b PENDING retries 1", "job 1 COMPLETED", "out.jsonl whole"),
        "deliver a",
    ]


# Submissions


def test_the_intent_is_committed_before_the_job_may_be_sent(desk: Desk):
    written = desk.write(submits=[submit(3, 3)])
    assert desk.log.entries == [committed("c SUBMITTING job 3", "job 3 sent")]
    assert written.outgoing == [Outgoing(3, (3,), b'{"input":{"prompt":"p c"}}')]


def test_an_accepted_job_is_committed_with_its_id(desk: Desk):
    desk.write(submits=[submit(3, 3)])
    desk.write(accepted=[accepted(3, 3)])
    assert desk.log.entries == [committed("c SUBMITTED job 3", "job 3 accepted")]


def test_a_cancel_is_committed_before_it_may_be_sent(desk: Desk):
    desk.write(cancels=[cmd.Cancel(1, "job-1")])
    assert desk.log.entries == [committed("job 1 CANCELLING")]


def test_a_line_that_has_changed_is_not_submitted_and_fails_without_a_job(desk: Desk):
    path = desk.run.options.output.with_name("in.jsonl")
    path.write_bytes(path.read_bytes().replace(b"p c", b"p X"))
    written = desk.write(submits=[submit(3, 3)])
    assert desk.log.entries == [committed()], "nothing"
    assert written.outgoing == []
    message = f"{path}:3 has changed during the run"
    assert written.unusable == [Unusable(3, 3, message)]
    desk.write(failed(3, CHANGED, "INVALID", job=None, attempts=0))
    assert desk.log.entries == [committed("c FAILED invalid"), "deliver c"]


# Batches


def test_one_batch_is_one_transaction_behind_all_of_its_results(desk: Desk):
    desk.write(submits=[submit(3, 3)])
    written = desk.write(
        succeeded(1),
        failed(2),
        answers={1: answer(), 2: FAILED_ANSWER},
        accepted=[accepted(3, 3)],
        counters={"retries": 2},
    )
    assert desk.log.entries == [
        "append out.jsonl: a",
        "sync out.jsonl",
        committed(
            "a SUCCEEDED job 1",
            "b FAILED job 2 bad_request",
            "c SUBMITTED job 3",
            "job 1 COMPLETED",
            "job 2 FAILED",
            "job 3 accepted",
            "out.jsonl whole",
        ),
        "deliver a b",
    ]
    assert written.outgoing == []
    counters = desk.run.store.counters()
    assert counters["retries"] == 2


def test_a_row_that_is_submitted_again_in_the_batch_that_ended_its_job_has_the_new_one(desk: Desk):
    desk.write(requeued("FAILED", CRASHED, retries=1), answers={1: FAILED_ANSWER}, submits=[cmd.Submit(3, (1,), (2,))])
    assert desk.log.entries == [committed("a SUBMITTING job 3 retries 1", "job 1 FAILED", "job 3 sent")]


def test_each_results_file_gets_its_lines_and_all_are_synced_before_the_one_commit(tmp_path: Path):
    (tmp_path / "one.jsonl").write_text('{"id": "a", "prompt": "x"}')
    (tmp_path / "two.jsonl").write_text('{"id": "b", "prompt": "y"}')
    inputs = (str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl"))
    folder = {"inputs": inputs, "output": tmp_path / "out", "output_is_folder": True}
    with desk_of(tmp_path, [], state=tmp_path / "out" / "batchrun.state", **folder) as desk:
        desk.write(succeeded(1), succeeded(2), answers={1: answer(), 2: answer()})
    assert desk.log.entries == [
        "append one.results.jsonl: a",
        "append two.results.jsonl: b",
        "sync one.results.jsonl",
        "sync two.results.jsonl",
        committed(
            "a SUCCEEDED job 1",
            "b SUCCEEDED job 2",
            "job 1 COMPLETED",
            "job 2 COMPLETED",
            "one.results.jsonl whole",
            "two.results.jsonl whole",
        ),
        "deliver a b",
    ]


@pytest.mark.parametrize(
    ("fails_at", "done"),
    [
        ("append", []),
        ("sync", ["append out.jsonl: a"]),
        ("begin", ["append out.jsonl: a", "sync out.jsonl"]),
    ],
)
def test_what_follows_a_write_that_failed_is_not_written_in_this_batch_or_in_a_later_one(
    desk: Desk, fails_at: str, done: list[str]
):
    before = told(desk.run.store.path) | {"out.jsonl": "any"}
    desk.log.fails_at = fails_at
    with pytest.raises(BrokenError):
        desk.write(succeeded(1), answers={1: answer()}, submits=[submit(3, 3)])
    desk.log.fails_at = None
    assert desk.log.entries == done
    with pytest.raises(OutputError, match="not written, because an earlier write failed"):
        desk.write(succeeded(2), answers={2: answer()})
    assert desk.log.entries == []
    assert told(desk.run.store.path) | {"out.jsonl": "any"} == before


def test_a_result_whose_commit_failed_is_beyond_what_the_state_counts_on(desk: Desk):
    desk.log.fails_at = "begin"
    with pytest.raises(BrokenError):
        desk.write(succeeded(1), answers={1: answer()})
    assert [record["id"] for record in read_lines(desk.run.options.output)] == ["a"]
    assert told(desk.run.store.path)["out.jsonl"].endswith("bytes behind")
