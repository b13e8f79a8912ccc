"""How lines reach the disk: results appended and synced, torn ends found and cut, other files whole by rename."""

from __future__ import annotations

import errno
import os
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from stat import S_IMODE
from typing import TYPE_CHECKING

from batchrun.errors import OutputError, StateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

_BLOCK_BYTES = 1 << 20
_HOLE = re.compile(rb"[^\0]*\0+[^\0]*")
"""A line with one run of NUL bytes; several would be somebody's binary data."""
_NO_FOLDER_SYNC = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP})
_sync_data = getattr(os, "fdatasync", os.fsync)
"""macOS has no fdatasync."""


@dataclass(frozen=True, slots=True)
class Tail:
    """What stands in a results file beyond the committed length."""

    lines: list[bytes]
    """Whole lines, with their ends."""
    cut_bytes: int
    """Length of what is to be cut off behind them: a torn last line, or what a loss of power has left; 0: nothing."""
    behind_hole: list[bytes]
    """Whole lines in the part to be cut off, behind blocks of NUL bytes that were never written."""


class ResultsFile:
    """A results file that is open for appending.

    Args:
        path: The file; made when it does not exist, with its folder.
        committed_bytes: Its length; `recover` and `truncate` have made sure of that.

    Raises:
        OutputError: it cannot be opened for writing.
    """

    def __init__(self, path: Path, committed_bytes: int) -> None:
        self.path = path
        self.size_bytes = committed_bytes
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            is_new = not path.exists()
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            if is_new:
                _sync_folder(path.parent)

    def append(self, lines: Sequence[bytes]) -> None:
        """Append lines; all of them, or none.

        Raises:
            OutputError: they cannot be written; the file is cut back to what it was.
        """
        data = memoryview(b"".join(lines))
        at = self.size_bytes
        with writing(self.path):
            try:
                while data:
                    written = os.pwrite(self._fd, data, at)
                    at += written
                    data = data[written:]
            except OSError:
                # Where even that fails, the torn line stays beyond the committed length, and is cut off next time.
                with suppress(OSError):
                    os.ftruncate(self._fd, self.size_bytes)
                raise
        self.size_bytes = at

    def sync(self) -> None:
        """Wait until what was appended is on disk, in the file that the path leads to.

        Raises:
            OutputError: it may not be; or the file was removed or replaced, and nobody would find the results.
        """
        with writing(self.path):
            _sync_data(self._fd)
            is_there = os.path.samestat(os.fstat(self._fd), self.path.stat())
        if not is_there:
            raise OutputError(
                f"{self.path}: another file has taken the place of the results while the run went on",
                "put the results back, then run the same command: what was committed stands in them",
            )

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def recover(path: Path, committed_bytes: int) -> Tail:
    """What a crash has left in a results file beyond its committed length. Nothing is changed.

    Raises:
        StateError: the file is shorter than what is committed, so that results are missing.
        OutputError: it cannot be read.
    """
    with writing(path):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            size_bytes, tail = 0, b""
        else:
            try:
                size_bytes = os.fstat(fd).st_size
                tail = b"".join(_blocks(fd, committed_bytes))
            finally:
                os.close(fd)
    if size_bytes < committed_bytes:
        raise StateError(
            f"{path} is {committed_bytes - size_bytes:,} bytes shorter than the state file says: results are missing",
            "put the whole file back, or start a new run with another --output",
        )
    *whole, torn = tail.split(b"\n")
    lines = [line + b"\n" for line in whole]
    # JSON has no NUL bytes. After a loss of power some file systems have the length of a file, but not all its blocks.
    holed = next((index for index, line in enumerate(lines) if _HOLE.fullmatch(line)), len(lines))
    cut_bytes = len(torn) + sum(map(len, lines[holed:]))
    return Tail(lines[:holed], cut_bytes, [line for line in lines[holed:] if not _HOLE.fullmatch(line)])


def truncate(path: Path, size_bytes: int) -> None:
    """Cut a file to a length, on disk.

    Raises:
        OutputError: it cannot be done.
    """
    with writing(path):
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, size_bytes)
            os.fsync(fd)
        finally:
            os.close(fd)


def cut_torn_line(path: Path) -> None:
    """Cut off what stands behind the last line end of a file: the half of a line that a crash has left.

    Raises:
        OutputError: it cannot be done.
    """
    with writing(path), path.open("rb") as file:
        end = size_bytes = file.seek(0, os.SEEK_END)
        found = -1
        while end and found < 0:
            start = max(end - _BLOCK_BYTES, 0)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            end = start + found + 1 if found >= 0 else start
    if end < size_bytes:
        truncate(path, end)


def write_errors(path: Path, lines: Iterable[bytes]) -> int:
    """Write an error file whole, by rename; returns how many lines it has.

    Without any line an older error file is removed: its rows have succeeded since.

    Raises:
        OutputError: it cannot be written; an older file is as it was.
    """
    with writing(path):
        lines = iter(lines)
        first = next(lines, None)
        if first is not None:
            return write_whole(path, chain([first], lines))
        path.unlink(missing_ok=True)
        _sync_folder(path.parent)
    return 0


def write_whole(path: Path, lines: Iterable[bytes]) -> int:
    """Write a file of lines whole, by rename; returns how many lines it has. Until then it is `<path>.part`.

    It may be read and written by whom an older one in its place may be.

    Raises:
        OutputError: it cannot be written; an older file is as it was.
    """
    part = part_of(path)
    count = 0
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                with suppress(OSError):
                    os.fchmod(file.fileno(), S_IMODE(path.stat().st_mode))
                for line in lines:
                    file.write(line)
                    count += 1
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        _sync_folder(path.parent)
    return count


def errors_path(results: Path) -> Path:
    """The error file that belongs to a results file."""
    return results.with_name(f"{results.name.removesuffix('.jsonl')}.errors.jsonl")


def part_of(path: Path) -> Path:
    """Where a file is written before it gets its name."""
    return path.with_name(path.name + ".part")


def _blocks(fd: int, offset: int) -> Iterator[bytes]:
    while block := os.pread(fd, _BLOCK_BYTES, offset):
        offset += len(block)
        yield block


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable too."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network and FUSE file systems have no such thing for a folder; they are no less usable for it.
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(fd)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the file system says about a file of ours into our error.

    Raises:
        OutputError: it cannot be written, or read.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path}: results cannot be written: {error.strerror or error}",
            "make room or fix the permissions, then run the same command: what was committed is whole",
        ) from error
