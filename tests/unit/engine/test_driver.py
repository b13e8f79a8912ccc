"""Commands in, requests out: what the driver does with each command, and which event each answer becomes.

A story takes the scheduler's place: it gives commands, and is told what came of them. Everything else is real: the
journal, the client, and an endpoint on loopback that notes each request, with what was on disk when it arrived.
"""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from batchrun.config import JobPolicy, SchedulerOptions
from batchrun.endpoint.client import EndpointClient
from batchrun.endpoint.packing import Packing
from batchrun.engine.answers import Answers
from batchrun.engine.counts import SessionCounts
from batchrun.engine.driver import Engine, Outcome
from batchrun.engine.journal import Journal
from batchrun.engine.published_status import PublishedStatus
from batchrun.engine.signals import Wish
from batchrun.engine.streamed import Streamed
from batchrun.errors import AmbiguousError, NotFoundError, OutputError, RefusedError, StoppedError, ThrottledError
from batchrun.runs.opening import open_run
from batchrun.scheduler import commands as cmd
from batchrun.scheduler import events as ev
from batchrun.scheduler.failures import Failure, FailureKind
from batchrun.scheduler.scheduler import Scheduler
from batchrun.state.records import Share
from tests.support.rehearsal import Listener, options_for, read_lines, serving, write_lines
from tests.support.state_files import told
from tests.support.workers import Picky

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from batchrun.runs.opening import OpenRun

REFUSED = Failure(FailureKind.BAD_REQUEST, "vLLM returned HTTP 400: bad prompt", "vLLM returned HTTP 400: bad prompt")
ANSWERED = (cmd.LoadRows, cmd.Submit, cmd.Poll, cmd.Cancel, cmd.CheckHealth)


class Story(Scheduler):
    """A scheduler that does not decide: it gives the commands of a story.

    Args:
        story: Given the story itself, yields commands; it continues when the driver has told something.
    """

    def __init__(self, story: Callable[[Story], Iterator[list[cmd.Command]]]) -> None:
        super().__init__(SchedulerOptions(), Random(0))
        self.told: list[ev.Event] = []
        self._commands = story(self)
        self._awaits = 0
        """How many events there are to be before it continues."""
        self._is_over = False
        self.at_last: list[cmd.Command] = []
        """What is decided when the session ends."""

    @property
    def is_done(self) -> bool:
        return self._is_over

    def handle(self, event: ev.Event, now: float) -> None:
        self.told.append(event)

    def commands(self, now: float) -> list[cmd.Command]:
        if len(self.told) < self._awaits:
            return []
        given = next(self._commands, None)
        self._is_over = given is None
        self._awaits = len(self.told) + any(isinstance(command, ANSWERED) for command in given or ())
        return given or []

    def decided(self) -> list[cmd.Command]:
        return self.at_last

    def next_wakeup(self, now: float) -> float | None:
        return None

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.told if isinstance(event, kind)]

    @property
    def remote_id(self) -> str:
        """The ID of the only job that was accepted."""
        (submitted,) = self.of(ev.Submitted)
        return submitted.remote_id

    def submit(self, row: int) -> Iterator[list[cmd.Command]]:
        """Load the rows, and submit one of them as job 1."""
        yield [cmd.LoadRows(10)]
        yield [cmd.Submit(1, (row,), (1,))]

    def collect(self, row: int) -> Iterator[list[cmd.Command]]:
        """Submit a row, and poll its job until it is over."""
        yield from self.submit(row)
        while not self.of(ev.JobEnded):
            yield [cmd.Poll(1, self.remote_id, (row,))]


@dataclass
class Driven:
    """What a story came to."""

    outcome: Outcome
    story: Story
    requests: list[str]
    """Each by its operation; those of jobs with what was committed of the row when they arrived."""
    listener: Listener
    folder: Path
    counters: Counter[str] = field(default_factory=Counter)

    @property
    def state(self) -> dict[str, str]:
        return told(self.folder / "out.jsonl.state")

    def events(self) -> list[str]:
        return [type(event).__name__ for event in self.story.told]


