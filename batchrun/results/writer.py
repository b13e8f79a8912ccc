"""Writes lines to disk: results are appended and synced, torn lines are cut off, other files are replaced by rename."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from stat import S_IMODE
from typing import BinaryIO

from batchrun.errors import OutputError, StateError
from batchrun.files.folders import make_folder, sync_folder, write_beside
from batchrun.files.locks import lock_file, unlock_file

_BLOCK_BYTES = 1 << 20
_PART_NAME_CHARS = 100
"""File systems allow names of up to 255 bytes, and a character may take four."""
_MOST_OPEN = 200
"""The most results files open at once; the usual limit of a process is 1,024 files."""
_HOLE = re.compile(rb"[^\0]*\0+[^\0]*|\s*")
"""A blank line, or one with a single run of NUL bytes; with several, it would be binary data."""
_sync_data = getattr(os, "fdatasync", os.fsync)
"""macOS has no fdatasync."""


@dataclass(frozen=True, slots=True)
class Tail:
    """The content of a results file beyond the committed length."""

    lines: list[bytes]
    """Whole lines, with their line ends."""
    lacks_end: bool
    """Whether nothing is missing but the line end of the last committed line."""
    cut_bytes: int
    """The number of bytes to cut off after `lines`: a torn line, or what a power loss has left."""
    behind_hole: list[bytes]
    """Whole lines in the part to be cut off, after blocks of NUL bytes that were never written."""


class ResultsFile:
    """A results file that is appended to. While it is open, it is locked.

    Args:
        path: The file; created with its folder if it does not exist.
        committed_bytes: Its length; `recover` and `truncate` have ensured it.
        private: Whether only its owner may read it, if it is created.

    Raises:
        StateError: another run is writing it.
        OutputError: it cannot be opened for writing; any method raises it if another program has changed the file.
    """

    def __init__(self, path: Path, committed_bytes: int, *, private: bool = False) -> None:
        self.path = path
        self.size_bytes = committed_bytes
        self._fd = -1
        with writing(path):
            make_folder(path.parent)
            is_new = not path.exists()
            self._fd = self._locked(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, _mode(private=private)))
            if is_new:
                sync_folder(path.parent)
            self._file = os.fstat(self._fd)

    @property
    def is_open(self) -> bool:
        """Whether it uses a file descriptor."""
        return self._fd >= 0

    def append(self, lines: Sequence[bytes]) -> None:
        """Append lines, all or none.

        Raises:
            OutputError: they cannot be written; the file is cut back to its old length.
        """
        data = memoryview(b"".join(lines))
        at = self.size_bytes
        with writing(self.path):
            self._open()
            self._refuse_changed()
            try:
                while data:
                    written = os.pwrite(self._fd, data, at)
                    at += written
                    data = data[written:]
            except OSError:
                # If this fails, too, the torn line stays beyond the committed length and is cut off on resume.
                with suppress(OSError):
                    os.ftruncate(self._fd, self.size_bytes)
                raise
        self.size_bytes = at

    def sync(self) -> None:
        """Wait until everything appended is on disk, and check that the path still leads to this file.

        Raises:
            OutputError: it may not be on disk; or the file was removed or replaced, so the results would be lost.
        """
        with writing(self.path):
            _sync_data(self._fd)
            is_there = os.path.samestat(self._file, self.path.stat())
        if not is_there:
            raise self._replaced()

    def close(self) -> None:
        """Close the file; the next `append` opens it again."""
        if self._fd >= 0:
            unlock_file(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _locked(self, fd: int) -> int:
        try:
            lock_file(fd, self.path)
        except BaseException as error:
            os.close(fd)
            if not isinstance(error, BlockingIOError):
                raise
            raise StateError(
                f"{self.path} is in use: another batchrun writes its results there", "use another --output"
            ) from error
        return fd

    def _open(self) -> None:
        if self._fd < 0:
            self._fd = self._locked(os.open(self.path, os.O_WRONLY | os.O_CLOEXEC))
            if not os.path.samestat(self._file, os.fstat(self._fd)):
                self.close()
                raise self._replaced()

    def _refuse_changed(self) -> None:
        size_bytes = os.fstat(self._fd).st_size
        if size_bytes != self.size_bytes:
            raise OutputError(
                f"{self.path}: another program has changed the results during the run"
                f" ({size_bytes:,} bytes instead of {self.size_bytes:,})",
                "restore the committed results, then run the same command; `batchrun verify` shows what is wrong",
            )

    def _replaced(self) -> OutputError:
        return OutputError(
            f"{self.path}: the results file was removed or replaced during the run",
            "put the results file back, then run the same command: everything committed is in it",
        )


class ResultsFiles(dict[int, ResultsFile]):
    """The results files of a run, by output. If there are thousands, only some are open at a time.

    Args:
        most_open: How many may be open, >= 1.
    """

    def __init__(self, most_open: int = _MOST_OPEN) -> None:
        super().__init__()
        self._most_open = most_open

    def add(self, output: int, file: ResultsFile) -> None:
        """Add the file of an output."""
        self[output] = file
        if len(self) > self._most_open:
            file.close()

    def sync(self, outputs: Iterable[int]) -> None:
        """Sync the files of some outputs, see `ResultsFile.sync`, and close the first files if too many are open."""
        for output in outputs:
            self[output].sync()
        if len(self) > self._most_open:
            open_files = [file for file in self.values() if file.is_open]
            for file in open_files[: -self._most_open]:
                file.close()

    def close(self) -> None:
        """Close all of them."""
        for file in self.values():
            file.close()


def recover(path: Path, committed_bytes: int) -> Tail:
    """What a crash has left in a results file beyond its committed length. Nothing is changed.

    Raises:
        StateError: the file is shorter than the committed length, so results are missing.
        OutputError: it cannot be read.
    """
    with writing(path):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            size_bytes, last, tail = 0, b"", b""
        else:
            try:
                size_bytes = os.fstat(fd).st_size
                last = os.pread(fd, 1, max(size_bytes - 1, 0))
                tail = b"".join(_blocks(fd, committed_bytes))
            finally:
                os.close(fd)
    lacks_end = size_bytes == committed_bytes - 1 and last == b"}"
    if size_bytes < committed_bytes and not lacks_end:
        raise StateError(
            f"{path} is {committed_bytes - size_bytes:,} bytes shorter than the state file says: results are missing",
            "restore the whole file, or add --repair to get them again: you pay only for those the endpoint has lost",
        )
    *whole, torn = tail.split(b"\n")
    lines = [line + b"\n" for line in whole]
    # JSON has no NUL bytes. After a power loss, some file systems have the length of a file but not all its blocks.
    holed = next((index for index, line in enumerate(lines) if _HOLE.fullmatch(line)), len(lines))
    cut_bytes = len(torn) + sum(map(len, lines[holed:]))
    return Tail(lines[:holed], lacks_end, cut_bytes, [line for line in lines[holed:] if not _HOLE.fullmatch(line)])


def end_line(path: Path) -> None:
    """Restore the missing line end at the end of a file, on disk.

    Raises:
        OutputError: it cannot be written.
    """
    with writing(path), path.open("ab") as file:
        file.write(b"\n")
        file.flush()
        os.fsync(file.fileno())


def truncate(path: Path, size_bytes: int) -> None:
    """Cut a file to a length, on disk.

    Raises:
        OutputError: it cannot be written.
    """
    with writing(path):
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, size_bytes)
            os.fsync(fd)
        finally:
            os.close(fd)


def cut_torn_line(path: Path) -> None:
    """Cut off what follows the last line end of a file: a part of a line that a crash has left.

    Raises:
        OutputError: it cannot be written.
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


