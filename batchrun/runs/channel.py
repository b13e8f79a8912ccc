"""The channel through which a program hands requests to a run in progress, and receives their records.

A channel connects two event loops: the program's, in which requests are pulled and records are taken, and the one that
drives the run. It is bounded: requests whose records the program has not taken yet number at most two windows. So no
requests are pulled from a program that takes no records, and one that takes them never waits for a request to be
pulled.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, TypeVar

from batchrun.engine.journal import Journal
from batchrun.engine.row_queue import Loaded
from batchrun.engine.rows import RowLines
from batchrun.engine.signals import Leaving, Wish
from batchrun.errors import UsageError
from batchrun.results.reader import read_lines
from batchrun.runs.requests import RowAppender, request_line
from batchrun.scheduler.window import Window
from batchrun.state.reader import StateReader

T = TypeVar("T")

_WINDOWS = 2
"""Windows of requests in the channel: one in flight, and one whose records wait to be taken."""
_AT_ONCE_S = 0.005
"""How long a plain iterable may block the program's event loop at a time."""


class StoredRecords:
    """The records of the rows that earlier sessions have finished, as lines.

    Args:
        store: The run's state; read once.
        results: The results file, and its committed length in bytes.
        lines: Makes the lines of a row.
    """

    def __init__(self, store: StateReader, results: tuple[Path, int], lines: RowLines) -> None:
        self._results = results
        self._failed = [
            lines.failure(row, failure, job)
            for output in store.outputs()
            for row, failure, job in store.failures(output.output)
        ]

    def __iter__(self) -> Iterator[bytes]:
        """The results in the order of their file, then the failures."""
        path, end = self._results
        for line in read_lines(path, end=end):
            yield line.raw
        yield from self._failed


class _Queue:
    """The requests and records in the channel, with room for two windows. Used only in the program's event loop.

    Args:
        loop: The program's event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.requests: deque[tuple[int, Any]] = deque()
        """The pulled requests, each with its number."""
        self.records: deque[bytes] = deque()
        self.window: Window | None = None
        """The run's window, in jobs; None until the run is open."""
        self.rows_per_job = 1
        self.stored: StoredRecords | None = None
        self.pump: asyncio.Task[None] | None = None
        """The task that pulls the requests."""
        self.is_wanted = False
        """Whether the run has submitted all rows that it knew, and wants requests."""
        self.is_ended = False
        """Whether no more requests are pulled."""
        self.is_over = False
        """Whether no more records will come."""
        self.error: BaseException | None = None
        self._held = 0
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def room(self) -> int:
        """How many more requests may enter the channel; until the run is open, one."""
        return (_WINDOWS * self.window.size * self.rows_per_job if self.window else 1) - self._held

    def hold(self, count: int) -> None:
        """Count `count` more requests in the channel, or fewer if it is negative."""
        self._held += count
        self.notify()

    def deliver(self, lines: Sequence[bytes]) -> None:
        """Add records."""
        self.records.extend(lines)
        self.notify()

    def open(self, stored: StoredRecords, in_flight: int) -> None:
        """Note that the run is open, with `in_flight` rows whose records will come."""
        self.stored = stored
        self.hold(in_flight)

    def stop(self) -> None:
        """Pull no more requests."""
        self.is_ended = True
        if self.pump is not None:
            self.pump.cancel()
        self.notify()

    def refuse(self, error: UsageError) -> None:
        """Note that a request is invalid, drop the ones after it, and pull no more."""
        self.error = self.error or error
        self.requests.clear()
        self.stop()

    def notify(self) -> None:
        """Wake all tasks that wait in `until`."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until a condition is true."""
        while not true():
            future = self.loop.create_future()
            self._waiting.append(future)
            await future

    async def wait_for_room(self, count: int) -> int:
        """Wait for room; returns how many rows may be loaded, 1 to `count`."""
        await self.until(lambda: self.room > 0 or self.is_ended)
        return max(min(count, self.room), 1)

    async def next(self, count: int) -> list[tuple[int, Any]]:
        """Wait for requests; returns 1 to `count` requests with their numbers, or none if there are no more."""
        self.is_wanted = True
        self.notify()
        await self.until(lambda: bool(self.requests) or self.is_ended)
        return self._take(count)

    async def take_rest(self) -> list[tuple[int, Any]]:
        """Stop pulling; returns the pulled requests that were not taken."""
        self.stop()
        if self.pump is not None:
            await asyncio.wait([self.pump])
        return self._take(len(self.requests))

    def _take(self, count: int) -> list[tuple[int, Any]]:
        return [self.requests.popleft() for _ in range(min(count, len(self.requests)))]


