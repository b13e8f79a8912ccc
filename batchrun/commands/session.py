"""What the commands do, wired together: clocks, chance, the event loop, the API key and the local endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from batchrun.commands.asking import ask_to_cancel
from batchrun.commands.notify import refusal_payload, refuse_bad_url, tell, telling
from batchrun.commands.watch_folder import FileOutcome, Task, Watch
from batchrun.commands.watch_queue import Total
from batchrun.config import RunOptions
from batchrun.display.summary import Observer, Summary, warn
from batchrun.display.text import visible_json
from batchrun.endpoint.connections import refuse_bad_way
from batchrun.endpoint.credentials import checked, find_key
from batchrun.endpoint.preflight import refuse_unknown_endpoints
from batchrun.endpoint.protocol import run_body
from batchrun.engine.clock import WallClock, steady_s
from batchrun.engine.driver import Outcome
from batchrun.engine.signals import Leaving, cancellable, wakeup_fd_kept
from batchrun.errors import BatchrunError, OutputError, RefusedError, StateError, StoppedError, UsageError
from batchrun.files.streams import stdin_bytes
from batchrun.local.workers import Worker
from batchrun.prompts.fields import Fields
from batchrun.prompts.shapes import build_request
from batchrun.prompts.sweep import Sweep
from batchrun.runs.checks import refuse_other_options
from batchrun.runs.consent import Named
from batchrun.runs.feed import Feed
from batchrun.runs.intake import RequestKeys, preview
from batchrun.runs.repair import by_new_name
from batchrun.runs.run import Run
from batchrun.scheduler.failures import FailureKind
from batchrun.state.opening import without_lost_log
from batchrun.state.store import Store

if TYPE_CHECKING:
    from batchrun.local.server import LocalOptions  # aiohttp.web is for those who want a local endpoint


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
    confirmed_url: bool = False,
    retry_failed: bool = False,
    kinds: tuple[str, ...] = (),
    repair: bool = False,
    api_key: str | None = None,
    notify_url: str | None = None,
    local: LocalWorker = LocalWorker(),
    requests: Iterable[bytes] | None = None,
    feed: Feed | None = None,
    leaving: Leaving | None = None,
) -> Summary:
    """Start a run or go on with it, up to its end or its interruption.

    Args:
        options: What is asked for.
        observer: Told what a person should know.
        resumed: Whether the options are those of the state file: stdin is then taken from its copy, and the key and
            files of elsewhere go only where the state file proves that its user has said so.
        confirmed_url: Whether a resumed run's base URL has been given now.
        retry_failed: Whether to take up failed rows again.
        kinds: Only these kinds of failures; empty: all.
        repair: Whether to get lost or damaged results again, and to rebuild a lost state file.
        api_key: None: it is looked for, see `find_api_key`.
        notify_url: Told at the end; None: nobody is.
        local: What answers at the local endpoint.
        requests: The input, as lines, of a run that a program gives its requests; None: the inputs are files.
        feed: Where further requests come from.
        leaving: Through which other threads ask to leave.

    Raises:
        BatchrunError: nothing was sent, or a defect. A run that stops early is told by the summary.
    """
    _refuse_wrong_kinds(kinds, retry_failed=retry_failed)
    _refuse_bad_ways(options, notify_url)
    key = find_key(options, api_key)
    worker = _local_worker(local, observer) if options.is_local else None
    said = Named(base_url=confirmed_url or not resumed, paths=not resumed)
    if len(options.endpoints) > 1 and not options.state.exists():
        _in_loop(refuse_unknown_endpoints(options, key))
    leaving = leaving or Leaving()
    with (
        cancellable(leaving),
        telling(notify_url, options.state, observer, key) as told,
        Run(
            options,
            observer,
            clock=steady_s,
            wall=_wall(),
            api_key=key,
            said=said,
            from_spool=resumed,
            requests=requests,
            repair=repair,
        ) as opened,
    ):
        if retry_failed:
            observer.message(f"{opened.retry_failed(kinds):,} failed rows are taken up again")
        rng = random.Random()  # noqa: S311 - jitter, not a secret
        drive = partial(opened.drive, feed=feed, leaving=leaving)
        if worker is None:
            outcome = _in_loop(drive(options.base_url, rng))
        elif opened.has_work or feed is not None:
            outcome = _in_loop(_drive_locally(drive, worker, rng))
        else:
            outcome = Outcome("finished")  # without the seconds that a model takes to load
        told.append(opened.conclude(outcome))
    return told[0]


def watch(
    options: RunOptions,
    folder: Path,
    *,
    settle_s: float,
    until_empty: bool,
    observer: Observer,
    show: Callable[[str, FileOutcome], None],
    api_key: str | None = None,
    notify_url: str | None = None,
    local: LocalWorker = LocalWorker(),
) -> Total:
    """Run each file that arrives in a folder; see `Watch`.

    Args:
        options: Of the run of each file, but for its input, results and state; the output is the folder for these.
        folder: Where the files arrive.
        settle_s: How long a file must have been the same to be whole, seconds > 0.
        until_empty: Whether to end when no file is left without a record.
        observer: Shown every run.
        show: Shown how each ended, with the file's name.
        api_key: None: it is looked for, see `find_api_key`.
        notify_url: Told how each ended; None: nobody is.
        local: What answers at the local endpoint, which is started once, for the first file with work.

    Raises:
        BatchrunError: nothing more can be run, or a defect. A file that is refused or stops is shown.
    """
    _refuse_bad_ways(options, notify_url)
    key = find_key(options, api_key)
    worker = _local_worker(local, observer) if options.is_local else None
    rng = random.Random()  # noqa: S311 - jitter, not a secret
    with contextlib.ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner(loop_factory=_loop_factory()))
        drives = _Drives(runner, stack, worker)

        def take(task: Task) -> FileOutcome:
            own = replace(
                options, inputs=(str(task.path),), output=task.results, output_is_folder=False, state=task.state
            )
            _refuse_other_command(own)
            try:
                opened = Run(own, observer, clock=steady_s, wall=_wall(), api_key=key)
            except UsageError as error:
                if notify_url is not None:
                    tell(notify_url, refusal_payload(error, task.path.name), observer)
                return FileOutcome(error=error)
            leaving = Leaving()
            with cancellable(leaving), telling(notify_url, own.state, observer, key) as told, opened:
                outcome = drives.drive(opened, rng, leaving)
                told.append(opened.conclude(outcome))
            return FileOutcome(told[0], *_why_stopped(told[0], outcome))

        watched = Watch(
            folder,
            options.output,
            settle_s=settle_s,
            until_empty=until_empty,
            observer=observer,
            take=take,
            show=show,
            clock=steady_s,
            wall=time.time,
            pause=time.sleep,
        )
        return watched.run()


class _Drives:
    """Drives one run after the other in one event loop, and starts the local endpoint for the first that needs it.

    Args:
        runner: The loop; it stands still in between.
        stack: Ends the endpoint.
        worker: Of the local endpoint; None: the runs are on a real one.
    """

    def __init__(self, runner: asyncio.Runner, stack: contextlib.ExitStack, worker: Worker | None) -> None:
        self._runner = runner
        self._stack = stack
        self._worker = worker
        self._local_url: str | None = None

    def drive(self, run: Run, rng: random.Random, leaving: Leaving) -> Outcome:
        """Drive a run to its end or its interruption."""
        if self._worker is not None and not run.has_work:
            return Outcome("finished")
        base_url = run.options.base_url if self._worker is None else self._start(self._worker)
        return self._runner.run(run.drive(base_url, rng, leaving=leaving))

    def _start(self, worker: Worker) -> str:
        from batchrun.local.server import LocalEndpoint, LocalOptions

        if self._local_url is None:
            endpoint = LocalEndpoint(LocalOptions(workers=1, jobs_per_worker=worker.parallel), worker)
            self._stack.callback(lambda: self._runner.run(endpoint.stop()))
            self._runner.run(endpoint.start())
            self._local_url = endpoint.base_url
        return self._local_url


def _refuse_other_command(options: RunOptions) -> None:
    """Refuse to go on with a file under options that ask for something else: it is the command that is wrong.

    Raises:
        StateError: names each option that differs.
    """
    with contextlib.ExitStack() as stack:
        try:
            store = stack.enter_context(Store(options.state, read_only=True))
        except BatchrunError:
            return  # there is none yet, or its run says what is wrong with it
        refuse_other_options(store, options)


def _why_stopped(summary: Summary, outcome: Outcome) -> tuple[StoppedError | None, bool]:
    """Why a run stopped early, and whether the next one would, too: the API refuses all, or nothing can be written."""
    if summary.outcome != "stopped":
        return None, False
    error = outcome.error or OutputError(summary.reason, summary.hint)
    return error, isinstance(error, (RefusedError, OutputError))


def cancel(
    options: RunOptions,
    *,
    observer: Observer,
    confirmed_url: bool = False,
    api_key: str | None = None,
    notify_url: str | None = None,
) -> Summary:
    """Cancel what a run has in flight; a process that drives it is asked to, and waited for.

    Args:
        options: Those of the run's state file.
        observer: Told what a person should know.
        confirmed_url: Whether the run's base URL has been given now.
        api_key: None: it is looked for, see `find_api_key`.
        notify_url: Told at the end; None: nobody is.

    Raises:
        BatchrunError: nothing was cancelled, or a defect.
    """
    _refuse_bad_ways(options, notify_url)
    key, state = find_key(options, api_key), options.state
    said = Named(base_url=confirmed_url, paths=False)
    ask_to_cancel(state, observer, clock=steady_s, pause=time.sleep)
    leaving = Leaving()
    with (
        cancellable(leaving),
        telling(notify_url, state, observer, key) as told,
        Run(options, observer, clock=steady_s, wall=_wall(), api_key=key, said=said, as_is=True) as opened,
    ):
        if options.is_local:
            observer.message("the jobs of a local endpoint end with its process: nothing is left to cancel")
            outcome = Outcome("cancelled")
        elif not opened.has_jobs:
            observer.message("nothing is in flight: there is nothing to cancel")
            outcome = Outcome("cancelled")
        else:
            rng = random.Random()  # noqa: S311 - jitter, not a secret
            outcome = _in_loop(opened.drive(options.base_url, rng, cancel=True, leaving=leaving))
        told.append(opened.conclude(outcome))
    return told[0]


def _refuse_bad_ways(options: RunOptions, notify_url: str | None) -> None:
    """Refuse what no request can go through: a notification URL, or proxies of the environment."""
    refuse_bad_url(notify_url)
    if not options.is_local:
        refuse_bad_way(options.base_url)


def _wall() -> WallClock:
    return WallClock(steady_s, time.time)


def _refuse_wrong_kinds(kinds: tuple[str, ...], *, retry_failed: bool) -> None:
    if kinds and not retry_failed:
        raise UsageError("--only goes with --retry-failed", "give both, or neither")
    unknown = [kind for kind in kinds if kind not in set(FailureKind)]
    if unknown:
        raise UsageError(f"--only {unknown[0]}: there is no such kind of failure", f"one of {', '.join(FailureKind)}")


def stored_options(state: Path, *, repair: bool = False) -> RunOptions:
    """The options that a state file's run was started with.

    Args:
        state: The state file.
        repair: Whether it may have lost its log, and its results may have been renamed together with it.

    Raises:
        StateError: there is no such file, or it holds no run.
    """
    with contextlib.ExitStack() as stack:
        if repair:
            stack.enter_context(without_lost_log(state, lambda: False))
        store = stack.enter_context(Store(state, read_only=True))
        stored = store.get_setting("options")
        if not isinstance(stored, dict):
            raise StateError(f"{state} holds no run", "start one with `batchrun run`")
        options = RunOptions.from_json(stored, state)
        options = replace(options, inputs=tuple(map(store.now_at, options.inputs)))
    return by_new_name(options) if repair else options


def dry_run(options: RunOptions, out: BinaryIO, observer: Observer) -> None:
    """Print the body of each submission, one a line, and send nothing.

    Raises:
        InputError: an input or a line of it is wrong.
    """
    sweep = Sweep(options.sweep)
    if sweep.size > 1:
        observer.message(f"sweep: {sweep}: {sweep.size:,} rows of each line")
    count = equal = 0
    key_of, seen = RequestKeys(options), set[bytes]()
    fields = Fields(options.request, sweep)
    for number, prompt in enumerate(preview(options, stdin_bytes(), observer, fields)):
        if options.dedupe:
            key = key_of(prompt, number % sweep.size)
            if key in seen:
                equal += 1
                continue
            seen.add(key)
        body = run_body(build_request(prompt, options.request), options.policy)
        out.write(visible_json(body).encode() + b"\n")
        count += 1
    out.flush()
    fields.tell_all(partial(warn, observer), strict=options.strict)
    urls = " and ".join(f"{options.base_url}/{endpoint}/run" for endpoint in options.endpoints)
    where = "the local endpoint" if options.is_local else urls
    more = f", and {equal:,} more ask for the same as one of them" if equal else ""
    observer.message(f"dry run: {count:,} rows would go to {where}{more}; nothing was sent")


def serve(given: dict[str, Any]) -> None:
    """Serve a local endpoint until a signal comes.

    Raises:
        UsageError: the address is taken or needs a key, or the worker cannot be had.
    """
    from batchrun.display.progress import make_observer
    from batchrun.local.server import LocalOptions

    options = LocalOptions(
        host=given["host"],
        port=given["port"],
        api_key=None if given["api_key"] is None else checked(given["api_key"], "--api-key"),
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


async def _drive_locally(
    drive: Callable[[str, random.Random], Awaitable[Outcome]], worker: Worker, rng: random.Random
) -> Outcome:
    from batchrun.local.server import LocalEndpoint, LocalOptions

    options = LocalOptions(workers=1, jobs_per_worker=worker.parallel)
    async with LocalEndpoint(options, worker) as endpoint:
        return await drive(endpoint.base_url, rng)


def _local_worker(local: LocalWorker, observer: Observer) -> Worker:
    from batchrun.local.choice import choose_worker

    worker, notice = choose_worker(local.worker, model_file=local.model_file, upstream=local.upstream)
    if notice:
        observer.message(notice)
    return worker


def _in_loop(work: Coroutine[Any, Any, Any]) -> Any:
    """Run in an event loop, the faster one where it is installed."""
    with wakeup_fd_kept(), asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(work)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes a loop. Without one a runner would also set, and in the end unset, the event loop of a program."""
    found: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with contextlib.suppress(ImportError):
        import uvloop

        found = uvloop.new_event_loop
    return found
