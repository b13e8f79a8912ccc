"""How a state file is opened: to look at it, wherever it is and whoever it belongs to, or to write to it.

The file and its write-ahead log, `<state>-wal`, belong together until a run has ended. Before the log is folded into
the file, the file says so itself (see `Store`), and so a file that has lost its log is noticed.
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
"""Counters of a run: transactions, and those when the log was folded in last. Equal only in a file without its log."""
_BESIDE = ("-wal", "-journal")
"""What SQLite has beside a file: its write-ahead log, and the journal by which a creation is rolled back."""
_MAGIC = b"SQLite format 3\0"
_SMALLEST = 512
"""A database has at least so many bytes."""
_SLICE_S = 0.5
"""How long SQLite itself waits for another program; in between a signal is heard."""
_SLICES = 1200
"""A run waits ten minutes: jobs that end meanwhile keep their results for thirty."""
_SLICES_UNTOLD = 20
_SLICES_QUIET = 4
"""A wait of two seconds is not worth a line."""
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)

_CANNOT_WRITE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)


@contextmanager
def sqlite_errors(path: Path, *, reading: bool = False, underway: bool = False) -> Iterator[None]:
    """Turn SQLite's errors into ours.

    Args:
        path: The state file.
        reading: Whether it is only looked at.
        underway: Whether a session has begun, so that something may have been sent.

    Raises:
        OutputError: the disk is full, or the file or its folder cannot be written; or another program does not release
            the file while a session is under way.
        StateError: the file is damaged, or not a database; or another program has locked it.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        # Python's sqlite3 lets it through where SQLite's own message quotes damaged text.
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
                "make room or fix the permissions, then run the same command: what was committed is whole",
            ) from error
        if code == sqlite3.SQLITE_NOTADB and not _is_database(path):
            raise _no_state(path) from error
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise _damaged(path, error) from error
        if code in _BUSY:
            told = f"{path}: the state file is locked by another program"
            if underway:
                raise OutputError(told, "close it there, then run the same command") from error
            raise StateError(told, "close it there") from error
        raise StateError(f"{path}: the state file cannot be used: {error}") from error


