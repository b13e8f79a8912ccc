"""The Python API: `run` for files and lists of requests, `stream` for requests that a program makes as it goes.

Both call `commands.run`, like the command line, and leave the same state file, so `batchrun status`, `verify`,
`cancel`, `export` and `resume` work. A stream is driven in a thread with its own event loop, so a program that is busy
with a record does not slow it down.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread
from typing import IO, Any, Self, TypeVar, Unpack

from batchrun import config
from batchrun.api.arguments import RequestKeywords, RunKeywords, StreamKeywords, checked, spelled_out
from batchrun.api.loaded import Summary
from batchrun.api.requests import endpoint_ids, files_or_requests, rows_of
from batchrun.commands import run as running
from batchrun.commands.arguments import RunArguments
from batchrun.commands.run_options import run_options
from batchrun.display.printer import Printer
from batchrun.display.progress import make_observer
from batchrun.display.summary import Observer
from batchrun.engine.signals import Leaving, Wish, cancellable, interruptible
from batchrun.errors import InputError, OutputError, RunInterrupted, StoppedError, UsageError
from batchrun.files.exactjson import load
from batchrun.files.paths import behind_links
from batchrun.files.streams import open_closed
from batchrun.prompts.line_rules import LineRules
from batchrun.runs.channel import ProgramSide, RunSide, open_channel
from batchrun.runs.locations import requests_path
from batchrun.runs.requests import request_line

T = TypeVar("T")

# Errors that are logged are also raised, or reported in the summary.
logging.getLogger("batchrun").addHandler(logging.NullHandler())


@spelled_out(RequestKeywords, StreamKeywords, RunKeywords)
def run(
    inputs: str | os.PathLike[str] | Iterable[Any],
    *,
    endpoint: str | Sequence[str] | None = None,
    output: str | os.PathLike[str],
    state: str | os.PathLike[str] | None = None,
    api_key: str | None = None,
    on_interrupt: config.InterruptPolicy = "drain",
    progress: config.ProgressMode = "auto",
    **options: Unpack[RunKeywords],
) -> Summary:
    """Run inputs, or resume a run. Blocks until the run has ended, even if an event loop is running, as in a notebook.

    However a run is interrupted, the same call resumes it. In the main thread, Ctrl-C and SIGTERM do what
    `on_interrupt` says, and the summary's `outcome` is `interrupted`.

    Args:
        inputs: A file, folder, pattern or URL, several files as `Path` objects, or the requests themselves: dicts like
            the lines of an input file, prompts as strings, dataclasses, pydantic models, or a table whose columns are
            the fields (a DataFrame of pandas or polars, a table of pyarrow, a Dataset). All are validated before
            anything is sent, and kept in `<state>.requests.jsonl`.
        endpoint: Endpoint ID; `local` is the built-in endpoint. Several IDs, as a list or with commas, are a pool: each
            row runs at the endpoint that will have it done first. None: the endpoints are in `sweep`.
        output: Results file, or folder (existing, or ending in /) for one results file per input.
        state: State file; None: `<output>.state`, or `batchrun.state` in a folder.
        api_key: None: that of RUNPOD_API_KEY, else that in `~/.runpod/config.toml`.
        on_interrupt: What the first Ctrl-C does with the jobs in flight: `drain`, `leave` or `cancel`.
        progress: Progress on stderr: `bar`, `plain`, `json`, `none`, or `auto`, which is a bar on a terminal.

    Returns:
        Counts, files (`results`, `errors`), `exit_code`, and why it stopped early: `outcome`, `reason`, `hint`. Its
        `records()`, `to_pandas()` and `to_arrow()` give the results.

    Raises:
        UsageError: an argument, an input or the state file is invalid; nothing was sent.
        BatchrunError: a file could not be written and nothing was sent, or batchrun has a defect.
    """
    names, requests = files_or_requests(inputs)
    if requests is not None:
        _refuse_for_requests(options)
    at = behind_links(Path(state) if state is not None else Path(f"{os.fsdecode(output).rstrip('/')}.state"))
    given = checked(
        RunArguments(
            inputs=names if requests is None else (str(requests_path(at)),),
            endpoint=None if endpoint is None else endpoint_ids(endpoint),
            output=os.fsdecode(output),
            state=None if requests is None and state is None else str(at),
            on_interrupt=on_interrupt,
            progress=progress,
            **options,
        )
    )
    return _run(given, requests, api_key, on_interrupt)


@spelled_out(RequestKeywords, StreamKeywords)
def stream(
    requests: Iterable[Any] | AsyncIterable[Any],
    *,
    endpoint: str,
    state: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    api_key: str | None = None,
    on_interrupt: config.InterruptPolicy = "drain",
    progress: config.ProgressMode = "none",
    **options: Unpack[StreamKeywords],
) -> Stream:
    """Run requests while they are being made, and iterate over their records.

    However it is interrupted, the same call with the same requests resumes: requests are recognized by their id, or by
    their content. Requests that earlier calls have finished are not paid for again, and their records come first.

    Args:
        requests: Any iterable or async iterable of requests as for `run`, or a table. Requests are pulled while the
            window has room, at most two windows ahead of the records that were taken. A plain iterable is advanced in
            the event loop, so one that waits for something should be async.
        endpoint: Endpoint ID; `local` is the built-in endpoint.
        state: State file. The requests are kept beside it, in `<state>.requests.jsonl`.
        output: Results file; None: `NAME.results.jsonl` for the state file `NAME.state`, `NAME.jsonl` for
            `NAME.jsonl.state`.
        api_key: None: that of RUNPOD_API_KEY, else that in `~/.runpod/config.toml`.
        on_interrupt: What leaving or cancelling the loop does with the jobs in flight: `drain` waits for them,
            `leave` leaves them to the next call, `cancel` cancels them. Cancelling again leaves them.
        progress: Progress on stderr: `bar`, `plain`, `json`, `none`, or `auto`, which is a bar on a terminal.

    Returns:
        The records as they arrive; can be iterated once, see `Stream`.

    Raises:
        UsageError: an argument is invalid.
    """
    at = behind_links(Path(state))
    given = checked(
        RunArguments(
            inputs=(str(requests_path(at)),),
            endpoint=endpoint_ids(endpoint),
            output=os.fsdecode(output) if output is not None else str(at.with_name(_results_name(at.name))),
            state=str(at),
            on_interrupt=on_interrupt,
            progress=progress,
            **options,
        )
    )
    run_as = run_options(given)
    if run_as.output_is_folder:
        raise UsageError(f"output={run_as.output} is a folder", "give a file for all results")
    if run_as.pool:
        raise UsageError(f"endpoint={','.join(run_as.pool)}: a stream has one endpoint", "for a pool, use `run`")
    rows = rows_of(requests)
    requests = requests if rows is None else rows
    if isinstance(requests, (str, bytes, Mapping)) or not isinstance(requests, (Iterable, AsyncIterable)):
        raise UsageError("requests is not an iterable of requests", "for one request give a list with it")
    work = partial(_run_shown, run_as, given, api_key=api_key, requests=())
    return Stream(requests, work, Wish(on_interrupt))


class Stream:
    """The records of a stream of requests, one for each request, as they arrive.

    Use `async for record in stream(...)`. A record is a dict, as in the results file. If a request failed, it is the
    record of the error file, with `error` and a `status` other than COMPLETED.

    If the iterable raises, or a request is invalid, no more requests are pulled, and the exception is raised after the
    records of the requests before it. A run that stops early (a refused key, the breaker, a budget) raises
    `StoppedError` after its last record. Leaving the loop early loses nothing, see `on_interrupt`; with
    `async with stream(...) as records`, the end of the block waits until the session has ended. Signals are left to
    the program; `batchrun cancel` works from the main thread's event loop.

    Args:
        requests: The requests that `stream` was given.
        work: Drives the run; blocks.
        wish: How to leave the run early.
    """

    def __init__(
        self,
        requests: Iterable[Any] | AsyncIterable[Any],
        work: Callable[..., Summary],
        wish: Wish,
    ) -> None:
        self._requests = requests
        self._work = work
        self._wish = wish
        self._leaving = Leaving()
        self._is_left = False
        self._done: asyncio.Future[Summary] | None = None
        self._side: ProgramSide | None = None
        self.summary: Summary | None = None
        """The summary of the run; None until it has ended."""

    def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        # Not stored here, so that a loop that is left drops the last reference, and Python closes the iterator.
        return self._iterate()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _iterate(self) -> AsyncIterator[dict[str, Any]]:
        if self._done is not None:
            raise UsageError("a stream can be iterated only once", "call `stream` again: it resumes this run")
        side, run_side = open_channel(self._requests, self._leaving)
        self._side = side
        done = self._done = asyncio.wrap_future(_started(partial(self._work, channel=run_side, leaving=self._leaving)))
        done.add_done_callback(lambda _: side.end())
        with cancellable(self._leaving):
            try:
                if await side.is_open() and side.stored is not None:
                    for line in side.stored:
                        yield load(line)
                    while (record := await side.record()) is not None:
                        yield load(record)
                self.summary = await asyncio.shield(done)
            finally:
                await self.aclose()
        if side.error is not None:
            raise side.error
        if self.summary.outcome == "stopped":
            raise StoppedError(self.summary.reason, self.summary.hint)
        if self.summary.outcome == "interrupted":
            raise RunInterrupted("the run was cancelled by another process", "the same call resumes it")

    async def aclose(self) -> None:
        """Leave the run, unless it has ended, and wait until its session has ended.

        Raises:
            BatchrunError: the run could not begin, or batchrun has a defect.
        """
        done, side = self._done, self._side
        if done is None or side is None or done.done():
            return
        if not self._is_left:
            # Called at the end of the loop, and again at the end of an `async with` around it.
            self._is_left = True
            side.stop()
            self._leaving.ask(self._wish)
        try:
            self.summary = await asyncio.shield(done)
        except asyncio.CancelledError:
            self._leaving.ask(Wish.LEAVE)
            await asyncio.wait([done])
            raise


def _run(
    given: RunArguments, requests: Iterable[Any] | None, api_key: str | None, on_interrupt: config.InterruptPolicy
) -> Summary:
    run_as = run_options(given)
    if requests is not None and run_as.output_is_folder:
        raise UsageError(f"output={run_as.output} is a folder", "give a file for all results")
    with _temporary_file() as kept:
        if requests is not None:
            _keep(requests, kept, LineRules(run_as.request))
        work = partial(_run_shown, run_as, given, api_key=api_key, requests=None if requests is None else _lines(kept))
        return run_to_end(work, on_interrupt)


def _run_shown(
    options: config.RunOptions,
    given: RunArguments,
    *,
    api_key: str | None,
    requests: Iterable[bytes] | None,
    channel: RunSide | None = None,
    leaving: Leaving | None = None,
) -> Summary:
    """Run, and show the progress on stderr."""
    with observing(given.progress) as observer:
        return Summary.of(
            running.run(
                options, given, observer=observer, api_key=api_key, requests=requests, channel=channel, leaving=leaving
            )
        )


@contextmanager
def observing(mode: config.ProgressMode) -> Iterator[Observer]:
    """An observer that shows progress on stderr; at the end of the block, all of it has been written."""
    open_closed()
    printer = Printer(sys.stderr)
    try:
        yield make_observer(mode, printer)
    finally:
        printer.settle()


def run_to_end(work: Callable[..., T], policy: config.InterruptPolicy) -> T:
    """Do work that drives a run, in another thread if an event loop is running in this one, and wait for it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    leaving = Leaving()
    with cancellable(leaving), interruptible(leaving, policy):
        return _started(partial(work, leaving=leaving)).result()


