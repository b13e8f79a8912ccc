"""Folders on disk: made and synced, so that what is in them is found after a loss of power."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

_NO_FOLDER_SYNC = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP})


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, so that none of them is lost with the power.

    Raises:
        OSError: one cannot be made.
    """
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def remove_empty(folder: Path) -> None:
    """Remove a folder if nothing is in it."""
    with suppress(OSError):
        folder.rmdir()


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk.

    Raises:
        OSError: it cannot be synced.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network and FUSE file systems have no such thing for a folder; they are no less usable for it.
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(fd)