def patiently(work: Callable[[], T], path: Path, tell: Tell | None) -> T:
    """Do what needs the file, again and again while another program has it locked.

    Args:
        work: Done as a whole, or not at all.
        path: The state file.
        tell: Told of a wait of more than two seconds; None: it is not worth more than ten.
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
    """A connection that may write; the file is made when there is none.

    Raises:
        sqlite3.Error: it cannot be opened.
        StateError: it is no database; or it is empty, and its log is not.
    """
    _refuse_strange(path)
    return _connect(path, "mode=rwc")


def open_to_look(path: Path) -> sqlite3.Connection:
    """A connection that only reads: the file as it is, or where its folder is read-only, as it was a moment ago.

    Raises:
        sqlite3.Error: it cannot be read.
        StateError: it is no database; or it is empty, and its log is not.
        OutputError: it has to be copied to be looked at, and cannot be.
    """
    _refuse_strange(path)
    is_at_rest = not any(_size(_beside(path, suffix)) for suffix in _BESIDE)
    if is_at_rest and is_held_here(path):
        return open_at_rest(path)  # no other run can begin now, and nothing is left beside the file
    connection = _connect(path, "mode=ro")
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except Exception as error:  # a damaged file may also hold text that is not UTF-8
        connection.close()
        if _code(error) not in _CANNOT_WRITE:
            raise
    else:
        return connection
    # What SQLite needs beside the file cannot be made there; or a creation that was cut off is to be rolled back.
    return open_at_rest(path) if is_at_rest else _open_copy(path)


def open_at_rest(path: Path) -> sqlite3.Connection:
    """A connection that reads the file alone, without its log and without any lock.

    Raises:
        sqlite3.Error: it cannot be opened.
    """
    return _connect(path, "mode=ro&immutable=1")


def log_of(path: Path) -> Path:
    """The write-ahead log of a state file, which belongs to it while it is there."""
    return _beside(path, "-wal")


def has_log(path: Path) -> bool:
    """Whether anything is in the log of a state file."""
    return _size(log_of(path)) > 0


def with_log(path: Path) -> str:
    """What to call a state file where it is to be copied or moved: its log belongs to it while there is one."""
    return f"{path} with its -wal" if has_log(path) else str(path)


def damaged_hint(path: Path) -> str:
    """What to do about a state file that is damaged."""
    return (
        f"it was left untouched: restore it from a copy, or move {with_log(path)} away together with the results and"
        " start again"
    )


def refuse_without_log(path: Path) -> None:
    """Refuse a state file that has lost its log: what the run has done since would be done, and paid for, again.

    Raises:
        StateError: it has, or only the log is left.
    """
    log = log_of(path)
    if log.exists():
        if has_log(path) and not path.exists():
            raise StateError(
                f"{path}: the state file is missing, and its log {log} is there", "put the state file back beside it"
            )
        return
    is_lost = False
    with suppress(sqlite3.Error, UnicodeDecodeError), closing(open_at_rest(path)) as db:  # it is damaged
        is_lost = _is_noted(db) and not log.exists()
    if is_lost:
        raise StateError(
            f"{path}: the state file was copied or moved without its log: {log.name} is missing, and with it what"
            " the run has sent and received last",
            f"put {log.name} back beside it: the two belong together until the run has ended; or add --repair to"
            " continue from the results: what was in flight may be paid for twice",
        )


@contextmanager
def log_kept(path: Path) -> Iterator[None]:
    """Close a connection meanwhile, without folding in a log that the file says it has: a kill would make it look lost.

    SQLite folds it in when the last connection is closed that may write.
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
def without_lost_log(path: Path, is_begun: Callable[[], bool]) -> Iterator[bool]:
    """Take a state file that has lost its log as it is meanwhile; tells whether it has.

    Args:
        path: The state file.
        is_begun: Whether a session has begun by the end; otherwise the file is as before, and is refused again.
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


def meant(path: Path, otherwise: str) -> str:
    """A hint for who has given another path than that of a state file."""
    beside = path.absolute().with_name(path.absolute().name + ".state")
    if (path / FOLDER_STATE).exists():
        return f"did you mean {path / FOLDER_STATE}?"
    return f"did you mean {path}.state?" if beside.exists() else otherwise


def _connect(path: Path, how: str) -> sqlite3.Connection:
    uri = f"{path.resolve().as_uri()}?{how}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=_SLICE_S)


def _open_copy(path: Path) -> sqlite3.Connection:
    """A connection to a copy with the log folded in; the copy has no name any more, and ends with the connection."""
    try:
        with TemporaryDirectory(prefix="batchrun-") as folder:
            copy = Path(folder, "state")
            shutil.copyfile(path, copy)
            for suffix in _BESIDE:
                with suppress(FileNotFoundError):
                    shutil.copyfile(_beside(path, suffix), _beside(copy, suffix))
            with closing(sqlite3.connect(copy)) as db:
                db.execute("PRAGMA journal_mode = DELETE").fetchone()
            return open_at_rest(copy)
    except OSError as error:
        raise OutputError(
            f"{path}: the state file cannot be read: {error.strerror}",
            "nothing can be written beside it, so a copy is looked at: check its permissions, and the room in $TMPDIR",
        ) from error


def _beside(path: Path, suffix: str) -> Path:
    real = path.resolve()
    return real.with_name(real.name + suffix)


def _refuse_strange(path: Path) -> None:
    """Refuse what SQLite would take for an empty file."""
    if 0 < _size(path) < _SMALLEST and not _is_database(path):
        raise _no_state(path)
    if path.exists() and not _size(path) and has_log(path):
        # SQLite takes a log beside an empty file for a leftover, and removes it.
        raise StateError(f"{path}: the state file is damaged (it is empty, and its log is not)", damaged_hint(path))


def _is_database(path: Path) -> bool:
    """Whether a file is a database, if perhaps a damaged one: a results file is the likeliest slip."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) in (b"", _MAGIC)
    except OSError:
        return True


def _no_state(path: Path) -> StateError:
    return StateError(f"{path} is no state file", meant(path, "it is beside the results: <output>.state"))


def _damaged(path: Path, error: Exception) -> StateError:
    return StateError(f"{path}: the state file is damaged ({error})", damaged_hint(path))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _code(error: Exception) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