async def driven(
    folder: Path,
    story: Callable[[Story], Iterator[list[cmd.Command]]],
    *,
    fault: Callable[[str], web.StreamResponse | None] = lambda _: None,
    during: Callable[[Engine], None] = lambda _: None,
    **local: Any,
) -> Driven:
    """Drive a story with rows a and `bad b`, which the endpoint's worker refuses.

    Args:
        folder: Where the run's files go.
        story: See `Story`.
        fault: Given each operation; what it returns is answered instead.
        during: Called with the engine when the first request arrives.
        local: Options of the endpoint.
    """
    write_lines(folder, [{"id": "a", "prompt": "well"}, {"id": "b", "prompt": "bad"}])
    requests: list[str] = []
    engines: list[Engine] = []

    async def note(request: web.BaseRequest, operation: str) -> web.StreamResponse | None:
        committed = told(folder / "out.jsonl.state")
        requests.append(f"{operation}: {committed['a']}" if operation in ("run", "cancel") else operation)
        if operation == "cancel":
            requests[-1] += f" {committed['job 1']}"
        if len(requests) == 1:
            during(engines[0])
        return fault(operation)

    scheduler, listener = Story(story), Listener()
    async with serving(note, Picky(), **local) as server:
        with open_run(options_for(folder), listener, clock=time.monotonic, wall=time.time) as run:
            async with engine_of(run, server.endpoint.base_url, scheduler) as engine:
                engines.append(engine)
                engine.adopt()
                outcome = await engine.run()
            counters = Counter(run.store.counters())
    return Driven(outcome, scheduler, requests, listener, folder, counters)


@asynccontextmanager
async def engine_of(run: OpenRun, base_url: str, scheduler: Story) -> AsyncIterator[Engine]:
    transport, options = Packing(JobPolicy(), 1, "run"), run.options
    journal = Journal(run.store, run.session, run.lines, run.results, transport, share=Share())
    with ThreadPoolExecutor(1) as thread:
        async with EndpointClient(base_url, "local", None, connections=4, timeout_s=5.0) as client:
            yield Engine(
                scheduler,
                journal,
                client,
                SessionCounts(run.store.counts(), run.clock()),
                run.observer,
                answers=Answers(
                    client, transport, Streamed(client, options.scheduler.limits.status, Random(0), run.clock)
                ),
                published=PublishedStatus(None, run.session, run.wall),
                thread=thread,
                clock=run.clock,
                wall=run.wall,
            )


def answered(http_status: int, body: dict[str, Any], operation: str, **headers: str) -> Callable[[str], Any]:
    """An endpoint that answers one operation so."""
    said = {"status": http_status, "headers": {name.replace("_", "-"): value for name, value in headers.items()}}
    return lambda found: web.json_response(body, **said) if found == operation else None


def finish(row: int, failure: Failure | None = None) -> cmd.Finish:
    return cmd.Finish(1, row, "FAILED" if failure else "COMPLETED", failure, 1, 0, is_answered=True)


# Each command, and what comes of it


async def test_rows_that_are_asked_for_are_read_from_the_state_file(tmp_path: Path):
    def story(play: Story):
        yield [cmd.LoadRows(1)]
        yield [cmd.LoadRows(9)]

    done = await driven(tmp_path, story)
    assert done.story.told == [
        ev.RowsLoaded((ev.Ticket(1),), exhausted=False),
        ev.RowsLoaded((ev.Ticket(2),), exhausted=True),
    ]
    assert done.requests == []


async def test_a_health_check_becomes_what_the_endpoint_says_of_its_workers(tmp_path: Path):
    def story(play: Story):
        yield [cmd.CheckHealth()]

    done = await driven(tmp_path, story, workers=3)
    (seen,) = done.story.told
    assert seen.health.serving == 3
    assert (done.requests, done.counters["calls_health"]) == (["health"], 1)


async def test_a_submission_arrives_when_its_intent_is_on_disk_and_its_id_is_there_in_the_end(tmp_path: Path):
    done = await driven(tmp_path, lambda story: story.submit(1))
    assert done.requests == ["run: SUBMITTING job 1"]
    (submitted,) = done.story.of(ev.Submitted)
    assert (submitted.job, bool(submitted.remote_id)) == (1, True)
    assert (done.state["a"], done.state["job 1"]) == ("SUBMITTED job 1", "accepted")


async def test_a_job_that_is_not_over_is_seen(tmp_path: Path):
    def story(play: Story):
        yield from play.submit(1)
        yield [cmd.Poll(1, play.remote_id, (1,))]

    done = await driven(tmp_path, story, latency_s=3600.0)
    (seen,) = done.story.of(ev.JobSeen)
    assert seen.job == 1
    assert done.requests[1:] == ["status"]


