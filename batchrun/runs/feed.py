"""Requests that a program hands over while the run goes on, and the records that it gets for them.

A `Feed` stands between two event loops: the program's, where the requests are pulled and the records are taken, and
the one in which the run is driven. It holds twice a window of requests whose records the program has not taken: so
whoever takes no records is asked for no requests, and one who takes them never waits for a request to be pulled.

Each request is a line of a file beside the state file before it is a row: to everything else such a run is one on an
input that grows, and a later session knows the rows by it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, TypeVar

import orjson

from batchrun.engine.journal import Journal, Loaded
from batchrun.engine.rows import RowLines
from batchrun.engine.signals import Leaving, Wish
from batchrun.errors import InputError, UsageError
from batchrun.files.exactjson import dump
from batchrun.prompts.identity import known_by
from batchrun.prompts.shapes import LineError, parse_line
from batchrun.results.reader import read_lines
from batchrun.results.writer import ResultsFile
from batchrun.scheduler.window import Window
from batchrun.state.appending import Arrival, Arrivals
from batchrun.state.store import Store

T = TypeVar("T")

_WINDOWS = 2
"""Windows of requests that are held: one in flight, one of records that wait to be taken."""
_AT_ONCE_S = 0.005
"""So long a plain iterable may keep the program's event loop at a time."""


def as_line(request: Any, number: int) -> bytes:
    """A request as an input line, without the end.

    Args:
        request: Anything that an input line may be, parsed.
        number: Which it is, 1-based.

    Raises:
        InputError: it is no JSON value, or of no known shape.
    """
    try:
        line = dump(request, orjson.OPT_SERIALIZE_NUMPY)
        parse_line(line)
    except LineError as error:
        raise InputError(f"request {number:,}: {error.message}", error.hint or _EXPECTED) from error
    except (TypeError, ValueError) as error:
        raise InputError(f"request {number:,} cannot be written as JSON: {error}", _EXPECTED) from error
    return line


_EXPECTED = "a request is what a line of an input file may be: a dict, or a string"


