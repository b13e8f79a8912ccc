"""How lines come back from the disk: in order with their place, or one by one from it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Self

from batchrun.errors import StateError

_GROUP_LINES = 1000
_GROUP_BYTES = 4 << 20


class StoredLine(NamedTuple):
    """A line of a results or error file."""

    number: int
    """1-based."""
    offset: int
    """Of its first byte in the file."""
    raw: bytes
    """With its end; without one when it is cut off."""


def size_of(path: Path) -> int:
    """The file's length in bytes; 0 when it does not exist.

    Raises:
        StateError: it is no file, or may not be looked at.
    """
    with _reading(path):
        try:
            size_bytes = path.stat().st_size
        except FileNotFoundError:
            return 0
    if not path.is_file():
        raise StateError(f"{path} is no file", "the run's results were there: put them back")
    return size_bytes


def read_lines(path: Path, *, end: int, start: int = 0, first: int = 1) -> Iterator[StoredLine]:
    """The lines between two places of a file, one in memory at a time.

    Args:
        path: The file; one that does not exist has no lines.
        end: Bytes from the front to stop at; a line that reaches beyond is cut off there.
        start: Bytes from the front to begin at.
        first: The number of the line that stands there.

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
            while offset < end and (raw := file.readline(end - offset)):
                yield StoredLine(number, offset, raw)
                offset += len(raw)
                number += 1


def in_groups(lines: Iterable[StoredLine]) -> Iterator[list[StoredLine]]:
    """Lines up to a thousand at a time, for what is cheaper for many at once; fewer where they are long."""
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


class PlacedLines:
    """Reads lines again by their place. One file is open at a time, however many there are.

    To be made before the places are looked for: a file that is another one when it is read was changed meanwhile.

    Args:
        paths: Output number -> results file.

    Raises:
        StateError: one may not be looked at.
    """

    def __init__(self, paths: Mapping[int, Path]) -> None:
        self._paths = paths
        self._found = {output: _identity(path) for output, path in paths.items()}
        self._output = 0
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, output: int, offset: int, length: int) -> bytes:
        """The line at a place, with its end.

        Raises:
            StateError: it cannot be read, or is there no longer.
        """
        path = self._paths[output]
        try:
            if self._fd < 0 or output != self._output:
                self.close()
                self._fd, self._output = os.open(path, os.O_RDONLY | os.O_CLOEXEC), output
                if _numbers(os.fstat(self._fd)) != self._found[output]:
                    raise _changed(path)
            raw = os.pread(self._fd, length, offset)
        except OSError as error:
            raise _unreadable(path, error) from error
        if len(raw) != length or not raw.endswith(b"\n"):
            raise _changed(path)
        return raw

    def close(self) -> None:
        """Close the file that is open."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another in its place; None when there is none."""
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
        f"{path}: it cannot be read: {error.strerror or error}", "check the file, its permissions and its disk"
    )
