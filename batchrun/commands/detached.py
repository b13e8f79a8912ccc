"""`--detach`: a run continues in a background process, which outlives the terminal.

The command starts itself again, in a new session, with its output in a log. It shows what that process logs, and waits
until the process reports, through a pipe, that the run is under way: the input is read, the endpoint answers, and the
canary is back. If the process ends before that, its exit code is the command's. It is a new process, not a fork:
libraries with threads do not survive a fork.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from batchrun.config import VERSION, RunOptions
from batchrun.display.printer import Printer
from batchrun.display.summary import Observer, Snapshot, warn
from batchrun.errors import OutputError, UsageError
from batchrun.files.folders import make_folder, remove_empty
from batchrun.files.urls import is_url
from batchrun.prompts.ownership import first_line
from batchrun.runs.locations import log_path

_VARIABLE = "_BATCHRUN_READY"
"""The environment variable that tells the process its end of the pipe; it is removed at once."""
_LOOK_S = 0.1
_REFUSED = 2
"""The exit code of a run that never began, and leaves nothing behind."""
_OPEN_FILE = re.compile(r"/(?:dev|proc/self)/fd/(\d+)$")
"""A path to a file that the shell has opened for the command, as `<(...)` does."""
_BEGIN_OF_LOG = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|$")
"""How the first line of a log begins; an empty file may become one."""


def start(options: RunOptions, arguments: Sequence[str], show: Callable[[str], object]) -> Mapping[str, Any] | int:
    """Start a run in the background, and wait until it is under way.

    Args:
        options: The options of the run.
        arguments: The arguments of this command, which the new process also gets.
        show: Shows the run's messages until then.

    Returns:
        The facts about the process, as JSON values; or its exit code, if it has ended.

    Raises:
        UsageError: the log is also another file of the run, or is not a log.
        OutputError: the log cannot be read or written.
    """
    log = refuse_wrong_log(options)
    made = [path for path in (log, log.parent) if not path.exists()]
    with _opened(log) as file:
        process, ready = _spawn(arguments, file)
        said = _LogReader(log, os.fstat(file).st_size)
    with _interrupts_passed_to(process):
        is_ready = _wait(ready, lambda: show(said.take()))
        code = None if is_ready else process.wait()
    show(said.take())
    if code is not None:
        if code == _REFUSED and log in made:
            log.unlink(missing_ok=True)
            if log.parent in made:
                remove_empty(log.parent)
        return code
    state = options.state.absolute()
    return {
        "pid": process.pid,
        "state": str(state),
        "log": str(log.absolute()),
        "status": f"batchrun status {shlex.quote(str(state))}",
        "stop": f"batchrun stop {shlex.quote(str(state))}",
    }


def refuse_wrong_log(options: RunOptions) -> Path:
    """Refuse a run whose log is also another file of the run, or cannot be a log; returns the log.

    Raises:
        UsageError: that is so.
        OutputError: the log cannot be read.
    """
    log, cache = log_path(options), options.answers.cache
    named = [*options.inputs, *([] if cache is None else [cache])]
    others = [options.state, options.output, *(Path(name) for name in named if not is_url(name))]
    if os.path.realpath(log) in {os.path.realpath(other) for other in others}:
        raise UsageError(f"{log} would also be the log", "give another --output or --state")
    try:
        if not stat.S_ISREG(log.stat().st_mode):
            raise UsageError(f"{log} cannot be the log: it is not a regular file", "give another --output")
        if not _BEGIN_OF_LOG.match(first_line(log)):
            raise UsageError(
                f"{log} would become the log, but batchrun did not write it", "move it away, or give another --output"
            )
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise OutputError(f"{log}: the log cannot be read: {error.strerror}", "give another --output") from error
    return log


@contextmanager
def _opened(log: Path) -> Iterator[int]:
    """Open the log for appending, and write a line that marks the beginning of a session."""
    try:
        make_folder(log.parent)
        fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise OutputError(f"{log}: the log cannot be written: {error.strerror}", "give another --output") from error
    try:
        os.write(fd, f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC  batchrun {VERSION}\n".encode())
        yield fd
    finally:
        os.close(fd)


def _spawn(arguments: Sequence[str], log: int) -> tuple[subprocess.Popen[bytes], int]:
    """Start the process; returns it, and the end of the pipe on which it reports that it is ready."""
    ready, word = os.pipe()
    own = sys.orig_argv[1:]
    # The same interpreter with the same options; if another program called the command, the module by its name.
    begin = own[: -len(arguments)] if own[-len(arguments) :] == list(arguments) else ["-P", "-m", "batchrun"]
    passed = [int(found[1]) for argument in arguments if (found := _OPEN_FILE.search(argument))]
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited: no hangup ends the run
    try:
        process = subprocess.Popen(  # noqa: S603 - this very command
            [sys.executable, *begin, *arguments],
            stdout=log,
            stderr=log,
            env={**os.environ, _VARIABLE: str(word)},
            pass_fds=[word, *passed],
            start_new_session=True,
        )
    finally:
        signal.signal(signal.SIGHUP, hangup)
        os.close(word)
    return process, ready


def _wait(ready: int, look: Callable[[], object]) -> bool:
    """Wait until the process is ready; False if it has ended before."""
    while not select.select([ready], [], [], _LOOK_S)[0]:
        look()
    with os.fdopen(ready, "rb") as pipe:
        return bool(pipe.read(1))


@contextmanager
def _interrupts_passed_to(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Pass Ctrl-C and SIGTERM on; at a SIGHUP, this process exits and the other one continues."""
    passed = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    passed = {number: handler for number, handler in passed.items() if handler is not signal.SIG_IGN}

    def handle(number: int, _: object) -> None:
        if number == signal.SIGHUP:
            os._exit(128 + number)
        process.send_signal(number)

    for number in passed:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in passed.items():
            signal.signal(number, handler)


