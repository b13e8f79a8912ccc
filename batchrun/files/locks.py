"""Exclusive locks on files, held on the file itself: each of its names, links too, leads to the same lock.

It is an open-file-description lock on one byte far beyond the end, away from SQLite's locks and from all data. The
kernel releases it when its holder dies, however it dies, and it also excludes a second holder in the same process. A
system without such locks has an flock on the whole file instead. The bytes after it are for requests to the holder: a
lock on one of them is a request, works across containers and hosts, and ends with the process that made it.

A process that closes any descriptor of a file loses its POSIX locks on that file, and SQLite relies on them. So a
database that this process uses must not be opened outside of SQLite: check `is_held_here` first.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
from contextlib import suppress
from pathlib import Path

from batchrun.errors import OutputError

FIRST_BYTE = 1 << 62
"""The byte whose lock is the lock on the file; the byte of request `n` is `n` bytes after it."""
_FLOCK_TRIES = 100
"""Tried repeatedly, because a process that checks for an flock holds it for a moment."""
_UNSUPPORTED = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})

if sys.platform == "darwin":
    # Python has no names for them: https://github.com/apple/darwin-xnu/blob/main/bsd/sys/fcntl.h
    _SET, _GET, _LAYOUT = 90, 92, "qqihh"
else:
    _SET, _GET, _LAYOUT = getattr(fcntl, "F_OFD_SETLK", -1), getattr(fcntl, "F_OFD_GETLK", -1), "hhqqi0q"

_held: dict[int, tuple[int, int]] = {}
"""Descriptor -> device and inode of each file that this process has locked."""


def lock_file(fd: int, path: Path) -> None:
    """Lock an open file exclusively, until `unlock_file` or the end of the process; no child inherits the lock.

    Args:
        fd: A writable descriptor.
        path: The file's name, for messages.

    Raises:
        BlockingIOError: another process holds the lock, or another descriptor of this one.
        OutputError: the file cannot be locked, for example on a file system without locks.
    """
    stat = os.fstat(fd)
    _held[fd] = (stat.st_dev, stat.st_ino)
    try:
        _lock(fd)
    except OSError as error:
        _held.pop(fd, None)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise BlockingIOError(error.errno, error.strerror) from error
        raise OutputError(
            f"{path}: the file cannot be locked: {error.strerror}",
            "its file system has no locks, so a second run could write to it, too: use a file on a local disk"
            if error.errno in _UNSUPPORTED
            else "check the file and the disk, or use another path",
        ) from error


def unlock_file(fd: int) -> bool:
    """Release the lock, before the descriptor is closed; returns whether this process held it."""
    if _held.pop(fd, None) is None:
        return False
    # Closing alone would not release it while a child process still has a copy of the descriptor.
    with suppress(OSError):
        try:
            fcntl.fcntl(fd, _SET, _packed(fcntl.F_UNLCK))
        except OSError:
            fcntl.flock(fd, fcntl.LOCK_UN)
    return True


def request(fd: int, byte: int) -> None:
    """Make a request to the process that holds the lock of an open file, until the descriptor is closed.

    Args:
        fd: A writable descriptor.
        byte: The number of the request, >= 1.

    Raises:
        OSError: another process makes the same request (BlockingIOError), or this system has no such locks.
    """
    fcntl.fcntl(fd, _SET, _packed(fcntl.F_WRLCK, byte))


def is_requested(fd: int, byte: int) -> bool:
    """Whether any process makes this request to the holder."""
    try:
        return _is_taken(fd, byte)
    except OSError:
        return False


def is_locked(fd: int) -> bool:
    """Whether another descriptor, of any process, holds the lock. Only an flock must be taken to find out."""
    try:
        return _is_taken(fd, 0)
    except OSError as error:
        if error.errno != errno.EINVAL:
            return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(fd, fcntl.LOCK_UN)
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    return False


def is_held_here(path: Path) -> bool:
    """Whether this process has locked the file, under any name."""
    try:
        stat = path.stat()
    except OSError:
        return False
    return (stat.st_dev, stat.st_ino) in tuple(_held.values())


def _is_taken(fd: int, byte: int) -> bool:
    answer = struct.unpack(_LAYOUT, fcntl.fcntl(fd, _GET, _packed(fcntl.F_WRLCK, byte)))
    return bool(answer[_LAYOUT.index("h")] != fcntl.F_UNLCK)


def _lock(fd: int) -> None:
    try:
        fcntl.fcntl(fd, _SET, _packed(fcntl.F_WRLCK))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _flock(fd)


def _flock(fd: int) -> None:
    for _ in range(_FLOCK_TRIES):
        with suppress(BlockingIOError):
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.sched_yield()
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def _packed(kind: int, byte: int = 0) -> bytes:
    if _LAYOUT.startswith("h"):
        return struct.pack(_LAYOUT, kind, os.SEEK_SET, FIRST_BYTE + byte, 1, 0)
    return struct.pack(_LAYOUT, FIRST_BYTE + byte, 1, 0, kind, os.SEEK_SET)


def _forget_in_child() -> None:
    """Close a forked child's copies of the descriptors, which would keep its parent's locks alive."""
    for fd in _held:
        with suppress(OSError):
            os.close(fd)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)