class ProgramSide:
    """The program's side of a channel: requests in, records out. Created and used in the program's event loop.

    Args:
        queue: The requests and records in the channel.
        requests: Where requests come from. It is not closed. All pulled requests are in the state when the run ends.
    """

    def __init__(self, queue: _Queue, requests: Iterable[Any] | AsyncIterable[Any]) -> None:
        self._queue = queue
        queue.pump = asyncio.create_task(self._pull(requests))

    @property
    def stored(self) -> StoredRecords | None:
        """The records of earlier sessions; None until the run is open."""
        return self._queue.stored

    @property
    def error(self) -> BaseException | None:
        """Why pulling stopped before the end of the requests; None if it did not."""
        return self._queue.error

    async def is_open(self) -> bool:
        """Wait until the run is open; False if it ends before that."""
        queue = self._queue
        await queue.until(lambda: queue.stored is not None or queue.is_over)
        return queue.stored is not None

    async def record(self) -> bytes | None:
        """Wait for the next record, and return it as a line; None when the run has ended."""
        queue = self._queue
        await queue.until(lambda: bool(queue.records) or queue.is_over)
        if not queue.records:
            return None
        queue.hold(-1)
        return queue.records.popleft()

    def stop(self) -> None:
        """Pull no more requests."""
        self._queue.stop()

    def end(self) -> None:
        """Note that the run has ended: no more records will come."""
        self._queue.is_over = True
        self._queue.stop()

    async def _pull(self, requests: Iterable[Any] | AsyncIterable[Any]) -> None:
        """Pull requests while there is room."""
        queue, count = self._queue, 0
        try:
            await queue.until(lambda: queue.is_wanted and queue.room > 0)
            async with aclosing(_each(requests)) as each:
                async for request in each:
                    count += 1
                    queue.requests.append((count, request))
                    queue.hold(1)
                    await queue.until(lambda: queue.room > 0)
        except Exception as error:  # noqa: BLE001 - any exception is raised in the program
            queue.error = queue.error or error
        finally:
            queue.is_ended = True
            queue.notify()


class RunSide:
    """The run's side of a channel. Used in the run's event loop.

    Args:
        queue: The requests and records in the channel.
        leaving: Asked to leave if the program's event loop is closed.
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
        rows_per_job: int,
        journal: Journal,
        appender: RowAppender,
        thread: ThreadPoolExecutor,
    ) -> None:
        """Connect the channel to the open run.

        Args:
            stored: The records of earlier sessions.
            in_flight: Rows in flight, whose records will come without being loaded.
            window: The run's window.
            rows_per_job: The most rows of one job.
            journal: Loads rows.
            appender: Makes rows from requests.
            thread: The thread in which journal and appender are used.
        """
        self._journal = journal
        self._appender = appender
        self._thread = thread
        self._queue.window, self._queue.rows_per_job = window, rows_per_job
        self._call_run_there(self._queue.open, stored, in_flight)

    def deliver(self, lines: list[bytes]) -> None:
        """Pass on the records of rows that have ended."""
        self._call_run_there(self._queue.deliver, lines)

    async def load(self, count: int) -> Loaded:
        """Wait for room and for requests; returns 1 to `count` rows to submit, or none if there are no more."""
        here, thread = asyncio.get_running_loop(), self._thread
        try:
            if not self._all_known_loaded:
                room = await self._run_there(self._queue.wait_for_room(count))
                loaded = await here.run_in_executor(thread, self._journal.load, room)
                self._call_run_there(self._queue.hold, len(loaded.tickets))
                self._all_known_loaded = loaded.exhausted
                if loaded.tickets:
                    return loaded._replace(exhausted=False)
            while pulled := await self._run_there(self._queue.next(count)):
                added = await here.run_in_executor(thread, self._make_rows, pulled)
                if added:
                    loaded = await here.run_in_executor(thread, self._journal.load, added)
                    return loaded._replace(exhausted=False, added=added)
        except _GoneError:
            self._leaving.ask(Wish.LEAVE)
        return Loaded((), exhausted=True)

    async def settle(self) -> None:
        """Make rows from all pulled requests when the run is left, so that a later session has them.

        Raises:
            OutputError: they cannot be written.
        """
        with suppress(_GoneError):
            pulled = await self._run_there(self._queue.take_rest())
            await asyncio.get_running_loop().run_in_executor(self._thread, self._make_rows, pulled)

    def _make_rows(self, pulled: Sequence[tuple[int, Any]]) -> int:
        """Make rows from requests, up to an invalid one, which stops pulling. Returns the number of new rows."""
        lines: list[bytes] = []
        unreadable: UsageError | None = None
        try:
            lines.extend(request_line(request, number, self._appender.rules) for number, request in pulled)
        except UsageError as error:
            unreadable = error
        added, refused = self._appender.add(lines)
        if refused is not None or unreadable is not None:
            self._call_run_there(self._queue.refuse, refused or unreadable)
        self._call_run_there(self._queue.hold, added - len(pulled))
        return added

    def _call_run_there(self, call: Callable[..., None], *arguments: Any) -> None:
        """Schedule a call in the program's event loop; calls keep their order."""
        try:
            self._queue.loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            self._leaving.ask(Wish.LEAVE)

    async def _run_there(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the program's event loop, and wait for it."""
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._queue.loop)
        except RuntimeError as error:
            work.close()
            raise _GoneError from error
        return await asyncio.wrap_future(future)


def open_channel(requests: Iterable[Any] | AsyncIterable[Any], leaving: Leaving) -> tuple[ProgramSide, RunSide]:
    """Create a channel, in the program's event loop; returns its two sides.

    Args:
        requests: Where requests come from.
        leaving: Asked to leave if the program's event loop is closed.
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