async def test_a_job_that_is_over_has_ended_with_what_its_answer_means_for_its_row(tmp_path: Path):
    done = await driven(tmp_path, lambda story: story.collect(1))
    (ended,) = done.story.of(ev.JobEnded)
    assert (ended.job, ended.status, ended.rows, ended.was_polled) == (1, "COMPLETED", (ev.RowAnswer(),), True)
    assert ended.execution_s is not None
    assert ended.worker_id is not None
    assert read_lines(tmp_path / "out.jsonl") == [], "nothing is written before the scheduler says so"


async def test_a_job_that_failed_has_ended_with_the_reason(tmp_path: Path):
    done = await driven(tmp_path, lambda story: story.collect(2))
    (ended,) = done.story.of(ev.JobEnded)
    assert (ended.status, ended.rows) == ("FAILED", (ev.RowAnswer(REFUSED),))


async def test_a_job_that_is_over_when_it_is_accepted_has_ended_without_a_poll(tmp_path: Path):
    body = {"id": "job-1", "status": "COMPLETED", "output": "well"}
    done = await driven(tmp_path, lambda story: story.submit(1), fault=answered(200, body, "run"))
    (ended,) = done.story.of(ev.JobEnded)
    assert done.events() == ["RowsLoaded", "Submitted", "JobEnded"]
    assert (ended.rows, ended.was_polled) == ((ev.RowAnswer(),), False)


async def test_a_row_that_has_ended_is_written_with_the_answer_that_was_kept_for_it(tmp_path: Path):
    def story(play: Story):
        yield from play.collect(1)
        yield [finish(1)]

    done = await driven(tmp_path, story)
    (record,) = read_lines(tmp_path / "out.jsonl")
    assert (record["id"], record["job"]["id"], record["text"]) == ("a", done.story.remote_id, "well")
    assert (done.state["a"], done.state["job 1"], done.state["out.jsonl"]) == ("SUCCEEDED job 1", "COMPLETED", "whole")
    assert done.outcome == Outcome("finished")


async def test_a_row_that_has_failed_or_is_retried_is_counted_and_its_answer_dropped(tmp_path: Path):
    def story(play: Story):
        yield from play.collect(2)
        yield [cmd.Requeue(1, 2, "FAILED", REFUSED, 1, 0, is_answered=True)]

    done = await driven(tmp_path, story)
    assert done.state["b"] == "PENDING job 1 retries 1"
    assert (done.counters["retries"], done.counters["unconfirmed"]) == (1, 0)
    assert not (tmp_path / "out.jsonl").read_bytes()


async def test_a_cancel_arrives_when_its_intent_is_on_disk(tmp_path: Path):
    def story(play: Story):
        yield from play.submit(1)
        yield [cmd.Cancel(1, play.remote_id)]

    done = await driven(tmp_path, story, latency_s=3600.0)
    assert done.requests == ["run: SUBMITTING job 1", "cancel: SUBMITTED job 1 CANCELLING"]
    assert done.story.told[-1] == ev.JobCancelled(1, "CANCELLED")


async def test_a_job_of_an_earlier_session_is_told_before_anything_else_and_can_be_polled(tmp_path: Path):
    before = (await driven(tmp_path, lambda story: story.submit(1))).story.remote_id
    begun_at = time.monotonic()

    def story(play: Story):
        yield [cmd.Poll(1, before, (1,))]

    done = await driven(tmp_path, story)
    adopted, failed = done.story.told
    assert adopted == ev.JobAdopted((ev.Ticket(1, attempts=1),), 1, before, adopted.submitted_at)
    assert begun_at - 5.0 < adopted.submitted_at < begun_at + 0.1
    assert isinstance(failed.error, NotFoundError), "this endpoint is another one"
    assert done.requests == ["status"]


# Answers of no use


@pytest.mark.parametrize("operation", ["run", "status", "cancel", "health"])
async def test_a_429_is_told_with_the_time_that_it_names_and_counted(tmp_path: Path, operation: str):
    def story(play: Story):
        if operation == "health":
            yield [cmd.CheckHealth()]
            return
        yield from play.submit(1)
        if operation != "run":
            command = cmd.Poll(1, play.remote_id, (1,)) if operation == "status" else cmd.Cancel(1, play.remote_id)
            yield [command]

    fault = answered(429, {"error": "slow down"}, operation, Retry_After="7")
    done = await driven(tmp_path, story, fault=fault, latency_s=3600.0)
    last = done.story.told[-1]
    name = {"run": "SubmitFailed", "status": "PollFailed", "cancel": "CancelFailed", "health": "HealthFailed"}
    assert type(last).__name__ == name[operation]
    assert isinstance(last.error, ThrottledError)
    assert last.error.retry_after_s == 7.0
    assert done.counters["throttled"] == done.counters[f"calls_{operation}"] == 1