def write_errors(path: Path, lines: Iterable[bytes], *, token: str | None = None, private: bool = False) -> int:
    """Replace an error file, see `write_whole`; returns the number of its lines.

    Without any line, an older error file is removed: its rows have succeeded since.

    Raises:
        OutputError: it cannot be written; an older file is unchanged.
    """
    with writing(path):
        lines = iter(lines)
        first = next(lines, None)
        if first is not None:
            return write_whole(path, chain([first], lines), token=token, private=private)
        path.unlink(missing_ok=True)
        sync_folder(path.parent)
    return 0


def write_whole(path: Path, lines: Iterable[bytes], *, token: str | None = None, private: bool = False) -> int:
    """Write all lines of a file, replacing an older one atomically by rename; returns the number of lines.

    Args:
        path: The file.
        lines: The lines, with their line ends.
        token: Part of the temporary name; a leftover of a crash with this name is replaced. None for a random one.
        private: Whether only its owner may read it, if there is no older file.

    Raises:
        OutputError: it cannot be written; an older file is unchanged.
    """
    written = 0
    with replacing(path, token=token, private=private) as file:
        for line in lines:
            file.write(line)
            written += 1
    return written


@contextmanager
def replacing(path: Path, *, token: str | None = None, private: bool = False) -> Iterator[BinaryIO]:
    """A new file that replaces an older one at the end of the block, with its permissions; see `write_whole`."""
    with writing(path), temporary_file(path, token=token, private=private) as file:
        with suppress(OSError):
            os.fchmod(file.fileno(), S_IMODE(path.stat().st_mode))
        yield file
        put_in_place(file, path)


