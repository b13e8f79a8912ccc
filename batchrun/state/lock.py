"""The lock that lets one process at a time use a state file.

The lock is on the state file itself, so it works through symlinks and hard links; see `batchrun.files.locks`. Its
descriptor is opened before SQLite opens the file and closed after SQLite has closed it: closing it in between would
drop SQLite's own locks. An older batchrun holds an flock on `<state>.lock` instead, which is respected and never
touched.
"""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from batchrun.errors import BatchrunError, OutputError, StateError
from batchrun.files.folders import make_folder
from batchrun.files.locks import (
    FIRST_BYTE,
    is_held_here,
    is_locked,
    is_requested,
    lock_file,
    request,
    unlock_file,
)
from batchrun.state.opening import log_of, open_without_log, sqlite_errors

CANCEL = 1
"""A request to the holder of the lock: cancel the jobs in flight, and end."""
STOP = 2
"""The same: end as at an interrupt."""
LEAVE = 3
"""The same: leave the jobs in flight, and end at once."""
_PROC = Path("/proc")
_opening = threading.Lock()
"""Held while this process opens and closes a state file outside SQLite, so that no run begins in between."""


class Holder(NamedTuple):
    """The process that holds the lock of a state file."""

    pid: int
    """0 if unknown."""
    place: str = ""
    """Where it runs, such as "on HOST"; empty for this machine and container."""

    def __str__(self) -> str:
        return f"process {self.pid or 'unknown'}{self.place and f' {self.place}'}"