async def test_a_submission_that_got_no_usable_answer_has_its_intent_on_disk_and_no_id(tmp_path: Path):
    done = await driven(tmp_path, lambda story: story.submit(1), fault=answered(502, {}, "run"))
    (failed,) = done.story.of(ev.SubmitFailed)
    assert isinstance(failed.error, AmbiguousError)
    assert (done.state["a"], done.state["job 1"]) == ("SUBMITTING job 1", "sent")


async def test_a_line_that_has_changed_is_told_and_nothing_is_sent(tmp_path: Path):
    def story(play: Story):
        yield [cmd.LoadRows(10)]
        path = tmp_path / "in.jsonl"
        path.write_bytes(path.read_bytes().replace(b"well", b"WELL"))
        yield [cmd.Submit(1, (1,), (1,))]

    done = await driven(tmp_path, story)
    assert done.story.told[1:] == [ev.LineUnusable(1, 1, f"{tmp_path}/in.jsonl:1 has changed during the run")]
    assert done.requests == []


# The end


def halting(play: Story) -> Iterator[list[cmd.Command]]:
    yield from play.submit(1)
    yield [cmd.Halt(RefusedError("the API key is not accepted")), cmd.Poll(1, play.remote_id, (1,))]
    raise AssertionError("it goes no further")


async def test_a_halt_ends_the_session_with_its_reason_and_what_is_known_is_on_disk(tmp_path: Path):
    done = await driven(tmp_path, halting)
    assert (done.outcome.kind, done.outcome.error.message) == ("stopped", "the API key is not accepted")
    assert done.state["a"] == "SUBMITTED job 1"


async def test_a_drain_is_said_and_the_session_continues(tmp_path: Path):
    def story(play: Story):
        yield [cmd.Drain(StoppedError("3 rows failed")), cmd.CheckHealth()]
        yield [cmd.CheckHealth()]

    done = await driven(tmp_path, story)
    assert done.requests == ["health", "health"]
    assert done.listener.messages[-1] == "stopping: 3 rows failed; nothing is in flight"


async def test_a_submission_that_is_not_sent_when_the_session_ends_never_is(tmp_path: Path):
    def story(play: Story):
        yield [cmd.LoadRows(10)]
        yield [cmd.CheckHealth()]
        yield [cmd.Submit(1, (1,), (1,)), cmd.Halt(StoppedError("the deadline has come"))]

    done = await driven(tmp_path, story)
    assert done.requests == ["health"]
    assert done.state["a"] == "PENDING"


async def test_an_answer_that_comes_within_a_second_of_leaving_is_still_written_down(tmp_path: Path):
    done = await driven(tmp_path, lambda story: story.submit(1), during=lambda engine: engine.leave(Wish.LEAVE))
    assert done.outcome.kind == "interrupted"
    assert done.events()[-1] == "Submitted"
    assert (done.state["a"], done.state["job 1"]) == ("SUBMITTED job 1", "accepted")


@pytest.mark.parametrize(("wish", "event"), [(Wish.DRAIN, ev.StopRequested()), (Wish.CANCEL, ev.CancelRequested())])
async def test_a_wish_to_leave_is_told_to_the_scheduler_which_decides(tmp_path: Path, wish: Wish, event: ev.Event):
    def story(play: Story):
        yield [cmd.CheckHealth()]
        while event not in play.told:
            yield [cmd.CheckHealth()]

    done = await driven(tmp_path, story, during=lambda engine: engine.leave(wish))
    assert done.outcome.kind == "interrupted"
    assert event in done.story.told


async def test_what_is_decided_at_the_very_end_is_written_down(tmp_path: Path):
    def story(play: Story):
        yield from play.collect(1)
        play.at_last.append(finish(1))

    done = await driven(tmp_path, story)
    assert done.state["a"] == "SUCCEEDED job 1"


async def test_a_batch_that_cannot_be_written_stops_the_session(tmp_path: Path):
    def story(play: Story):
        yield from play.collect(1)
        (tmp_path / "out.jsonl").write_bytes(b"another program's\n")
        yield [finish(1)]
        while True:
            yield [cmd.CheckHealth()]

    done = await driven(tmp_path, story)
    assert done.outcome.kind == "stopped"
    assert isinstance(done.outcome.error, OutputError)
    assert "SUCCEEDED" not in done.state["a"]
    assert (tmp_path / "out.jsonl").read_bytes() == b"another program's\n"