def _started(work: Callable[[], T]) -> Future[T]:
    """Start work in a daemon thread: if the program exits, the run ends as if it was killed."""
    future: Future[T] = Future()

    def body() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is awaited
            future.set_exception(error)

    Thread(target=body, name="batchrun", daemon=True).start()
    return future


def _refuse_for_requests(options: RunKeywords) -> None:
    """Refuse what needs the lines of files.

    Raises:
        UsageError: such an argument is given.
    """
    for name in _FOR_FILES:
        if options.get(name) and not (name == "repeat" and options["repeat"] == 1):
            raise UsageError(f"{name} needs files", "write the requests to a file, or list all variants")


_FOR_FILES = ("sweep", "repeat", "limit", "shard", "dedupe", "skip_invalid", "strict")


def _temporary_file() -> IO[bytes]:
    """An unnamed temporary file, which is deleted when it is closed.

    Raises:
        OutputError: it cannot be created.
    """
    try:
        return tempfile.TemporaryFile()
    except OSError as error:
        raise OutputError(
            f"the requests cannot be kept in a temporary file: {error.strerror or error}",
            "make room there, or set TMPDIR to another folder",
        ) from error


def _keep(requests: Iterable[Any], file: Any, rules: LineRules) -> None:
    """Validate requests and write them to a file, before anything is sent.

    Raises:
        InputError: a request is invalid, no request has a column that should be carried, or there are none.
    """
    count = 0
    for count, request in enumerate(requests, 1):
        if isinstance(request, os.PathLike):
            raise InputError(f"request {count:,} is a path", "give either files or requests")
        file.write(request_line(request, count, rules) + b"\n")
    if not count:
        raise InputError("there are no requests", "give at least one")
    rules.finish()
    file.seek(0)


def _lines(file: Any) -> Iterator[bytes]:
    return (line.rstrip(b"\n") for line in file)


def _results_name(state: str) -> str:
    stem = state.removesuffix(".state")
    return stem if stem.endswith(".jsonl") else f"{stem}.results.jsonl"
