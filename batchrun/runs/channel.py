"""Requests that a program hands over while the run goes on, and the records that it gets for them.

A channel stands between two event loops: the program's, where the requests are pulled and the records are taken, and
the one in which the run is driven. It is bounded: at most two windows of requests are on the way whose records the
program has not taken. So whoever takes no records is asked for no requests, and one who takes them never waits for a
request to be pulled.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, TypeVar

from batchrun.engine.journal import Journal, Loaded
from batchrun.engine.rows import RowLines
from batchrun.engine.signals import Leaving, Wish
from batchrun.errors import UsageError
from batchrun.results.reader import read_lines
from batchrun.runs.requests import RowAppender, request_line
from batchrun.scheduler.window import Window
from batchrun.state.reader import StateReader

T = TypeVar("T")

_WINDOWS = 2
"""Windows of requests on the way: one in flight, one of records that wait to be taken."""
_AT_ONCE_S = 0.005
"""How long a plain iterable may keep the program's event loop at a time."""


class StoredRecords:
    """The records of the rows that earlier sessions have finished, as lines.

    Args:
        store: The run's state; looked at once.
        results: The results file, and how much of it is committed.
        lines: Leads from a row to its lines.
    """

    def __init__(self, store: StateReader, results: tuple[Path, int], lines: RowLines) -> None:
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


class _Queue:
    """The requests and records on the way, with room for two windows of them. All of it is in the program's event loop.

    Args:
        loop: The program's event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.requests: deque[tuple[int, Any]] = deque()
        """Those that were pulled, each with its number."""
        self.records: deque[bytes] = deque()
        self.window: Window | None = None
        """How many jobs may be in flight; None until the run is open."""
        self.stored: StoredRecords | None = None
        self.pump: asyncio.Task[None] | None = None
        """Pulls the requests."""
        self.is_wanted = False
        """Whether the run has submitted all rows that it knew, and wants requests."""
        self.is_ended = False
        """Whether no more is pulled."""
        self.is_over = False
        """Whether no further record will come."""
        self.error: BaseException | None = None
        self._held = 0
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def room(self) -> int:
        """How many more requests may be on the way; until the run is open, one."""
        return (_WINDOWS * self.window.size if self.window else 1) - self._held

    def hold(self, count: int) -> None:
        """So many more requests are on the way; fewer, where it is negative."""
        self._held += count
        self.stir()

    def deliver(self, lines: Sequence[bytes]) -> None:
        """Records have come."""
        self.records.extend(lines)
        self.stir()

    def open(self, stored: StoredRecords, in_flight: int) -> None:
        """The run is open: rows whose records will come are on the way already."""
        self.stored = stored
        self.hold(in_flight)

    def stop(self) -> None:
        """Pull nothing more."""
        self.is_ended = True
        if self.pump is not None:
            self.pump.cancel()
        self.stir()

    def refuse(self, error: UsageError) -> None:
        """A request cannot be used: it is the last one that was looked at."""
        self.error = self.error or error
        self.requests.clear()
        self.stop()

    def stir(self) -> None:
        """Something has changed."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until something is true."""
        while not true():
            future = self.loop.create_future()
            self._waiting.append(future)
            await future

    async def wait_for_room(self, count: int) -> int:
        """How many rows may be loaded: up to `count`, at least one."""
        await self.until(lambda: self.room > 0 or self.is_ended)
        return max(min(count, self.room), 1)

    async def next(self, count: int) -> list[tuple[int, Any]]:
        """Up to `count` requests with their numbers, at least one; none when there are no more."""
        self.is_wanted = True
        self.stir()
        await self.until(lambda: bool(self.requests) or self.is_ended)
        return self._take(count)

    async def take_rest(self) -> list[tuple[int, Any]]:
        """End the pulling; returns the requests that nobody has got."""
        self.stop()
        if self.pump is not None:
            await asyncio.wait([self.pump])
        return self._take(len(self.requests))

    def _take(self, count: int) -> list[tuple[int, Any]]:
        return [self.requests.popleft() for _ in range(min(count, len(self.requests)))]


