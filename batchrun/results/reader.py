"""Reads lines from files: all of them in order with their positions, or single ones by position."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import accumulate, chain, count
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

from batchrun.errors import StateError
from batchrun.files.places import read_places

_GROUP_LINES = 1000
_GROUP_BYTES = 4 << 20
_READ_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 16


class StoredLine(NamedTuple):
    """A line of a results or error file."""

    number: int
    """1-based."""
    offset: int
    """The position of its first byte in the file."""
    raw: bytes
    """With its line end; without one if it is cut off."""


def size_of(path: Path) -> int:
    """The file's length in bytes; 0 if it does not exist.

    Raises:
        StateError: it is not a file, or cannot be accessed.
    """
    with _reading(path):
        try:
            size_bytes = path.stat().st_size
        except FileNotFoundError:
            return 0
    if not path.is_file():
        raise StateError(f"{path} is not a file, but the run's results were there", "put the results file back")
    return size_bytes


def read_lines(path: Path, *, end: int, start: int = 0, first: int = 1) -> Iterator[StoredLine]:
    """The lines between two positions of a file; see `read_groups`."""
    return chain.from_iterable(read_groups(path, end=end, start=start, first=first))


def read_groups(path: Path, *, end: int, start: int = 0, first: int = 1) -> Iterator[list[StoredLine]]:
    """The lines between two positions of a file, in groups of up to a thousand, or 1 MiB, or one that is longer.

    Args:
        path: The file; a missing file has no lines.
        end: The position to stop at, in bytes; a line that extends beyond it is cut off there.
        start: The position to begin at, in bytes.
        first: The number of the line at `start`.

    Raises:
        StateError: it cannot be read.
    """
    with _reading(path):
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return
        with file:
            file.seek(start)
            offset, number = start, first
            group: list[StoredLine] = []
            for raws in _blocks(file, start, end, end):
                group += map(StoredLine, count(number), accumulate(map(len, raws), initial=offset), raws)
                number += len(raws)
                offset += sum(map(len, raws))
                while len(group) >= _GROUP_LINES or (group and offset - group[0].offset >= _READ_BYTES):
                    yield group[:_GROUP_LINES]
                    del group[:_GROUP_LINES]
            if group:
                yield group


def _blocks(file: BinaryIO, offset: int, stop: int, end: int) -> Iterator[list[bytes]]:
    """The lines from a position on, where the file is, that begin before another, in small blocks.

    Small ones stay in the caches of a processor: to read in blocks of a mebibyte takes twice as long.
    """
    while offset < stop and (block := file.read(min(_BLOCK_BYTES, stop - offset))):
        if not block.endswith(b"\n"):
            block += file.readline(end - offset - len(block))
        offset += len(block)
        yield BytesIO(block).readlines()


def lines_between(path: Path, start: int, stop: int, end: int) -> Iterator[list[bytes]]:
    """The lines that begin in a part of a file, in small blocks, so that several processes may each read a part.

    Args:
        path: The file.
        start: Where the part begins, in bytes.
        stop: Where it ends, at most at `end`.
        end: The position to stop reading at; a line that extends beyond it is cut off there.

    Raises:
        StateError: it cannot be read.
    """
    with _reading(path), path.open("rb") as file:
        if start:
            file.seek(start - 1)  # a line begins at the start if the byte before it ends a line
            before = file.readline(stop - start + 1)
            if not before.endswith(b"\n"):
                return
            start += len(before) - 1
        yield from _blocks(file, start, stop, end)


def read_parts(path: Path, parts: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes at some positions of a file: offset and length of each. Where the file ends before, there are fewer.

    Raises:
        StateError: it cannot be read.
    """
    with _reading(path), path.open("rb") as file:
        return read_places([(0, *part) for part in parts], lambda _, *part: os.pread(file.fileno(), part[1], part[0]))


def in_groups(lines: Iterable[StoredLine]) -> Iterator[list[StoredLine]]:
    """Lines in groups of up to a thousand, fewer if they are long, for work that is cheaper in bulk."""
    group: list[StoredLine] = []
    size_bytes = 0
    for line in lines:
        group.append(line)
        size_bytes += len(line.raw)
        if len(group) == _GROUP_LINES or size_bytes > _GROUP_BYTES:
            yield group
            group, size_bytes = [], 0
    if group:
        yield group


class LinesByPosition:
    """Reads lines by their position. One file is open at a time, however many there are.

    Create it before the positions are determined: it then notices a file that is replaced in between.

    Args:
        paths: Output number -> results file.
        found: The files that another object like this has found there, see `found`; None: those that are there now.

    Raises:
        StateError: a file cannot be accessed.
    """

    def __init__(self, paths: Mapping[int, Path], found: Mapping[int, tuple[int, int] | None] | None = None) -> None:
        self.paths = paths
        self.found = {output: _identity(path) for output, path in paths.items()} if found is None else found
        """For each output, the numbers by which its file is recognized; None if there is no file."""
        self._output = 0
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, output: int, offset: int, length: int) -> bytes:
        """The line at a position, with its line end.

        Raises:
            StateError: it cannot be read, or the file has changed.
        """
        return self.read_all([(output, offset, length)])[0]

    def read_all(self, places: Sequence[tuple[int, int, int]]) -> list[bytes]:
        """The lines at some positions: output, offset and length of each. Those that are near are read together.

        Raises:
            StateError: one cannot be read, or its file has changed.
        """
        raws = read_places(places, self._read)
        for (output, _, length), raw in zip(places, raws, strict=True):
            if len(raw) != length or raw[-1:] != b"\n":
                raise _changed(self.paths[output])
        return raws

    def _read(self, output: int, offset: int, length: int) -> bytes:
        path = self.paths[output]
        try:
            if self._fd < 0 or output != self._output:
                self.close()
                self._fd, self._output = os.open(path, os.O_RDONLY | os.O_CLOEXEC), output
                if _numbers(os.fstat(self._fd)) != self.found[output]:
                    raise _changed(path)
            return os.pread(self._fd, length, offset)
        except OSError as error:
            raise _unreadable(path, error) from error

    def close(self) -> None:
        """Close the open file, if any."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file, by which a replacement is noticed; None if it does not exist."""
    with _reading(path):
        try:
            return _numbers(path.stat())
        except FileNotFoundError:
            return None


def _numbers(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _changed(path: Path) -> StateError:
    return StateError(f"{path} was changed while it was read", "run the same command again")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> StateError:
    return StateError(
        f"{path}: the file cannot be read: {error.strerror or error}", "check the file, its permissions and its disk"
    )
