"""Reads results and the rows of a table in several processes: that takes most of the time of an export.

A process is given tasks, each as a length and a value that `marshal` has written, and answers them in order, likewise.
While it works on one, the next already waits for it in the pipe, if there is room. A larger one is sent when it has
answered all others: so neither side ever waits for the other while that waits for it.
"""

from __future__ import annotations

import marshal
import os
import signal
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Self, cast

from batchrun import errors
from batchrun.errors import BatchrunError, OutputError
from batchrun.results.cells import Found
from batchrun.results.marks import Mark, read_marks
from batchrun.results.reader import LinesByPosition
from batchrun.runs.conversion import Line
from batchrun.runs.table_process import receive, send_data
from batchrun.runs.table_reading import packed, setup_of
from batchrun.state.positions import Position

_PROGRAM = Path(__file__).with_name("table_process.py")
_MOST_PROCESSES = 4
"""More would wait for this process, which writes what they find."""
_QUEUED = 2
"""The tasks that a process has at a time."""
_PIPE_BYTES = 1 << 20


def processes() -> int:
    """How many processes are used: one for each core; none if there is only one."""
    count = min(os.cpu_count() or 1, _MOST_PROCESSES)
    return count if count > 1 else 0


class TableWorkers:
    """The processes, which start now; to be used in a `with` statement."""

    def __init__(self) -> None:
        self._workers: list[_Worker] = []
        self._have_begun = False
        try:
            for _ in range(processes()):
                self._workers.append(_Worker())
        except OSError:
            self.close()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        while self._workers:
            self._workers.pop().kill()

    def are_ready(self) -> bool:
        """Wait until they can be given a task; whether they can. A system may refuse to start a process."""
        return self._have_answered()

    def read_marks(self, path: Path, end: int) -> Iterator[list[Mark]]:
        """The marks of all lines of a results file before a position, see `marks`.

        Raises:
            BatchrunError: as by `find`.
        """
        return read_marks(path, end, lambda parts: self._each("mark", parts))

    def begin(self, state: Path, placed: LinesByPosition, chosen: Sequence[str] | None) -> bool:
        """Let them open the files; whether they can read them.

        Args:
            state: The run's state file.
            placed: The results files.
            chosen: The columns, see `Columns`.
        """
        if not self._have_begun:
            setup = setup_of(state, placed, chosen)
            for worker in self._workers:
                worker.give("begin", setup)
            self._have_begun = self._have_answered()
        return self._have_begun

    def _have_answered(self) -> bool:
        try:
            for worker in self._workers:
                worker.take()
        except BatchrunError:
            self.close()
        return bool(self._workers)

    def find(self, groups: Iterator[list[Position | Line]]) -> Iterator[Found]:
        """The cells of some groups of rows, in order.

        Raises:
            BatchrunError: what went wrong in a process, as it would be raised here.
            OutputError: a process has ended.
        """
        return map(Found.from_plain, self._each("find", (list(map(packed, group)) for group in groups)))

    def _each(self, task: str, values: Iterator[Any]) -> Iterator[Any]:
        """What they answer, in order."""
        asked: deque[_Worker] = deque()
        for worker, value in zip(self._workers * _QUEUED, values, strict=False):
            worker.give(task, value)
            asked.append(worker)
        while asked:
            worker = asked.popleft()
            found = worker.take()
            for value in islice(values, 1):
                worker.give(task, value)
                asked.append(worker)
            yield found


class _Worker:
    """One process."""

    def __init__(self) -> None:
        import subprocess  # noqa: PLC0415 - most exports start none

        # In a session of its own, Ctrl-C does not reach it: this process ends it.
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-P", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        _enlarge(self._process.stdout)
        self._room_bytes = _enlarge(self._process.stdin) // 4
        """What its pipe surely has room for, beside a task of the same size."""
        self._unanswered = 0
        self._answers: deque[Any] = deque()
        """Answers that are not taken yet."""
        self._send([str(Path(place).absolute()) for place in sys.path])

    def give(self, task: str, value: Any) -> None:
        """Give it a task: a method of `TableReading`, and what it is called with."""
        self._send((task, value))

    def _send(self, value: Any) -> None:
        data = marshal.dumps(value)
        while self._unanswered and len(data) > self._room_bytes:
            self._answers.append(self._receive())
        self._unanswered += 1
        with suppress(BrokenPipeError):  # told when its answer is taken
            send_data(cast("Any", self._process.stdin), data)

    def _receive(self) -> Any:
        try:
            answer = receive(cast("Any", self._process.stdout))
        except EOFError:
            raise OutputError(
                f"a process that reads the rows for the table has ended ({self._end()})",
                "if memory is short, free some; then give the same command again",
            ) from None
        self._unanswered -= 1
        return answer

    def take(self) -> Any:
        """Its answer."""
        kind, *said = self._answers.popleft() if self._answers else self._receive()
        if kind == "error":
            name, message, hint = said
            raise getattr(errors, name, OutputError)(message, hint)
        return said[0]

    def _end(self) -> str:
        code = self._process.wait()
        with suppress(ValueError):
            return signal.Signals(-code).name
        return f"exit code {code}"

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                cast("Any", pipe).close()
        self._process.wait()


def _enlarge(pipe: Any) -> int:
    """Give a pipe more room, if the system allows it; returns its size in bytes, 0 if that is unknown."""
    try:
        import fcntl  # noqa: PLC0415 - not on every system

        with suppress(OSError):  # a user may have used up all room for pipes
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        return int(fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ))
    except (ImportError, AttributeError):
        return 0