class ProgramSide:
    """The side of a channel in the program's event loop, in which it is made: requests in, records out.

    Args:
        queue: What is on the way.
        requests: Where they come from. It is not closed; what was pulled from it is in the state when the run is over.
    """

    def __init__(self, queue: _Queue, requests: Iterable[Any] | AsyncIterable[Any]) -> None:
        self._queue = queue
        queue.pump = asyncio.create_task(self._pull(requests))

    @property
    def stored(self) -> StoredRecords | None:
        """What earlier sessions have finished; None until the run is open."""
        return self._queue.stored

    @property
    def error(self) -> BaseException | None:
        """Why no more is pulled, other than the end of the requests."""
        return self._queue.error

    async def is_open(self) -> bool:
        """Wait until the run is open; False when it is over before."""
        queue = self._queue
        await queue.until(lambda: queue.stored is not None or queue.is_over)
        return queue.stored is not None

    async def record(self) -> bytes | None:
        """The next record as a line; None when the run is over."""
        queue = self._queue
        await queue.until(lambda: bool(queue.records) or queue.is_over)
        if not queue.records:
            return None
        queue.hold(-1)
        return queue.records.popleft()

    def stop(self) -> None:
        """Pull nothing more."""
        self._queue.stop()

    def end(self) -> None:
        """The run is over: no further record will come."""
        self._queue.is_over = True
        self._queue.stop()

    async def _pull(self, requests: Iterable[Any] | AsyncIterable[Any]) -> None:
        """Pull requests as long as there is room."""
        queue, count = self._queue, 0
        try:
            await queue.until(lambda: queue.is_wanted and queue.room > 0)
            async with aclosing(_each(requests)) as each:
                async for request in each:
                    count += 1
                    queue.requests.append((count, request))
                    queue.hold(1)
                    await queue.until(lambda: queue.room > 0)
        except Exception as error:  # noqa: BLE001 - whatever it is, the program gets it back
            queue.error = queue.error or error
        finally:
            queue.is_ended = True
            queue.stir()


class RunSide:
    """The side of a channel in the run's event loop and its thread.

    Args:
        queue: What is on the way.
        leaving: Asked to detach when the program's event loop is gone.
    """

    def __init__(self, queue: _Queue, leaving: Leaving) -> None:
        self._queue = queue
        self._leaving = leaving
        self._all_known_loaded = False

    def open(
        self,
        stored: StoredRecords,
        in_flight: int,
        window: Window,
        *,
        journal: Journal,
        appender: RowAppender,
        thread: ThreadPoolExecutor,
    ) -> None:
        """The run is open.

        Args:
            stored: What earlier sessions have finished.
            in_flight: Rows whose records will come without being loaded.
            window: How many jobs may be in flight.
            journal: Loads rows.
            appender: Makes rows of requests.
            thread: In which both work.
        """
        self._journal = journal
        self._appender = appender
        self._thread = thread
        self._queue.window = window
        self._tell(self._queue.open, stored, in_flight)

    def deliver(self, lines: list[bytes]) -> None:
        """Rows have ended."""
        self._tell(self._queue.deliver, lines)

    async def load(self, count: int) -> Loaded:
        """Up to `count` rows to submit, at least one unless there are no more; waits for room, and for requests."""
        here, thread = asyncio.get_running_loop(), self._thread
        try:
            if not self._all_known_loaded:
                room = await self._there(self._queue.wait_for_room(count))
                loaded = await here.run_in_executor(thread, self._journal.load, room)
                self._tell(self._queue.hold, len(loaded.tickets))
                self._all_known_loaded = loaded.exhausted
                if loaded.tickets:
                    return loaded._replace(exhausted=False)
            while pulled := await self._there(self._queue.next(count)):
                added = await here.run_in_executor(thread, self._take_in, pulled)
                if added:
                    loaded = await here.run_in_executor(thread, self._journal.load, added)
                    return Loaded(loaded.tickets, exhausted=False, added=added)
        except _GoneError:
            self._leaving.ask(Wish.DETACH)
        return Loaded((), exhausted=True)

    async def settle(self) -> None:
        """The run is left: what has been pulled is made rows, so that a later session has it.

        Raises:
            OutputError: it cannot be written.
        """
        with suppress(_GoneError):
            pulled = await self._there(self._queue.take_rest())
            await asyncio.get_running_loop().run_in_executor(self._thread, self._take_in, pulled)

    def _take_in(self, pulled: Sequence[tuple[int, Any]]) -> int:
        """Make rows of requests, up to one that cannot be used: it ends the pulling. Returns how many are new."""
        lines: list[bytes] = []
        unreadable: UsageError | None = None
        try:
            lines.extend(request_line(request, number) for number, request in pulled)
        except UsageError as error:
            unreadable = error
        added, refused = self._appender.add(lines)
        if refused is not None or unreadable is not None:
            self._tell(self._queue.refuse, refused or unreadable)
        self._tell(self._queue.hold, added - len(pulled))
        return added

    def _tell(self, call: Callable[..., None], *arguments: Any) -> None:
        """Call in the program's event loop, sometime, in the order of the calls."""
        try:
            self._queue.loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            self._leaving.ask(Wish.DETACH)

    async def _there(self, work: Coroutine[Any, Any, T]) -> T:
        """Do in the program's event loop, and wait."""
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._queue.loop)
        except RuntimeError as error:
            work.close()
            raise _GoneError from error
        return await asyncio.wrap_future(future)


def open_channel(requests: Iterable[Any] | AsyncIterable[Any], leaving: Leaving) -> tuple[ProgramSide, RunSide]:
    """The two sides of a new channel, made in the program's event loop.

    Args:
        requests: Where they come from.
        leaving: Asked to detach when the program's event loop is gone.
    """
    queue = _Queue(asyncio.get_running_loop())
    return ProgramSide(queue, requests), RunSide(queue, leaving)


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
