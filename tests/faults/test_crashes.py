"""A run that dies again and again, at every call to the disk and at every request, and is started again each time."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from random import Random
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from batchrun.commands import findings
from batchrun.commands import verify as verification
from batchrun.local.echo import EchoWorker
from batchrun.local.workers import WorkerFailure
from batchrun.runs.closing import conclude
from batchrun.runs.driving import drive
from batchrun.runs.opening import open_run
from batchrun.scheduler.states import RowState
from batchrun.state.store import Store
from tests.support.rehearsal import Listener, Picky, hurried, options_for, read_lines, rehearse, serving, write_lines

if TYPE_CHECKING:
    from pathlib import Path

    from aiohttp import web

    from batchrun.config import RunOptions

ROWS = 40
MOST_SESSIONS = 300


class Crash(BaseException):
    """The process is gone."""


@dataclass
class Doom:
    """When a session dies: after so many calls to the disk, or so many requests that reached the server."""

    calls: int
    requests: int
    is_dead: bool = False

    def call(self) -> bool:
        """Count a call; whether the process dies in the middle of it."""
        if self.is_dead:
            raise Crash
        self.calls -= 1
        self.is_dead = self.calls <= 0
        return self.is_dead

    def request(self) -> bool:
        self.requests -= 1
        self.is_dead = self.is_dead or self.requests <= 0
        return self.is_dead


class Doomed:
    """A state file or a results file whose process dies at some call: what it has done by then stays done."""

    def __init__(self, target: Any, doom: Doom) -> None:
        self._target = target
        self._doom = doom

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._target, name)
        if not callable(attribute) or name == "close":
            return attribute  # the system closes what a process leaves open

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._doom.call():
                if name == "append":
                    data = b"".join(args[0])
                    attribute([data[: len(data) // 2]])
                else:
                    attribute(*args, **kwargs)
                raise Crash
            return attribute(*args, **kwargs)

        return call


class Flaky(EchoWorker):
    """Every seventh job is lost with its worker, every eleventh is refused."""

    def __init__(self) -> None:
        self.count = 0

    async def run(self, request: dict) -> Any:
        return self.answer(request)

    def answer(self, request: dict) -> Any:
        self.count += 1
        if self.count % 7 == 0:
            raise WorkerFailure("job timed out after 1 retries")
        if "refused" in request["prompt"]:
            raise WorkerFailure("vLLM returned HTTP 400: no")
        return super().answer(request)


class Nights:
    """A run that is started again until it is over.

    Args:
        folder: Where its files go.
        copies: So many rows ask for the same, and share a job.
    """

    worker: type[EchoWorker] = Flaky

    def __init__(self, folder: Path, copies: int = 1) -> None:
        self.folder = folder
        self.different = ROWS // copies
        scheduler = {"concurrency": 8, "connections": 4}
        self.options: RunOptions = options_for(folder, scheduler=scheduler, dedupe=copies > 1)
        self.crashes = 0
        self.doom = Doom(10**9, 10**9)
        self.submitted: Counter[str] = Counter()
        self.requests = 0
        write_lines(folder, [{"id": f"r{n}", "prompt": self.prompt_of(n), "metadata": n} for n in range(ROWS)])

    def prompt_of(self, number: int) -> str:
        number %= self.different
        return f"{'refused' if number % 11 == 5 else 'p'} {number}"

    def prompts_of(self, body: dict) -> list[str]:
        """What the rows of a job ask."""
        return [body["input"]["prompt"]]

    async def fault(self, request: web.BaseRequest, operation: str) -> web.StreamResponse | None:
        """Some answers are lost after the server has acted; a process that dies hears no answer at all."""
        self.requests += 1
        if operation == "run":
            self.submitted.update(self.prompts_of(orjson.loads(await request.read())))
        if self.doom.request() or (operation != "health" and self.requests % 23 == 0):
            request.transport.abort()
        return None

    async def session(self, base_url: str, doom: Doom) -> bool:
        """One session; whether it came to its end."""
        self.doom = doom
        with suppress(Crash), open_run(self.options, Listener(), clock=hurried, wall=time.time) as run:
            run.results.update({number: Doomed(file, doom) for number, file in run.results.items()})
            outcome = await drive(replace(run, store=Doomed(run.store, doom)), base_url, Random(0))
            summary = conclude(run, outcome)
            assert outcome.kind == "finished", (outcome, summary)
            return True
        self.crashes += 1
        return False

    async def until_it_is_over(self, dooms) -> None:
        async with serving(self.fault, self.worker()) as server:
            for _ in range(MOST_SESSIONS):
                if await self.session(server.endpoint.base_url, next(dooms)):
                    return
        raise AssertionError(f"not over after {MOST_SESSIONS} sessions")

    def assert_whole(self) -> None:
        with Store(self.options.state) as store:
            counts = store.counts()
            rows = store.query("SELECT r.id, r.retries, r.unconfirmed, r.state FROM rows r ORDER BY r.row")
            reported = store.counters().get("unconfirmed", 0)
        assert sum(counts.values()) == ROWS
        assert counts[RowState.SUCCEEDED] + counts[RowState.FAILED] == ROWS, counts
        results = read_lines(self.options.output)
        succeeded = {row_id for row_id, *_, state in rows if state == RowState.SUCCEEDED}
        assert len(results) == len({record["id"] for record in results})
        assert {record["id"] for record in results} == succeeded
        errors = read_lines(self.folder / "out.errors.jsonl")
        assert {record["id"] for record in errors} == {row_id for row_id, *_ in rows} - succeeded
        for record in results:
            number = record["metadata"]
            assert (record["id"], record["text"]) == (f"r{number}", self.prompt_of(number))
        said: Counter[str] = Counter()
        for row_id, retries, unconfirmed, _ in rows:
            said[self.prompt_of(int(row_id[1:]))] += retries + unconfirmed
        for prompt, more in said.items():
            assert self.submitted[prompt] <= 1 + more, f"{prompt} was paid for without saying so"
        assert sum(unconfirmed for _, _, unconfirmed, _ in rows) <= reported
        found = verification.verify(self.options.state)
        assert found.is_whole, findings.render(found)


def after_every(calls: int):
    while True:
        yield Doom(calls, 10**9)


def at_random(seed: int):
    rng = Random(seed)
    while True:
        yield Doom(rng.randint(2, 60), rng.randint(5, 60))


@pytest.mark.parametrize("calls", [12, 14, 17, 20, 24, 29, 35, 42])
async def test_a_run_that_dies_after_every_kth_call_to_the_disk_loses_nothing_and_doubles_nothing(tmp_path, calls):
    nights = Nights(tmp_path)
    await nights.until_it_is_over(after_every(calls))
    nights.assert_whole()
    assert nights.crashes > 0


@pytest.mark.parametrize("seed", range(6))
async def test_a_run_that_dies_at_random_calls_and_requests_loses_nothing_and_doubles_nothing(tmp_path, seed):
    nights = Nights(tmp_path)
    await nights.until_it_is_over(at_random(seed))
    nights.assert_whole()
    assert nights.crashes > 0


@pytest.mark.parametrize("calls", range(8, 33))
async def test_rows_that_share_a_job_are_each_answered_once_wherever_the_run_dies(tmp_path, calls):
    nights = Nights(tmp_path, copies=5)
    await nights.until_it_is_over(chain([Doom(calls, 10**9)] * 2, at_random(calls)))
    nights.assert_whole()
    assert nights.crashes > 0


async def test_answers_that_were_cut_off_are_taken_from_the_one_that_was_written(tmp_path):
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": "bad", "metadata": n} for n in range(8)])
    options, listener = options_for(tmp_path, dedupe=True), Listener()
    async with serving(worker=Picky()) as server:
        await rehearse(tmp_path, server.endpoint.base_url, dedupe=True)
    async with serving() as server:
        with suppress(Crash), open_run(options, Listener(), clock=hurried, wall=time.time) as run:
            run.store.retry_failed(())
            doom = Doom(2, 10**9)
            run.results.update({number: Doomed(file, doom) for number, file in run.results.items()})
            await drive(run, server.endpoint.base_url, Random(0))
        assert 1 < options.output.read_bytes().count(b"\n") < 8
        with open_run(options, listener, clock=hurried, wall=time.time) as run:
            summary = conclude(run, await drive(run, server.endpoint.base_url, Random(0)))
            statuses = run.store.query("SELECT status FROM jobs ORDER BY job")
        assert server.seen["run"] == 1
    assert statuses == [("FAILED",), ("COMPLETED",)]
    assert (summary.succeeded, summary.shared, summary.input_tokens) == (8, 7, 1)
    assert any("rows get the answer" in message for message in listener.messages)
    results = read_lines(options.output)
    assert sorted((record["id"], record["metadata"]) for record in results) == [(f"r{n}", n) for n in range(8)]
    assert verification.verify(options.state).is_whole
