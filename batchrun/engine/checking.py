"""Ask a function of the user about answers, in processes of its own: it may be slow, hang, or crash.

It is that of `--check`, or one that scores answers.

Each process is spoken to by one thread at a time, so that the event loop never waits for it.
"""

from __future__ import annotations

import asyncio
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

from batchrun.errors import UsageError

_PROGRAM = Path(__file__).with_name("check_process.py")
_MOST_PROCESSES = 4
_START_S = 120.0
"""How long its imports may take: some load a model."""
_READ_BYTES = 1 << 16
_ENDING = "the run is ending"
_HINT = "give MODULE:FUNCTION, importable from this folder, or FILE.py:FUNCTION"


Kind = Literal["check", "scorer"]


class CheckFailedError(Exception):
    """The function gave no verdict; says why."""


def refuse_missing(check: str, option: str = "--check ", kind: Kind = "check") -> None:
    """Refuse a function that cannot be found, before anything is sent.

    Args:
        check: `MODULE:FUNCTION` or `FILE.py:FUNCTION`.
        option: The option that precedes it on the command line.
        kind: What the function is.

    Raises:
        UsageError: it cannot be imported, or is no function.
    """
    process = _Process(check, 1.0, kind)
    try:
        process.start()
    except CheckFailedError as error:
        raise UsageError(f"{option}{check}: {error}", _HINT) from error
    finally:
        process.kill()


class Functions:
    """Calls a function in up to four processes, which are started when they are needed.

    Args:
        name: `MODULE:FUNCTION` or `FILE.py:FUNCTION`.
        timeout_s: How long the function may take for one record.
        kind: What the function is.
    """

    def __init__(self, name: str, timeout_s: float, kind: Kind) -> None:
        self.name = name
        self.has_answered = False
        """Whether it has answered for any record."""
        count = min(_MOST_PROCESSES, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix=kind)
        self._processes = [_Process(name, timeout_s, kind) for _ in range(count)]
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        for process in self._processes:
            self._idle.put(process)

    def ask(self, record: bytes) -> Future[dict[str, Any]]:
        """The function's verdict on a record, as its process reports it.

        Args:
            record: A JSON object on one line.

        Raises:
            CheckFailedError: by the future: it took too long, or its process ended.
        """
        return self._threads.submit(self._ask, record)

    def _ask(self, record: bytes) -> dict[str, Any]:
        process = self._idle.get()
        try:
            answer = process.ask(record)
            self.has_answered = True
            return answer
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """End the processes; a record that is being checked gets no verdict."""
        for process in self._processes:
            process.close()
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.kill()


class Checker(Functions):
    """Asks the function of `--check`.

    Args:
        check: `MODULE:FUNCTION` or `FILE.py:FUNCTION`.
        timeout_s: How long the function may take for one record.
    """

    def __init__(self, check: str, timeout_s: float) -> None:
        super().__init__(check, timeout_s, "check")

    async def reason(self, record: bytes) -> str | None:
        """Why the function refuses a record; None if it accepts it, empty if it does not say why.

        Args:
            record: A JSON object on one line.

        Raises:
            CheckFailedError: it took too long, or its process ended.
        """
        reason: str | None = (await asyncio.wrap_future(self.ask(record)))["reason"]
        return reason


class _Process:
    """One process; it is started again after it has ended."""

    def __init__(self, name: str, timeout_s: float, kind: Kind) -> None:
        self._command = [sys.executable, "-P", str(_PROGRAM), name, str(timeout_s), kind]
        self._kind = kind
        self._timeout_s = timeout_s
        self._running: subprocess.Popen[bytes] | None = None
        self._closed = threading.Event()

    def ask(self, record: bytes) -> dict[str, Any]:
        """The verdict on a record, see `Functions.ask`."""
        if self._running is None:
            self.start()
        said = self._exchange(record, self._timeout_s)
        if said is None:
            raise CheckFailedError(f"the {self._kind} took longer than {self._timeout_s:g} s")
        return said

    def start(self) -> None:
        """Start it, and wait until it has found the function.

        Raises:
            CheckFailedError: it has not.
        """
        if self._closed.is_set():
            raise CheckFailedError(_ENDING)
        # In a session of its own, Ctrl-C does not reach it: the answers on their way are still checked.
        self._running = subprocess.Popen(  # noqa: S603 - the user's own check
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        if self._closed.is_set():
            self.kill()
            raise CheckFailedError(_ENDING)
        said = self._exchange(b"", _START_S)
        if said is None or "error" in said:
            self.kill()
            raise CheckFailedError(said["error"] if said else f"its import took longer than {_START_S:g} s")

    def kill(self) -> None:
        """End it, whatever it does; to be called by the thread that speaks to it."""
        running, self._running = self._running, None
        if running is not None:
            _kill_group(running)
            # What the function has started may hold the pipes open: nothing is read from them any more.
            for pipe in (running.stdin, running.stdout):
                if pipe is not None:
                    pipe.close()
            running.wait()

    def close(self) -> None:
        """End it for good; to be called by any thread."""
        self._closed.set()
        if (running := self._running) is not None:
            _kill_group(running)

    def _exchange(self, line: bytes, limit_s: float) -> dict[str, Any] | None:
        """Send a line and read one; None, and the process is killed, if that takes too long.

        Raises:
            CheckFailedError: the process has ended.
        """
        running = self._running
        assert running is not None  # noqa: S101 - it was started
        assert running.stdin is not None and running.stdout is not None  # noqa: S101, PT018 - both are pipes
        ends_at, rest, said = time.monotonic() + limit_s, memoryview(line), b""
        os.set_blocking(running.stdin.fileno(), False)
        with selectors.DefaultSelector() as ready:
            ready.register(running.stdout, selectors.EVENT_READ)
            if rest:
                ready.register(running.stdin, selectors.EVENT_WRITE)
            while not said.endswith(b"\n"):
                found = ready.select(max(ends_at - time.monotonic(), 0.0))
                if not found:
                    self.kill()
                    return None
                for key, _ in found:
                    if key.fileobj is running.stdout:
                        piece = os.read(running.stdout.fileno(), _READ_BYTES)
                        if not piece:
                            raise self._ended(running)
                        said += piece
                    else:
                        try:
                            rest = rest[os.write(running.stdin.fileno(), rest) :]
                        except BrokenPipeError:
                            raise self._ended(running) from None
                        if not rest:
                            ready.unregister(running.stdin)
        answer: dict[str, Any] = json.loads(said)
        return answer

    def _ended(self, running: subprocess.Popen[bytes]) -> CheckFailedError:
        self.kill()
        code = running.wait()
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return CheckFailedError(f"the {self._kind}'s process ended {how}")


def _kill_group(leader: subprocess.Popen[bytes]) -> None:
    """End a process that leads a session, and what it has started, unless that has a session of its own."""
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)
