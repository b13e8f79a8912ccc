"""The Python API: `run` for inputs that are there, `stream` for requests that come one by one.

Both go through `commands.run`, as the command line does, with the same state file: `batchrun status`, `verify`,
`cancel`, `export` and `resume` work on what they leave. A stream is driven in a thread with an event loop of its own,
so that a program that is busy with a record holds up nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from threading import Thread
from typing import IO, Any, Self, Unpack

from batchrun import config
from batchrun.api.arguments import RunKeywords, StreamKeywords, checked, spelled_out
from batchrun.commands import run as running
from batchrun.commands.arguments import RunArguments
from batchrun.commands.run_options import run_options
from batchrun.display.printer import Printer
from batchrun.display.progress import make_observer
from batchrun.display.summary import Summary
from batchrun.engine.signals import Leaving, Wish, cancellable, interruptible
from batchrun.errors import InputError, OutputError, RunInterrupted, StoppedError, UsageError
from batchrun.files.exactjson import load
from batchrun.files.paths import behind_links
from batchrun.files.streams import open_closed
from batchrun.runs.channel import ProgramSide, RunSide, open_channel
from batchrun.runs.locations import requests_path
from batchrun.runs.requests import request_line

# What is logged as an error is also raised, or stands in the summary.
logging.getLogger("batchrun").addHandler(logging.NullHandler())


@spelled_out(StreamKeywords, RunKeywords)
def run(
    inputs: str | os.PathLike[str] | Iterable[os.PathLike[str]] | Iterable[Mapping[str, Any]],
    *,
    endpoint: str | None = None,
    output: str | os.PathLike[str],
    state: str | os.PathLike[str] | None = None,
    api_key: str | None = None,
    on_interrupt: config.InterruptPolicy = "drain",
    progress: config.ProgressMode = "auto",
    **options: Unpack[RunKeywords],
) -> Summary:
    """Run inputs to their end, or resume a run; blocks, also where an event loop is running, as in a notebook.

    The same call again resumes where the last one was cut off. In the main thread Ctrl-C and SIGTERM do what
    `on_interrupt` says, and the summary tells of it.

    Args:
        inputs: A file or folder, several as `Path` objects, or the requests themselves: dicts as in a line of an input
            file. Those are all read and checked before anything is sent, and kept in `<state>.requests.jsonl`.
        endpoint: The endpoint's ID; `local` is the built-in one. None: those of `sweep`.
        output: The results file, or a folder (existing, or ending in /) with one for each input.
        state: The state file; None: `<output>.state`, or `batchrun.state` in a folder.
        api_key: None: that of RUNPOD_API_KEY, else of `~/.runpod/config.toml`.
        on_interrupt: What the first Ctrl-C does with the jobs in flight: `drain`, `detach`, or `cancel`.
        progress: `bar`, `plain`, `json`, `none`, or `auto`, which is a bar on a terminal; on stderr.

    Returns:
        Counts, `results` and `errors` (files), `exit_code`, and in `outcome`, `reason` and `hint` why it stopped early.

    Raises:
        UsageError: an argument, an input or the state file is wrong; nothing was sent.
        BatchrunError: a file cannot be written before anything was sent, or a defect.
    """
    names, requests = _inputs(inputs)
    if requests is not None and (options.get("sweep") or options.get("repeat", 1) != 1 or options.get("limit")):
        raise UsageError("sweep, repeat and limit are for files", "write the requests to a file, or multiply them")
    at = behind_links(Path(state) if state is not None else Path(f"{_text(output).rstrip('/')}.state"))
    given = checked(
        RunArguments(
            inputs=names if requests is None else (str(requests_path(at)),),
            endpoint=endpoint,
            output=_text(output),
            state=None if requests is None and state is None else str(at),
            on_interrupt=on_interrupt,
            progress=progress,
            **options,
        )
    )
    asked = run_options(given)
    if requests is not None and asked.output_is_folder:
        raise UsageError(f"output={asked.output} is a folder", "give a file: one for all results")
    with _temporary_file() as kept:
        if requests is not None:
            _keep(requests, kept)
        work = partial(_shown, asked, given, api_key=api_key, requests=None if requests is None else _lines(kept))
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return work()
        return _beside(work, on_interrupt)


@spelled_out(StreamKeywords)
def stream(
    requests: Iterable[Mapping[str, Any] | str] | AsyncIterable[Mapping[str, Any] | str],
    *,
    endpoint: str,
    state: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    api_key: str | None = None,
    on_interrupt: config.InterruptPolicy = "drain",
    progress: config.ProgressMode = "none",
    **options: Unpack[StreamKeywords],
) -> Stream:
    """Run requests as they come, to be iterated over for their records.

    The same call with the same requests goes on where the last one was cut off: requests are known again by their id,
    or by what they ask for. What earlier calls have finished is not paid for again, and its records come first.

    Args:
        requests: Dicts as in a line of an input file, or prompts as strings; from any iterable, or async iterable.
            They are pulled as the window has room: at most two windows ahead of the records that were taken. A plain
            iterable is advanced in the event loop; one that waits for something is better an async one.
        endpoint: The endpoint's ID; `local` is the built-in one.
        state: The state file. The requests are kept beside it, in `<state>.requests.jsonl`.
        output: The results file; None: the state file's name without `.state`, ending in `.jsonl`.
        api_key: None: that of RUNPOD_API_KEY, else of `~/.runpod/config.toml`.
        on_interrupt: What leaving the loop early, or its cancellation, does with the jobs in flight: `drain` waits for
            them, `detach` leaves them to the next call, `cancel` cancels them. A cancellation meanwhile detaches.
        progress: `bar`, `plain`, `json`, `none`, or `auto`, which is a bar on a terminal; on stderr.

    Returns:
        The records as they come, to be iterated once; see `Stream`.

    Raises:
        UsageError: an argument is wrong.
    """
    at = behind_links(Path(state))
    given = checked(
        RunArguments(
            inputs=(str(requests_path(at)),),
            endpoint=endpoint,
            output=_text(output) if output is not None else str(at.with_name(_results_name(at.name))),
            state=str(at),
            on_interrupt=on_interrupt,
            progress=progress,
            **options,
        )
    )
    asked = run_options(given)
    if asked.output_is_folder:
        raise UsageError(f"output={asked.output} is a folder", "give a file: one for all results")
    if isinstance(requests, (str, bytes, Mapping)) or not isinstance(requests, (Iterable, AsyncIterable)):
        raise UsageError("requests is no iterable of requests", "for one request give a list of it")
    work = partial(_shown, asked, given, api_key=api_key, requests=())
    return Stream(requests, work, Wish(on_interrupt))


class Stream:
    """The records of a stream of requests, one for each, as they come.

    `async for record in stream(...)` is all it needs. A record is a dict, the one that stands in the results file; of a
    request that failed it is that of the error file, with `error`, and a `status` other than COMPLETED.

    An exception of the requests, or a request that cannot be used, ends the pulling: what was pulled before is
    collected, and then it is raised. A run that stops early (a refused key, the breaker, a budget) raises
    `StoppedError` once its last record is taken. Whoever leaves the loop early loses nothing, see `on_interrupt`; in
    `async with stream(...) as records` the end of the block waits until the run is left. Signals are left to the
    program; `batchrun cancel` works from the main thread's event loop.

    Args:
        requests: What `stream` was given.
        work: Drives the run; blocks.
        wish: How to leave it early.
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
        """What the run came to; None until it is over."""

    def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        # Not kept here: so a loop that is left drops its last reference, and Python closes it.
        return self._iterate()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _iterate(self) -> AsyncIterator[dict[str, Any]]:
        if self._done is not None:
            raise UsageError("a stream is iterated once", "make another one: it goes on where this one is")
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
            raise RunInterrupted("the run was cancelled by another process", "the same call goes on")

    async def aclose(self) -> None:
        """Leave the run, unless it is over, and wait until it is left.

        Raises:
            BatchrunError: the run could not even begin, or a defect.
        """
        done, side = self._done, self._side
        if done is None or side is None or done.done():
            return
        if not self._is_left:
            # Both the end of the loop and that of an `async with` around it come here.
            self._is_left = True
            side.stop()
            self._leaving.ask(self._wish)
        try:
            self.summary = await asyncio.shield(done)
        except asyncio.CancelledError:
            self._leaving.ask(Wish.DETACH)
            await asyncio.wait([done])
            raise