class StateLock:
    """The exclusive right to use a state file, from its creation to `release`.

    Args:
        state: The state file; created empty if it does not exist.
        private: Whether only its owner may access a file that is created.

    Raises:
        StateError: another process holds the lock; the message says which.
        OutputError: the file cannot be created or locked.
    """

    def __init__(self, state: Path, *, private: bool = False) -> None:
        self._path = state
        self._private = private
        self._made = False
        with _opening:
            self._fd = self._acquire()

    def _acquire(self) -> int:
        state = self._path
        if is_held_here(state):
            raise _in_use(state, Holder(os.getpid()))
        if (older := _older_holder(state)) is not None:
            raise _in_use(state, older)
        while True:
            fd = self._open()
            try:
                lock_file(fd, state)
            except BlockingIOError as error:
                who = _find_holder(state, os.fstat(fd))
                os.close(fd)
                raise _in_use(state, who) from error
            except BaseException:
                os.close(fd)
                raise
            if self._is_current(fd):
                return fd
            unlock_file(fd)
            os.close(fd)

    def _open(self) -> int:
        flags, mode = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600 if self._private else 0o666
        try:
            make_folder(self._path.parent)
            try:
                fd = os.open(self._path, flags | os.O_EXCL, mode)
                self._made = True
            except FileExistsError:
                fd = os.open(self._path, flags, mode)
        except OSError as error:
            raise OutputError(
                f"{self._path}: the state file cannot be written: {error.strerror}",
                "check the folder, its permissions and the disk, or use another --state",
            ) from error
        return fd

    def _is_current(self, fd: int) -> bool:
        """Whether the path still leads to the locked file: its last holder may just have removed it."""
        try:
            return os.path.samestat(os.fstat(fd), self._path.stat())
        except FileNotFoundError:
            return False

    def is_requested(self, what: int) -> bool:
        """Whether another process has made a request, such as `CANCEL`."""
        return is_requested(self._fd, what)

    def release(self) -> None:
        """Release the lock; a file that this lock created, and that is still empty, is removed."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        if self._made and is_held_here(self._path) and not os.fstat(fd).st_size:
            # In a folder that has become read-only the empty file stays, which does no harm.
            with suppress(OSError):
                self._path.unlink()
        # In a forked child, its copy of the descriptor is closed already.
        if unlock_file(fd):
            os.close(fd)


class Request:
    """A request to the process that holds the lock of a state file, until `close`.

    Args:
        state: The state file.
        what: The request, such as `CANCEL`.

    Raises:
        StateError: the request cannot be made.
    """

    def __init__(self, state: Path, what: int) -> None:
        try:
            self._fd = os.open(state, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise StateError(
                f"{state} is in use by another process, which cannot be reached: {error.strerror}",
                "run this command as the user who started the run",
            ) from error
        try:
            request(self._fd, what)
        except BlockingIOError:
            pass  # another process has made the request already
        except OSError as error:
            self.close()
            raise StateError(
                f"{state} is in use by another process, which cannot be reached: {error.strerror}",
                "stop it with Ctrl-C",
            ) from error

    def close(self) -> None:
        """Withdraw the request."""
        os.close(self._fd)


def holder(state: Path, known: Holder | None = None) -> Holder | None:
    """The process that holds the lock of a state file; None if none does. Writes nothing, and blocks no other start.

    Args:
        state: The state file.
        known: The process that probably still holds it: searching all processes takes time.
    """
    with _opening:
        if is_held_here(state):
            return Holder(os.getpid())
        try:
            fd = os.open(state, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return _older_holder(state)
        try:
            return known or _find_holder(state, os.fstat(fd)) if is_locked(fd) else _older_holder(state)
        finally:
            os.close(fd)


def signs_of_life(state: Path, who: Holder) -> tuple[object, ...]:
    """Values that change while a holder works: when it last wrote, and its CPU time where that can be read."""
    signs: list[object] = []
    for path in (state, log_of(state)):
        with suppress(OSError):
            signs.append(path.stat().st_mtime_ns)
    if who.pid and not who.place:
        with suppress(OSError, IndexError):
            signs.append(_stat_of(who.pid)[11:13])
    return tuple(signs)


def identity() -> dict[str, Any]:
    """What identifies this process among all processes of this host, its containers and other hosts, at any time."""
    return {"pid": os.getpid(), "start": _start_of(os.getpid()), **_location()}


def _in_use(state: Path, who: Holder) -> StateError:
    return StateError(
        f"{state} is in use by another batchrun ({who})",
        "wait until it ends; `batchrun status` shows it, `batchrun stop` ends it",
    )


def _find_holder(state: Path, stat: os.stat_result) -> Holder:
    """Who has locked a state file: the process whose /proc entry shows the lock, else the one named in the file."""
    with suppress(OSError):
        for entry in _PROC.iterdir():
            if entry.name.isdigit() and _has_lock(entry, stat):
                return Holder(int(entry.name))
    return _recorded_holder(state) or Holder(0)


def _has_lock(process: Path, stat: os.stat_result) -> bool:
    with suppress(OSError):
        for info in (process / "fdinfo").iterdir():
            with suppress(OSError):
                said = info.read_text()
                is_ours = f" {FIRST_BYTE} {FIRST_BYTE}\n" in said or "FLOCK" in said
                if is_ours and os.path.samestat((process / "fd" / info.name).stat(), stat):
                    return True
    return False


def _recorded_holder(state: Path) -> Holder | None:
    """The process that began the last session; None if unknown or gone."""
    with suppress(BatchrunError), sqlite_errors(state), closing(open_without_log(state)) as db:
        found = db.execute("SELECT value FROM settings WHERE name = 'holder'").fetchone()
        token = orjson.loads(found[0]) if found else {}
        here = _location()
        pid = token["pid"] if isinstance(token.get("pid"), int) else 0
        if token.get("host") != here["host"] or token.get("boot") != here["boot"]:
            return Holder(pid, f"on {token.get('host')}")
        if token.get("container") != here["container"]:
            return Holder(pid, "in another container")
        if token.get("start") == _start_of(pid):
            return Holder(pid)
    return None


def _location() -> dict[str, Any]:
    """Where this process runs; a container is identified by its PID namespace."""
    boot = container = None
    with suppress(OSError):
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        container = str((_PROC / "self/ns/pid").readlink())
    return {"host": os.uname().nodename, "boot": boot, "container": container}


def _start_of(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None if unknown."""
    try:
        return int(_stat_of(pid)[19])
    except (OSError, ValueError, IndexError):
        return None


def _stat_of(pid: int) -> list[str]:
    """The fields of a process's `stat` from the third on; the second is its name in brackets, with any characters."""
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def _older_holder(state: Path) -> Holder | None:
    """The process of an older batchrun that holds `<state>.lock`."""
    for path in {state, Path(os.path.realpath(state))}:
        try:
            fd = os.open(
                path.with_name(path.name + ".lock"), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            )
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.read(fd, 32).decode("ascii", "replace").strip()
            if text.isdecimal():  # otherwise it is another program's file
                return Holder(int(text))
        except OSError:
            continue  # this file system has no flock, so nobody holds one
        finally:
            os.close(fd)
    return None