class Spool:
    """Makes rows of requests, each a line of a file first. Blocks; one thread at a time.

    Args:
        store: The run's state, with the rows of all lines that the file has.
        source: The file, as an input of the run.
        path: Where it stands.

    Raises:
        OutputError: the file cannot be written.
    """

    def __init__(self, store: Store, source: int, path: Path) -> None:
        size_bytes = path.stat().st_size
        self._file = ResultsFile(path, size_bytes)
        self._arrivals = Arrivals(store, source, size_bytes)
        self._reading = store.reading
        self.added = 0
        """How many of the last lines were new."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def add_all(self, lines: Sequence[bytes]) -> int:
        """Take in requests as lines; returns how many are new.

        Raises:
            InputError: an id has come before; the lines in front of that one are taken in, `added` says how many.
            StateError: another request had its id in an earlier session; as above.
            OutputError: they cannot be written.
        """
        try:
            self.added = self._add(lines)
        except UsageError:
            self.added = 0
            for line in lines:
                self.added += self._add([line])
        return self.added

    def _add(self, lines: Sequence[bytes]) -> int:
        def append(new: list[int]) -> None:
            self._file.append([lines[index] + b"\n" for index in new])
            self._file.sync()

        return self._arrivals.add([_arrival(line, self._reading) for line in lines], append)


def _arrival(line: bytes, reading: int) -> Arrival:
    prompt = parse_line(line, reading)
    row_id, known = known_by(prompt, line)
    return Arrival(row_id, prompt.id is None, len(line), known)


class StoredRecords:
    """The records of the rows that earlier sessions have finished, as lines.

    Args:
        store: The run's state; looked at once.
        results: The results file, and how much of it is committed.
        lines: Leads from a row to its lines.
    """

    def __init__(self, store: Store, results: tuple[Path, int], lines: RowLines) -> None:
        self._results = results
        self._failed = [
            lines.failure(row, failure, job)
            for output in store.outputs()
            for row, failure, job in store.failures(output.output)
        ]

    def __iter__(self) -> Iterator[bytes]:
        """Results in the order of their file, then failures."""
        path, end = self._results
        for line in read_lines(path, end=end):
            yield line.raw
        yield from self._failed


class Feed:
    """The way of requests into a run, and of records out of it.

    Made in the program's event loop.

    Args:
        requests: Where they come from. It is not closed; what was pulled from it is in the state when the run is over.
        leaving: Asked to detach when the program's event loop is gone.
    """

    def __init__(self, requests: Iterable[Any] | AsyncIterable[Any], leaving: Leaving) -> None:
        self._loop = asyncio.get_running_loop()
        self._requests = requests
        self._leaving = leaving
        self._window: Window | None = None
        self._held = 0
        self._count = 0
        self._pulled: deque[tuple[int, Any]] = deque()
        self._records: deque[bytes] = deque()
        self._waiting: list[asyncio.Future[None]] = []
        self._pump: asyncio.Task[None] | None = None
        self._ended = False
        self._over = False
        self._all_known_loaded = False
        self.stored: StoredRecords | None = None
        """What earlier sessions have finished; None until the run is open."""
        self.error: BaseException | None = None
        """Why no more is pulled, other than the end of the requests."""

    # For the program, in its event loop

    async def is_open(self) -> bool:
        """Wait until the run is open; False when it is over before."""
        await self._until(lambda: self.stored is not None or self._over)
        return self.stored is not None

    async def record(self) -> bytes | None:
        """The next record as a line; None when the run is over."""
        await self._until(lambda: bool(self._records) or self._over)
        if not self._records:
            return None
        self._hold(-1)
        return self._records.popleft()

    def stop(self) -> None:
        """Pull nothing more."""
        self._ended = True
        if self._pump is not None:
            self._pump.cancel()
        self._stir()

    def end(self) -> None:
        """The run is over: no further record will come."""
        self._over = True
        self.stop()

    # For the run, in its event loop or its thread

    def opened(self, stored: StoredRecords, in_flight: int, window: Window) -> None:
        """The run is open.

        Args:
            stored: What earlier sessions have finished.
            in_flight: Rows whose records will come without being loaded.
            window: How many jobs may be in flight.
        """
        self._window = window
        self._tell(self._open, stored, in_flight)

    def deliver(self, lines: list[bytes]) -> None:
        """Rows have ended."""
        self._tell(self._receive, lines)

    async def load(self, count: int, *, journal: Journal, spool: Spool, thread: ThreadPoolExecutor) -> Loaded:
        """Up to `count` rows to submit, at least one unless there are no more; waits for room, and for requests."""
        here = asyncio.get_running_loop()
        try:
            if not self._all_known_loaded:
                room = await self._there(self._wait_for_room(count))
                loaded = await here.run_in_executor(thread, journal.load, room)
                self._tell(self._hold, len(loaded.tickets))
                self._all_known_loaded = loaded.exhausted
                if loaded.tickets:
                    return loaded._replace(exhausted=False)
            while pulled := await self._there(self._next(count)):
                added = await here.run_in_executor(thread, self._take_in, spool, pulled)
                if added:
                    loaded = await here.run_in_executor(thread, journal.load, added)
                    return Loaded(loaded.tickets, exhausted=False, added=added)
        except _GoneError:
            self._leaving.ask(Wish.DETACH)
        return Loaded((), exhausted=True)

    async def settle(self, spool: Spool, thread: ThreadPoolExecutor) -> None:
        """The run is left: what has been pulled is made rows, so that a later session has it.

        Raises:
            OutputError: it cannot be written.
        """
        with suppress(_GoneError):
            pulled = await self._there(self._take_rest())
            await asyncio.get_running_loop().run_in_executor(thread, self._take_in, spool, pulled)

    def _take_in(self, spool: Spool, pulled: Sequence[tuple[int, Any]]) -> int:
        """Make rows of requests, up to one that cannot be used: it ends the pulling. Returns how many are new."""
        lines: list[bytes] = []
        added = 0
        try:
            try:
                lines.extend(as_line(request, number) for number, request in pulled)
            finally:
                added = spool.add_all(lines)
        except UsageError as error:
            added = spool.added
            self._tell(self._refuse, error)
        self._tell(self._hold, added - len(pulled))
        return added

    def _tell(self, call: Callable[..., None], *arguments: Any) -> None:
        """Call in the program's event loop, sometime, in the order of the calls."""
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            self._leaving.ask(Wish.DETACH)

    async def _there(self, work: Coroutine[Any, Any, T]) -> T:
        """Do in the program's event loop, and wait."""
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError as error:
            work.close()
            raise _GoneError from error
        return await asyncio.wrap_future(future)

    # What those do in the program's event loop

    def _open(self, stored: StoredRecords, in_flight: int) -> None:
        self.stored = stored
        self._hold(in_flight)

    def _receive(self, lines: list[bytes]) -> None:
        self._records.extend(lines)
        self._stir()

    def _refuse(self, error: UsageError) -> None:
        self.error = self.error or error
        self._pulled.clear()
        self.stop()

    def _hold(self, count: int) -> None:
        self._held += count
        self._stir()

    def _has_room(self) -> bool:
        return self._room > 0

    @property
    def _room(self) -> int:
        return (_WINDOWS * self._window.size if self._window else 1) - self._held

    async def _wait_for_room(self, count: int) -> int:
        await self._until(lambda: self._room > 0 or self._ended)
        return max(min(count, self._room), 1)

    async def _next(self, count: int) -> list[tuple[int, Any]]:
        """Up to `count` requests with their numbers, at least one; none when there are no more."""
        if self._pump is None and not self._ended:
            self._pump = asyncio.create_task(self._pull())
        await self._until(lambda: bool(self._pulled) or self._ended)
        return self._rest(count)

    async def _take_rest(self) -> list[tuple[int, Any]]:
        self.stop()
        if self._pump is not None:
            await asyncio.wait([self._pump])
        return self._rest(len(self._pulled))

    def _rest(self, count: int) -> list[tuple[int, Any]]:
        return [self._pulled.popleft() for _ in range(min(count, len(self._pulled)))]

    async def _pull(self) -> None:
        """Pull requests as long as there is room."""
        try:
            await self._until(self._has_room)
            async with aclosing(_each(self._requests)) as each:
                async for request in each:
                    self._count += 1
                    self._pulled.append((self._count, request))
                    self._hold(1)
                    await self._until(self._has_room)
        except Exception as error:  # noqa: BLE001 - whatever it is, the program gets it back
            self.error = self.error or error
        finally:
            self._ended = True
            self._stir()

    def _stir(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def _until(self, true: Callable[[], bool]) -> None:
        while not true():
            future = self._loop.create_future()
            self._waiting.append(future)
            await future


class _GoneError(Exception):
    """The program's event loop is closed."""


async def _each(requests: Iterable[Any] | AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
        return
    loop = asyncio.get_running_loop()
    since = loop.time()
    for request in requests:
        yield request
        if loop.time() - since > _AT_ONCE_S:
            await asyncio.sleep(0)
            since = loop.time()