def _shown(
    options: config.RunOptions,
    given: RunArguments,
    *,
    api_key: str | None,
    requests: Iterable[bytes] | None,
    channel: RunSide | None = None,
    leaving: Leaving | None = None,
) -> Summary:
    """Run, with the progress shown on stderr; all of it is written before the end."""
    open_closed()
    printer = Printer(sys.stderr)
    observer = make_observer(given.progress, printer)
    try:
        return running.run(
            options, given, observer=observer, api_key=api_key, requests=requests, channel=channel, leaving=leaving
        )
    finally:
        printer.settle()


def _beside(work: Callable[..., Summary], policy: config.InterruptPolicy) -> Summary:
    """Work in another thread, because an event loop is running in this one, and wait for it."""
    leaving = Leaving()
    with cancellable(leaving), interruptible(leaving, policy):
        return _started(partial(work, leaving=leaving)).result()


def _started(work: Callable[[], Summary]) -> Future[Summary]:
    """Work in a thread that does not outlive the program: its end is then that of a run that was killed."""
    future: Future[Summary] = Future()

    def body() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it
            future.set_exception(error)

    Thread(target=body, name="batchrun", daemon=True).start()
    return future


def _inputs(inputs: Any) -> tuple[tuple[str, ...], Iterable[Any] | None]:
    """The names of files, or the requests."""
    if isinstance(inputs, (str, os.PathLike)):
        return (_text(inputs),), None
    if isinstance(inputs, AsyncIterable):
        raise UsageError("run takes no async iterable", "take `stream`")
    if type(inputs).__name__ == "DataFrame":
        raise UsageError(f"inputs is {type(inputs).__name__}, no list of requests", 'give df.to_dict("records")')
    if isinstance(inputs, (bytes, Mapping)) or not isinstance(inputs, Iterable):
        raise UsageError(f"inputs is {type(inputs).__name__}, no file and no requests", "for one request give a list")
    if isinstance(inputs, (list, tuple)) and inputs and all(isinstance(item, os.PathLike) for item in inputs):
        return tuple(map(_text, inputs)), None
    return (), inputs


