"""How lines reach the disk: results appended and synced, torn ends found and cut, other files whole by rename."""

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
from batchrun.files.folders import make_folder, sync_folder
from batchrun.files.locks import lock_file, unlock_file

_BLOCK_BYTES = 1 << 20
_PART_NAME_CHARS = 100
"""A file system takes names of up to 255 bytes, and a character may have four."""
_MOST_OPEN = 200
"""Results files at once; the usual limit of a process is 1,024 files."""
_HOLE = re.compile(rb"[^\0]*\0+[^\0]*|\s*")
"""A line with one run of NUL bytes, or blank; several would be somebody's binary data."""
_sync_data = getattr(os, "fdatasync", os.fsync)
"""macOS has no fdatasync."""


@dataclass(frozen=True, slots=True)
class Tail:
    """What stands in a results file beyond the committed length."""

    lines: list[bytes]
    """Whole lines, with their ends."""
    lacks_end: bool
    """Whether the file is whole but for the end of its last line."""
    cut_bytes: int
    """Length of what is to be cut off behind them: a torn last line, or what a loss of power has left; 0: nothing."""
    behind_hole: list[bytes]
    """Whole lines in the part to be cut off, behind blocks of NUL bytes that were never written."""


class ResultsFile:
    """A results file that is appended to. While it is open nobody else can have it.

    Args:
        path: The file; made when it does not exist, with its folder.
        committed_bytes: Its length; `recover` and `truncate` have made sure of that.
        private: Whether only its owner may read it, if it is made.

    Raises:
        StateError: another run writes it.
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
        """Whether it takes a file descriptor."""
        return self._fd >= 0

    def append(self, lines: Sequence[bytes]) -> None:
        """Append lines; all of them, or none.

        Raises:
            OutputError: they cannot be written; the file is cut back to what it was.
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
            is_there = os.path.samestat(self._file, self.path.stat())
        if not is_there:
            raise self._replaced()

    def close(self) -> None:
        """Close the file; the next append opens it again."""
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
                f"{self.path} is in use: another batchrun writes its results there", "give another --output"
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
                f"{self.path}: another program has changed the results while the run went on"
                f" ({size_bytes:,} bytes instead of {self.size_bytes:,})",
                "restore what was committed, then run the same command; `batchrun verify` names what is wrong",
            )

    def _replaced(self) -> OutputError:
        return OutputError(
            f"{self.path}: another file has taken the place of the results while the run went on",
            "put the results back, then run the same command: what was committed stands in them",
        )


class ResultsFiles(dict[int, ResultsFile]):
    """The results files of a run, by output. Of thousands only some are open at a time.

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
        """Sync the files of some outputs; see `ResultsFile.sync`. Those that rows are likely done with are closed."""
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
        StateError: the file is shorter than what is committed, so that results are missing.
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
            "put the whole file back, or add --repair to get them again: you pay only for what the endpoint has not",
        )
    *whole, torn = tail.split(b"\n")
    lines = [line + b"\n" for line in whole]
    # JSON has no NUL bytes. After a loss of power some file systems have the length of a file, but not all its blocks.
    holed = next((index for index, line in enumerate(lines) if _HOLE.fullmatch(line)), len(lines))
    cut_bytes = len(torn) + sum(map(len, lines[holed:]))
    return Tail(lines[:holed], lacks_end, cut_bytes, [line for line in lines[holed:] if not _HOLE.fullmatch(line)])


def end_line(path: Path) -> None:
    """Put the end of its last line back to a file, on disk.

    Raises:
        OutputError: it cannot be done.
    """
    with writing(path), path.open("ab") as file:
        file.write(b"\n")
        file.flush()
        os.fsync(file.fileno())


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


def write_errors(path: Path, lines: Iterable[bytes], *, token: str | None = None, private: bool = False) -> int:
    """Write an error file whole, by rename; returns how many lines it has.

    Without any line an older error file is removed: its rows have succeeded since. See `write_whole`.

    Raises:
        OutputError: it cannot be written; an older file is as it was.
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
    """Write a file of lines whole, by rename; returns how many lines it has.

    It may be read and written by whom an older one in its place may be.

    Args:
        path: The file.
        lines: With their ends.
        token: Names the file until it is whole; what a crash has left under that name is replaced. None: by chance.
        private: Whether only its owner may read it, without an older one.

    Raises:
        OutputError: it cannot be written; an older file is as it was.
    """
    written = 0
    with writing(path), part_file(path, token=token, private=private) as file:
        with suppress(OSError):
            os.fchmod(file.fileno(), S_IMODE(path.stat().st_mode))
        for line in lines:
            file.write(line)
            written += 1
        put_in_place(file, path)
    return written


@contextmanager
def part_file(path: Path, *, token: str | None = None, private: bool = False) -> Iterator[BinaryIO]:
    """A file that is written beside `path`, under a name that nobody else uses, and never through a link.

    It is removed in the end, unless `put_in_place` has given it its name. See `write_whole`.
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
    """Give a `part_file` its name, once all of it is on disk. A file that has the name already is replaced."""
    file.flush()
    os.fsync(file.fileno())
    Path(file.name).replace(path)
    sync_folder(path.parent)


def set_aside(path: Path, lines: Iterable[bytes]) -> Path:
    """Keep lines that are taken out of a results file in a new file beside it; returns which.

    Its name is `<path>.damaged`, with a number where that is taken. It is for whom the results are.

    Raises:
        OutputError: it cannot be written.
    """

    def create(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, _mode(private=True))

    with writing(path):
        for number in count(1):
            aside = path.with_name(f"{path.name}.damaged{f'-{number}' if number > 1 else ''}")
            if os.path.lexists(aside):
                continue
            with open(aside, "xb", opener=create) as file:
                os.fchmod(file.fileno(), S_IMODE(path.stat().st_mode))
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            sync_folder(path.parent)
            return aside
    raise AssertionError


def is_private(path: Path) -> bool:
    """Whether only its owner may read a file; False if there is none."""
    try:
        return not path.stat().st_mode & 0o077
    except OSError:
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
