"""A run that dies at chosen calls to the disk and chosen requests, and is started again until it is over."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any

import orjson

from batchrun.local.echo import EchoWorker
from batchrun.runs.closing import conclude
from batchrun.runs.driving import drive
from batchrun.runs.opening import open_run
from batchrun.scheduler.states import RowState
from batchrun.state.store import Store
from tests.support.claims import assert_adds_up
from tests.support.rehearsal import Listener, hurried, options_for, read_lines, serving, write_lines
from tests.support.workers import Flaky

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


class Nights:
    """A run that is started again until it is over.

    Args:
        folder: Where its files go.
        copies: So many rows ask for the same, and share a job.
    """

    worker: type[EchoWorker] = Flaky
    workers = 8

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
        async with serving(self.fault, self.worker(), workers=self.workers) as server:
            for _ in range(MOST_SESSIONS):
                if await self.session(server.endpoint.base_url, next(dooms)):
                    return
        raise AssertionError(f"not over after {MOST_SESSIONS} sessions")

    def assert_whole(self) -> None:
        with Store(self.options.state) as store:
            counts = store.counts()
            rows = store.query("SELECT r.id, r.retries, r.unconfirmed, r.state FROM rows r ORDER BY r.row")
            reported, separated = (store.counters().get(name, 0) for name in ("unconfirmed", "separated"))
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
        beyond = sum(max(self.submitted[prompt] - 1 - more, 0) for prompt, more in said.items())
        assert beyond <= separated, "a row was paid for without saying so"
        assert sum(unconfirmed for _, _, unconfirmed, _ in rows) <= reported
        assert_adds_up(self.options.state)


def after_every(calls: int):
    while True:
        yield Doom(calls, 10**9)


def at_random(seed: int):
    rng = Random(seed)
    while True:
        yield Doom(rng.randint(2, 60), rng.randint(5, 60))
