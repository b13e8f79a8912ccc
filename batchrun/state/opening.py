"""Opens a state file: to read it, wherever it is and whoever owns it, or to write to it.

The file and its write-ahead log, `<state>-wal`, belong together until a run has ended. Before each checkpoint of the
log the file records it (see `Database`), so a file that has lost its log is recognised.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from batchrun.config import FOLDER_STATE
from batchrun.errors import OutputError, StateError
from batchrun.files.locks import is_held_here

Tell = Callable[[str], None]

T = TypeVar("T")

COMMITS, AT_CHECKPOINT = "commits", "commits_at_checkpoint"
"""Counters: the transactions so far, and at the last checkpoint. They are equal only in a file without its log."""
_BESIDE = ("-wal", "-journal")
"""The files that SQLite keeps beside a database: the write-ahead log, and the journal that rolls back a creation."""
_MAGIC = b"SQLite format 3\0"
_SMALLEST = 512
"""The least size of a database, in bytes."""
_SLICE_S = 0.5
"""How long SQLite itself waits for a lock; signals are handled in between."""
_SLICES = 1200
"""A run waits ten minutes: jobs that end meanwhile keep their results for thirty."""
_SLICES_UNTOLD = 20
_SLICES_QUIET = 4
"""A wait of up to two seconds is not reported."""
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)

_CANNOT_WRITE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)


@contextmanager
def sqlite_errors(path: Path, *, reading: bool = False, underway: bool = False) -> Iterator[None]:
    """Translate SQLite's errors into ours.

    Args:
        path: The state file.
        reading: Whether it is only read.
        underway: Whether a session has begun, so that something may have been sent.

    Raises:
        OutputError: the disk is full, or the file or its folder cannot be written; or, during a session, another
            program does not release the file.
        StateError: the file is damaged, or not a database; or another program has locked it.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        # Python's sqlite3 raises it if SQLite's message quotes damaged text.
        raise _damaged(path, error) from error
    except sqlite3.Error as error:
        code = _code(error)
        if code in _CANNOT_WRITE:
            if reading:
                raise OutputError(
                    f"{path}: the state file cannot be read: {error}", "check its permissions, and those of its folder"
                ) from error
            raise OutputError(
                f"{path}: the state file cannot be written: {error}",
                "free disk space or fix the permissions, then run the same command: what was committed is complete",
            ) from error
        if code == sqlite3.SQLITE_NOTADB and not _is_database(path):
            raise _no_state(path) from error
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise _damaged(path, error) from error
        if code in _BUSY:
            told = f"{path}: the state file is locked by another program"
            if underway:
                raise OutputError(told, "close that program, then run the same command") from error
            raise StateError(told, "close that program") from error
        raise StateError(f"{path}: the state file cannot be used: {error}") from error


def retry_while_locked(work: Callable[[], T], path: Path, tell: Tell | None) -> T:
    """Do some work, and try again while another program has the file locked.

    Args:
        work: Does everything or nothing.
        path: The state file.
        tell: Called with a message after two seconds; None to wait at most ten seconds instead of ten minutes.
    """
    for tried in range(_SLICES if tell else _SLICES_UNTOLD):
        try:
            done = work()
        except sqlite3.OperationalError as error:
            if _code(error) not in _BUSY:
                raise
            if tell is not None and tried == _SLICES_QUIET:
                tell(f"waiting for another program to release {path}")
        else:
            if tell is not None and tried > _SLICES_QUIET:
                tell(f"{path} is released: the run continues")
            return done
    return work()


def open_to_write(path: Path) -> sqlite3.Connection:
    """A connection that may write; the file is created if it does not exist.

    Raises:
        sqlite3.Error: it cannot be opened.
        StateError: it is not a database, or it is empty although its log is not.
    """
    _refuse_foreign(path)
    return _connect(path, "mode=rwc")


def open_to_read(path: Path) -> sqlite3.Connection:
    """A connection that only reads: from the file itself, or from a copy if its folder is read-only.

    Raises:
        sqlite3.Error: it cannot be read.
        StateError: it is not a database, or it is empty although its log is not.
        OutputError: it has to be copied to be read, and cannot be.
    """
    _refuse_foreign(path)
    is_at_rest = not any(_size(_beside(path, suffix)) for suffix in _BESIDE)
    if is_at_rest and is_held_here(path):
        return open_without_log(path)  # no other run can begin now, and there is no log or journal
    connection = _connect(path, "mode=ro")
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except Exception as error:  # a damaged file may also hold text that is not UTF-8
        connection.close()
        if _code(error) not in _CANNOT_WRITE:
            raise
    else:
        return connection
    # SQLite cannot create the files it needs beside the database, or has to roll back a creation that was cut off.
    return open_without_log(path) if is_at_rest else _open_copy(path)


def open_without_log(path: Path) -> sqlite3.Connection:
    """A connection that reads only the file itself, without its log and without any lock.

    Raises:
        sqlite3.Error: it cannot be opened.
    """
    return _connect(path, "mode=ro&immutable=1")


def log_of(path: Path) -> Path:
    """The path of a state file's write-ahead log."""
    return _beside(path, "-wal")


def has_log(path: Path) -> bool:
    """Whether a state file has a log that is not empty."""
    return _size(log_of(path)) > 0