@contextmanager
def temporary_file(path: Path, *, token: str | None = None, private: bool = False) -> Iterator[BinaryIO]:
    """A temporary file beside `path`, with a unique name, and never opened through a link.

    It is removed at the end, unless `put_in_place` has renamed it. For the arguments see `write_whole`.
    """
    make_folder(path.parent)
    part = path.with_name(f"{path.name[:_PART_NAME_CHARS]}.{token or os.urandom(4).hex()}.part")
    if token is not None:
        part.unlink(missing_ok=True)

    def create(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, _mode(private=private))

    with open(part, "xb", opener=create) as file:
        try:
            yield file
        finally:
            part.unlink(missing_ok=True)


def put_in_place(file: BinaryIO, path: Path) -> None:
    """Rename a `temporary_file` to `path` once all of it is on disk; a file that is there is replaced."""
    file.flush()
    os.fsync(file.fileno())
    Path(file.name).replace(path)
    sync_folder(path.parent)


def set_aside(path: Path, lines: Iterable[bytes]) -> Path:
    """Save lines that are removed from a results file to a new file beside it; returns its path.

    Its name is `<path>.damaged`, with a number if that exists. It gets the permissions of the results file.

    Raises:
        OutputError: it cannot be written.
    """
    with writing(path):
        for number in count(1):
            aside = path.with_name(f"{path.name}.damaged{f'-{number}' if number > 1 else ''}")
            if os.path.lexists(aside):
                continue
            write_beside(path, aside, lines)
            return aside
    raise AssertionError


def is_private(path: Path) -> bool:
    """Whether only its owner may access a file; False if it does not exist."""
    with suppress(OSError):
        return not path.stat().st_mode & 0o077
    return False


def _mode(*, private: bool) -> int:
    return 0o600 if private else 0o666


def errors_path(results: Path) -> Path:
    """The error file that belongs to a results file."""
    return results.with_name(f"{results.name.removesuffix('.jsonl')}.errors.jsonl")


def _blocks(fd: int, offset: int) -> Iterator[bytes]:
    while block := os.pread(fd, _BLOCK_BYTES, offset):
        offset += len(block)
        yield block


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Translate errors of the file system into ours.

    Raises:
        OutputError: the file cannot be written or read.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path}: results cannot be written: {error.strerror or error}",
            "free disk space or fix the permissions, then run the same command: what was committed is complete",
        ) from error
