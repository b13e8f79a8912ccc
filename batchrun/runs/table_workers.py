"""Reads the rows of a table in several processes: that takes most of the time of an export.

Each process is given one group at a time, as a length and a value that `marshal` has written, and answers likewise. So
neither side ever waits for the other while that waits for it, and at most one group for each process is in memory.
"""

from __future__ import annotations

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
from batchrun.results.reader import LinesByPosition
from batchrun.runs.conversion import Line
from batchrun.runs.table_process import receive, send
from batchrun.runs.table_reading import packed, setup_of
from batchrun.state.positions import Position

_PROGRAM = Path(__file__).with_name("table_process.py")
_MOST_PROCESSES = 4
"""More would wait for this process, which writes what they find."""


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

    def begin(self, state: Path, placed: LinesByPosition, chosen: Sequence[str] | None) -> bool:
        """Let them open the files; whether they can read them. A system may refuse to start a process.

        Args:
            state: The run's state file.
            placed: The results files.
            chosen: The columns, see `Columns`.
        """
        if not self._have_begun:
            setup = setup_of(state, placed, chosen)
            try:
                for worker in self._workers:
                    worker.give(setup)
                for worker in self._workers:
                    worker.take()
            except BatchrunError:
                self.close()
            self._have_begun = True
        return bool(self._workers)

    def find(self, groups: Iterator[list[Position | Line]]) -> Iterator[Found]:
        """The cells of some groups of rows, in order.

        Raises:
            BatchrunError: what went wrong in a process, as it would be raised here.
            OutputError: a process has ended.
        """
        asked: deque[_Worker] = deque()
        for worker, group in zip(self._workers, groups, strict=False):
            worker.give(list(map(packed, group)))
            asked.append(worker)
        while asked:
            worker = asked.popleft()
            found = worker.take()
            for group in islice(groups, 1):
                worker.give(list(map(packed, group)))
                asked.append(worker)
            yield Found.from_plain(found)


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
        self.give([str(Path(place).absolute()) for place in sys.path])

    def give(self, value: Any) -> None:
        """Send it something to answer."""
        with suppress(BrokenPipeError):  # told when its answer is taken
            send(cast("Any", self._process.stdin), value)

    def take(self) -> Any:
        """Its answer."""
        try:
            kind, *said = receive(cast("Any", self._process.stdout))
        except EOFError:
            raise OutputError(
                f"a process that reads the rows for the table has ended ({self._end()})",
                "if memory is short, free some; then give the same command again",
            ) from None
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
