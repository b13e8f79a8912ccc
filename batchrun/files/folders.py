"""Create and sync folders and new files, so that they survive a loss of power."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from stat import S_IMODE

_NO_FOLDER_SYNC = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP})


def make_folder(folder: Path) -> None:
    """Create a folder and the missing ones above it, so that they survive a loss of power.

    Raises:
        OSError: one cannot be created.
    """
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def remove_empty(folder: Path) -> None:
    """Remove a folder if it is empty."""
    with suppress(OSError):
        folder.rmdir()


def sync_folder(folder: Path) -> None:
    """Wait until the entries of a folder are on disk.

    Raises:
        OSError: it cannot be synced.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network and FUSE file systems cannot sync a folder; they are usable all the same.
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(fd)


def write_beside(path: Path, new: Path, lines: Iterable[bytes]) -> None:
    """Write lines to a new file in the folder of another, with the permissions of that, and to the disk.

    Raises:
        OSError: it cannot be written, or there is such a file.
    """

    def create(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o600)

    with open(new, "xb", opener=create) as file:
        os.fchmod(file.fileno(), S_IMODE(path.stat().st_mode))
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)
