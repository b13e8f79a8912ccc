"""What the commands do, wired together: clocks, chance, the event loop, the API key and the local endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from batchrun.config import RunOptions
from batchrun.credentials import find_api_key
from batchrun.endpoint.protocol import run_body
from batchrun.errors import StateError, UsageError
from batchrun.intake import preview
from batchrun.prompts.shapes import build_request
from batchrun.runs import Run
from batchrun.scheduler.failures import FailureKind
from batchrun.state.store import Store

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from batchrun.engine import Outcome
    from batchrun.local.server import LocalOptions
    from batchrun.local.workers import Worker
    from batchrun.results.summary import Observer, Summary


_COLLECT_EVERY = 20_000
"""Objects between two looks for cycles: requests leave few behind, and the default of 700 costs some percent."""


@dataclass(frozen=True, slots=True)
class LocalWorker:
    """What answers at the local endpoint."""

    worker: str = "auto"
    """`auto`, `smollm2` or `echo`."""
    model_file: Path | None = None
    upstream: str | None = None


def run(
    options: RunOptions,
    *,
    observer: Observer,
    resumed: bool = False,
    retry_failed: bool = False,
    kinds: tuple[str, ...] = (),
    api_key_file: Path | None = None,
    local: LocalWorker = LocalWorker(),
) -> Summary:
    """Start a run or go on with it, up to its end or its interruption.

    Raises:
        BatchrunError: nothing was sent, or a defect. A run that stops early is told by the summary.
    """
    _refuse_wrong_kinds(kinds, retry_failed=retry_failed)
    if options.is_local:
        api_key, worker = None, _local_worker(local, observer)
    else:
        api_key, worker = find_api_key(api_key_file, options.base_url), None
    with Run(options, observer, clock=time.monotonic, wall=time.time, from_spool=resumed) as opened:
        if retry_failed:
            observer.message(f"{opened.retry_failed(kinds):,} failed rows are taken up again")
        rng = random.Random()  # noqa: S311 - jitter, not a secret
        if worker is not None:
            outcome = _in_loop(_drive_locally(opened, worker, rng))
        else:
            outcome = _in_loop(opened.drive(options.base_url, api_key, rng))
        return opened.conclude(outcome)


def _refuse_wrong_kinds(kinds: tuple[str, ...], *, retry_failed: bool) -> None:
    if kinds and not retry_failed:
        raise UsageError("--only goes with --retry-failed", "give both, or neither")
    unknown = [kind for kind in kinds if kind not in set(FailureKind)]
    if unknown:
        raise UsageError(f"--only {unknown[0]}: there is no such kind of failure", f"one of {', '.join(FailureKind)}")


def stored_options(state: Path) -> RunOptions:
    """The options that a state file's run was started with.

    Raises:
        StateError: there is no such file, or it holds no run.
    """
    with Store(state, read_only=True) as store:
        stored = store.get_setting("options")
    if not isinstance(stored, dict):
        raise StateError(f"{state} holds no run", "start one with `batchrun run`")
    return RunOptions.from_json(stored, state)


def dry_run(options: RunOptions, out: BinaryIO, observer: Observer) -> None:
    """Print the body of each submission, one a line, and send nothing.

    Raises:
        InputError: an input or a line of it is wrong.
    """
    count = 0
    for prompt in preview(options, sys.stdin.buffer):
        out.write(run_body(build_request(prompt, options.request), options.policy) + b"\n")
        count += 1
    out.flush()
    observer.message(f"dry run: {count:,} rows would go to {options.base_url}/{options.endpoint}/run; nothing was sent")


def serve(given: dict[str, Any]) -> None:
    """Serve a local endpoint until a signal comes.

    Raises:
        UsageError: the address is taken, or the worker cannot be had.
    """
    from batchrun.local.server import LocalOptions
    from batchrun.progress import make_observer

    options = LocalOptions(
        host=given["host"],
        port=given["port"],
        workers=given["workers"],
        jobs_per_worker=given["jobs_per_worker"],
        latency_s=given["latency"],
        fail_rate=given["fail_rate"],
        seed=given["seed"],
        limits=given["limits"],
        cold_start_s=given["cold_start"],
    )
    local = LocalWorker(given["worker"], given["model_file"], given["upstream"])
    _in_loop(_serve(options, _local_worker(local, make_observer("plain", sys.stderr))))


async def _serve(options: LocalOptions, worker: Worker) -> None:
    from batchrun.local.server import LocalEndpoint

    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with LocalEndpoint(options, worker) as endpoint:
        click.echo(f"serving {worker.name} at {endpoint.base_url}/ID/run; Ctrl-C ends it", err=True)
        await stopped.wait()


async def _drive_locally(run: Run, worker: Worker, rng: random.Random) -> Outcome:
    from batchrun.local.server import LocalEndpoint, LocalOptions

    options = LocalOptions(workers=1, jobs_per_worker=worker.parallel)
    async with LocalEndpoint(options, worker) as endpoint:
        return await run.drive(endpoint.base_url, None, rng)


def _local_worker(local: LocalWorker, observer: Observer) -> Worker:
    from batchrun.local.choice import choose_worker

    worker, notice = choose_worker(local.worker, model_file=local.model_file, upstream=local.upstream)
    if notice:
        observer.message(notice)
    return worker


def _in_loop(work: Coroutine[Any, Any, Any]) -> Any:
    """Run in an event loop, the faster one where it is installed."""
    gc.freeze()
    gc.set_threshold(_COLLECT_EVERY)
    factory = None
    with contextlib.suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)
