"""A whole run in this process, over real HTTP against the local endpoint, with faults that the server makes."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

import orjson

from batchrun.config import JobPolicy, Limits, OperationLimit, RequestOptions, RunOptions, SchedulerOptions
from batchrun.engine.notices import Stop, joint_message
from batchrun.files.exactjson import load
from batchrun.local.echo import EchoWorker
from batchrun.local.server import LocalEndpoint, LocalOptions
from batchrun.results.writer import errors_path
from batchrun.runs.closing import conclude
from batchrun.runs.driving import drive
from batchrun.runs.opening import open_run
from tests.support.workers import Picky

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from aiohttp import web

    from batchrun.display.summary import Snapshot, Summary

UNLIMITED = Limits(run=OperationLimit(0, 0), status=OperationLimit(0, 0))


@dataclass
class Listener:
    """An observer that remembers."""

    messages: list[str] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)

    def begin(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)

    def update(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)

    def message(self, text: str) -> None:
        self.messages.append(text)

    def stopping(self, stop: Stop) -> None:
        self.messages.append(joint_message([stop]))

    def end(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)


@dataclass
class Server:
    """The local endpoint with a fault in front of it, and the requests that it has seen."""

    endpoint: LocalEndpoint
    seen: Counter[str]
    bodies: list[dict]


@asynccontextmanager
async def serving(
    fault: Callable[[web.BaseRequest, str], Awaitable[web.StreamResponse | None]] | None = None,
    worker: object | None = None,
    **options: object,
):
    """Serve; `fault` gets each request with its operation, and may answer it or break its connection."""
    seen: Counter[str] = Counter()
    bodies: list[dict] = []

    async def intercept(request: web.BaseRequest) -> web.StreamResponse | None:
        operation = request.path.split("/")[3]
        seen[operation] += 1
        return await fault(request, operation) if fault else None

    local = LocalOptions(**{"workers": 8, **options})
    async with LocalEndpoint(local, worker or EchoWorker(), intercept=intercept) as endpoint:
        yield Server(endpoint, seen, bodies)


@dataclass
class Rehearsal:
    """What a run came to."""

    summary: Summary
    results: list[dict]
    errors: list[dict]
    listener: Listener

    def ids(self) -> list[str]:
        return [record["id"] for record in self.results]


def options_for(folder: Path, **given: object) -> RunOptions:
    """Options of a run of `folder/in.jsonl` into `folder/out.jsonl`."""
    scheduler = {"concurrency": 50, "limits": UNLIMITED, **given.pop("scheduler", {})}
    output = folder / "out.jsonl"
    fields: dict = {
        "inputs": (str(folder / "in.jsonl"),),
        "endpoint": "local",
        "output": output,
        "output_is_folder": False,
        "state": folder / "out.jsonl.state",
        "request": RequestOptions(),
        "policy": JobPolicy(),
        "scheduler": SchedulerOptions(**scheduler),
        "timeout_s": 5.0,
        **given,
    }
    return RunOptions(**fields)


def write_lines(folder: Path, lines: list) -> None:
    (folder / "in.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))


def read_lines(path: Path) -> list[dict]:
    return [load(line) for line in path.read_bytes().splitlines()] if path.is_file() else []


def hurried() -> float:
    """A clock by which backoff of seconds is over in a moment: the driver looks at it four times a second at least."""
    return time.monotonic() * 30


async def rehearse(
    folder: Path, base_url: str, *, key: str | None = None, retry: tuple[str, ...] | None = None, **given: object
) -> Rehearsal:
    """Run `folder/in.jsonl` to its end; `retry` are the failure kinds to take up again, () for all."""
    options, listener = options_for(folder, **given), Listener()
    with open_run(options, listener, clock=hurried, wall=time.time, api_key=key) as run:
        if retry is not None:
            run.store.retry_failed(retry)
        summary = conclude(run, await drive(run, base_url, Random(0)))
    return Rehearsal(summary, read_lines(options.output), read_lines(errors_path(options.output)), listener)


async def mixed_run(folder: Path, rows: int = 12) -> Path:
    """A finished run in which every fourth row has failed; returns its state file."""
    lines = [{"id": f"r{n}", "prompt": f"{'bad' if n % 4 == 0 else 'good'} {n}"} for n in range(1, rows + 1)]
    write_lines(folder, lines)
    async with serving(worker=Picky()) as server:
        await rehearse(folder, server.endpoint.base_url)
    return folder / "out.jsonl.state"