def with_log(path: Path) -> str:
    """How to name a state file that is to be copied or moved: together with its log, if it has one."""
    return f"{path} with its -wal" if has_log(path) else str(path)


def damaged_hint(path: Path) -> str:
    """What to do about a damaged state file."""
    return (
        f"it was left untouched: restore it from a copy, or move {with_log(path)} away together with the results and"
        " start again"
    )


def refuse_without_log(path: Path) -> None:
    """Refuse a state file that has lost its log: what the log recorded would be done, and paid for, again.

    Raises:
        StateError: the log is missing, or only the log is left.
    """
    log = log_of(path)
    if log.exists():
        if has_log(path) and not path.exists():
            raise StateError(
                f"{path}: the state file is missing, but its log {log} exists", "put the state file back beside it"
            )
        return
    is_lost = False
    with suppress(sqlite3.Error, UnicodeDecodeError), closing(open_without_log(path)) as db:  # it is damaged
        is_lost = _is_noted(db) and not log.exists()
    if is_lost:
        raise StateError(
            f"{path}: the state file was copied or moved without its log: {log.name} is missing, and with it what"
            " the run sent and received last",
            f"put {log.name} back beside it: the two belong together until the run has ended; or add --repair to"
            " continue from the results: jobs that were in flight may be paid for twice",
        )


@contextmanager
def log_preserved(path: Path) -> Iterator[None]:
    """Close a connection in this context to keep the log, if the file would otherwise look as if it had lost it.

    SQLite checkpoints and removes the log when the last connection that may write is closed.
    """
    with ExitStack() as kept:
        is_noted = False
        with suppress(sqlite3.Error, UnicodeDecodeError):
            is_noted = _is_noted(kept.enter_context(closing(_connect(path, "mode=ro"))))
        if not is_noted:
            kept.close()
        yield


def _is_noted(db: sqlite3.Connection) -> bool:
    found = dict(db.execute("SELECT name, value FROM counters WHERE name IN (?, ?)", (COMMITS, AT_CHECKPOINT)))
    return COMMITS in found and found[COMMITS] == found.get(AT_CHECKPOINT)


@contextmanager
def accept_lost_log(path: Path, is_begun: Callable[[], bool]) -> Iterator[bool]:
    """Accept a state file that has lost its log, within this context; yields whether it has.

    Args:
        path: The state file.
        is_begun: Called at the end: whether a session has begun. If not, the file will be refused again.
    """
    try:
        refuse_without_log(path)
    except StateError:
        if not path.exists():
            raise
        log_of(path).touch()
        try:
            yield True
        finally:
            if not is_begun() and not has_log(path):
                log_of(path).unlink(missing_ok=True)
        return
    yield False


def did_you_mean(path: Path, otherwise: str) -> str:
    """A hint for a path that is not a state file: the state file that was probably meant, or `otherwise`."""
    beside = path.absolute().with_name(path.absolute().name + ".state")
    if (path / FOLDER_STATE).exists():
        return f"did you mean {path / FOLDER_STATE}?"
    return f"did you mean {path}.state?" if beside.exists() else otherwise


def _connect(path: Path, how: str) -> sqlite3.Connection:
    uri = f"{path.resolve().as_uri()}?{how}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=_SLICE_S)


def _open_copy(path: Path) -> sqlite3.Connection:
    """A connection to a copy that includes the log. The copy is deleted already, and its space is freed at the end."""
    try:
        with TemporaryDirectory(prefix="batchrun-") as folder:
            copy = Path(folder, "state")
            shutil.copyfile(path, copy)
            for suffix in _BESIDE:
                with suppress(FileNotFoundError):
                    shutil.copyfile(_beside(path, suffix), _beside(copy, suffix))
            with closing(sqlite3.connect(copy)) as db:
                db.execute("PRAGMA journal_mode = DELETE").fetchone()
            return open_without_log(copy)
    except OSError as error:
        raise OutputError(
            f"{path}: the state file cannot be read: {error.strerror}",
            "its folder is read-only, so a copy is read: check the permissions, and the free space in $TMPDIR",
        ) from error


def _beside(path: Path, suffix: str) -> Path:
    real = path.resolve()
    return real.with_name(real.name + suffix)


def _refuse_foreign(path: Path) -> None:
    """Refuse what SQLite would treat as an empty database."""
    if 0 < _size(path) < _SMALLEST and not _is_database(path):
        raise _no_state(path)
    if path.exists() and not _size(path) and has_log(path):
        # SQLite considers a log beside an empty file a leftover, and removes it.
        raise StateError(f"{path}: the state file is damaged (it is empty, but its log is not)", damaged_hint(path))


def _is_database(path: Path) -> bool:
    """Whether a file is a database, perhaps a damaged one. The likeliest mistake is to give a results file."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) in (b"", _MAGIC)
    except OSError:
        return True


def _no_state(path: Path) -> StateError:
    return StateError(f"{path} is not a state file", did_you_mean(path, "it is beside the results: <output>.state"))


def _damaged(path: Path, error: Exception) -> StateError:
    return StateError(f"{path}: the state file is damaged ({error})", damaged_hint(path))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _code(error: Exception) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