class _LogReader:
    """Reads what is appended to the log.

    Args:
        log: The log.
        offset: Where to begin, in bytes.
    """

    def __init__(self, log: Path, offset: int) -> None:
        self._log = log
        self._offset = offset

    def take(self) -> str:
        """What has been appended since the last call, up to the last whole line."""
        with suppress(OSError), self._log.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
            data = data[: data.rfind(b"\n") + 1]
            self._offset += len(data)
            return data.decode(errors="replace")
        return ""


class Background:
    """What the process in the background does differently: it reports when the run is under way, and closes stdin.

    Args:
        word: The end of the pipe to the command that started it.
    """

    def __init__(self, word: int) -> None:
        os.set_inheritable(word, False)
        self._word = word

    @staticmethod
    def is_here() -> bool:
        """Whether this process is the one in the background; to be asked before `of_environment`."""
        return _VARIABLE in os.environ

    @classmethod
    def of_environment(cls) -> Self | None:
        """None if this process is not the one in the background."""
        word = os.environ.pop(_VARIABLE, "")
        return cls(int(word)) if word.isdecimal() else None

    def watching(self, observer: Observer) -> Observer:
        """An observer that also sees when the run is under way."""
        return _StartObserver(observer, self._say)

    def _say(self) -> None:
        if isinstance(sys.stderr, Printer):
            sys.stderr.settle()
        nowhere = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nowhere, 0)
        os.close(nowhere)
        with suppress(OSError):  # the command that started this process may have exited
            os.write(self._word, b"+")
        os.close(self._word)


class _StartObserver:
    def __init__(self, observer: Observer, is_under_way: Callable[[], None]) -> None:
        self._observer = observer
        self._tell: Callable[[], None] | None = is_under_way

    def begin(self, snapshot: Snapshot) -> None:
        self._observer.begin(snapshot)

    def update(self, snapshot: Snapshot) -> None:
        self._observer.update(snapshot)
        if snapshot.is_under_way and self._tell is not None:
            self._tell()
            self._tell = None

    def message(self, text: str) -> None:
        self._observer.message(text)

    def warn(self, text: str) -> None:
        warn(self._observer, text)

    def end(self, snapshot: Snapshot) -> None:
        self._observer.end(snapshot)