def _temporary_file() -> IO[bytes]:
    """A file that nobody sees, and that is gone when it is closed.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        return tempfile.TemporaryFile()
    except OSError as error:
        raise OutputError(
            f"the requests cannot be kept in a temporary file: {error.strerror or error}",
            "make room there, or name another folder in TMPDIR",
        ) from error


def _keep(requests: Iterable[Any], file: Any) -> None:
    """Write requests to a file, each looked at before anything is sent.

    Raises:
        InputError: one cannot be used, or there is none.
    """
    count = 0
    for count, request in enumerate(requests, 1):
        if isinstance(request, (str, os.PathLike)):
            raise InputError(
                f"{request!r} in a list may be a prompt or a file",
                "give a prompt as {'prompt': ...}, and files as Path objects only",
            )
        file.write(request_line(request, count) + b"\n")
    if not count:
        raise InputError("there is no request", "give at least one")
    file.seek(0)


def _lines(file: Any) -> Iterator[bytes]:
    return (line.rstrip(b"\n") for line in file)


def _text(path: str | os.PathLike[str]) -> str:
    return os.fsdecode(path)


def _results_name(state: str) -> str:
    stem = state.removesuffix(".state")
    return stem if stem.endswith(".jsonl") else f"{stem}.results.jsonl"
