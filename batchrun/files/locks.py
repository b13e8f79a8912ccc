"""The exclusive right to a file, held on the file itself: each of its names, links too, leads to the same lock.

It is an open-file-description lock on one byte far behind the end, where neither SQLite's locks nor any data are. The
kernel releases it when its holder dies, however it dies, and it excludes a second holder in the same process. A system
without such locks has an flock on the whole file instead. Further bytes are for whoever wants something of the holder:
a lock on one of them says it, across containers and hosts, and ends with its process.

A process that closes any descriptor of a file loses its POSIX locks on it, and SQLite has nothing else. So a database
that this process uses must not be opened beside SQLite: ask `is_held_here` first.
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
"""The byte whose lock is the right to the file; byte `n` of a request is `n` behind it."""
_FLOCK_TRIES = 100
"""Who looks whether a file is locked by flock holds it for a moment."""
_UNSUPPORTED = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})

if sys.platform == "darwin":
    # Python does not name them: https://github.com/apple/darwin-xnu/blob/main/bsd/sys/fcntl.h
    _SET, _GET, _LAYOUT = 90, 92, "qqihh"
else:
    _SET, _GET, _LAYOUT = getattr(fcntl, "F_OFD_SETLK", -1), getattr(fcntl, "F_OFD_GETLK", -1), "hhqqi0q"

_held: dict[int, tuple[int, int]] = {}
"""Descriptor -> device and inode of what this process has locked."""


def lock_file(fd: int, path: Path) -> None:
    """Take the exclusive right to an open file. It ends with `unlock_file`, or with the process; no child inherits it.

    Args:
        fd: A descriptor that may write.
        path: The file's name, for messages.

    Raises:
        BlockingIOError: another process has it, or another descriptor of this one.
        OutputError: the file system has no locks.
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
            "its file system has no locks, so a second run could write there too: use a file on a local disk"
            if error.errno in _UNSUPPORTED
            else "check the file and the disk, or give another name",
        ) from error


def unlock_file(fd: int) -> bool:
    """Give the right back, before the descriptor is closed; returns whether this process had it."""
    if _held.pop(fd, None) is None:
        return False
    # Closing alone would not do while a process that was started meanwhile still has a copy of the descriptor.
    with suppress(OSError):
        try:
            fcntl.fcntl(fd, _SET, _packed(fcntl.F_UNLCK))
        except OSError:
            fcntl.flock(fd, fcntl.LOCK_UN)
    return True


def request(fd: int, byte: int) -> None:
    """Ask the holder of an open file for something, until the descriptor is closed.

    Args:
        fd: A descriptor that may write.
        byte: For what, >= 1.

    Raises:
        OSError: another process asks for it (BlockingIOError), or this system knows no such locks.
    """
    fcntl.fcntl(fd, _SET, _packed(fcntl.F_WRLCK, byte))


def is_requested(fd: int, byte: int) -> bool:
    """Whether somebody asks the holder for something."""
    try:
        return _is_taken(fd, byte)
    except OSError:
        return False


def is_locked(fd: int) -> bool:
    """Whether another descriptor, of any process, has the right to an open file. No lock is taken where that shows."""
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
    """Whether this process has locked the file, under whatever name."""
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
        _lock_whole(fd)


def _lock_whole(fd: int) -> None:
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
    """Give up a forked child's copies of the descriptors: with them it would keep the locks of its parent."""
    for fd in _held:
        with suppress(OSError):
            os.close(fd)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)
