"""One process at a time on a state file.

The lock is an flock on a file beside the state file, with the holder's pid inside for the message; it is not on the
state file itself, because closing a second descriptor of that would drop SQLite's own locks. The kernel lets it go
when its holder dies, however it dies, so a stale lock file means nothing.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from batchrun.errors import OutputError, StateError
from batchrun.folders import make_folder

if TYPE_CHECKING:
    from pathlib import Path


class StateLock:
    """The exclusive right to use a state file, from its creation to `release`.

    Args:
        state: The state file; the lock is `<state>.lock` beside it.

    Raises:
        StateError: another process has it; the message names its pid.
        OutputError: the lock file cannot be made.
    """

    def __init__(self, state: Path) -> None:
        self._path = state.with_name(state.name + ".lock")
        self._fd = self._acquire(state)

    def _acquire(self, state: Path) -> int:
        while True:
            try:
                make_folder(self._path.parent)
                fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise OutputError(
                    f"{self._path}: the lock file cannot be made: {error.strerror}",
                    "check the folder, its permissions and the disk, or give another --state",
                ) from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
                os.close(fd)
                raise StateError(
                    f"{state} is in use by another batchrun (process {holder})",
                    "wait for it to end, or watch it with `batchrun status`",
                ) from error
            if self._is_current(fd):
                # The pid is for a message only: on a full disk the lock holds without it.
                with suppress(OSError):
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
                return fd
            os.close(fd)

    def _is_current(self, fd: int) -> bool:
        """Whether the path still leads to the file that was locked: its last holder may just have removed it."""
        try:
            return os.path.samestat(os.fstat(fd), self._path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Give the right back and remove the lock file."""
        if self._fd >= 0:
            # In a folder that has become read-only or is gone the file stays: without its holder it means nothing.
            with suppress(OSError):
                self._path.unlink()
            os.close(self._fd)
            self._fd = -1


def holder(state: Path) -> int | None:
    """The pid of the process that uses the state file now; None when none does."""
    try:
        fd = os.open(state.with_name(state.name + ".lock"), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        text = os.read(fd, 32).decode("ascii", "replace").strip()
        return int(text) if text.isdigit() else 0
    else:
        return None
    finally:
        os.close(fd)
