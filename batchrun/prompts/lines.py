"""Read the lines of a file: all from the beginning, with their positions, or single ones by position."""

from __future__ import annotations

import os
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

from batchrun.errors import InputError
from batchrun.files.places import Place, read_places

MAX_LINE_BYTES = 64 << 20
"""A longer line is not a prompt: the API accepts 10 MB, and no metadata needs the rest."""
_MOST_OPEN_FILES = 200
"""Input files that are open at once; the usual limit of a process is 1,024 files."""
_BLOCK_BYTES = 1 << 16
_FIRST = (b"{", b'"')
"""A line that begins with one of them has no byte order mark or white space before it."""


class LineTooLongError(InputError):
    """A line is too long to be read. The message begins with its number; the caller puts the path before it."""


class RawLine(NamedTuple):
    """A line that is not blank."""

    number: int
    """1-based; blank lines count."""
    offset: int
    """The position of `raw` in the file, in bytes."""
    raw: bytes
    """The line without surrounding white space."""


def iter_lines(file: BinaryIO) -> Iterator[RawLine]:
    """The lines of a binary file that are not blank, in constant memory.

    A byte order mark before any line (concatenated files have them in the middle), CRLF line ends and a last line
    without a line end are fine.

    Raises:
        LineTooLongError: a line is longer than 64 MiB.
    """
    offset, number = 0, 0
    while line := file.readline(MAX_LINE_BYTES):
        number += 1
        if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            raise LineTooLongError(f"{number}: longer than {MAX_LINE_BYTES >> 20} MiB", "is this a JSONL file?")
        start = offset
        offset += len(line)
        raw = line.rstrip()
        if raw[:1] not in _FIRST:
            stripped = raw.lstrip().removeprefix(BOM_UTF8).lstrip()
            start += len(raw) - len(stripped)
            raw = stripped
        if raw:
            yield RawLine(number, start, raw)


def in_blocks(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their line ends, joined with them to blocks of at least 64 KiB; the last may be smaller."""
    block: list[bytes] = []
    size_bytes = 0
    for line in lines:
        block.append(line)
        size_bytes += len(line)
        if size_bytes >= _BLOCK_BYTES:
            block.append(b"")
            yield b"\n".join(block)
            block, size_bytes = [], 0
    block.append(b"")
    yield b"\n".join(block)


class LineReader:
    """Reads lines again by their position.

    The files are opened now and stay open: one that is replaced during the run is still read as it was. If there are
    thousands, only some are open at a time; a changed line is then recognized by its digest.

    Args:
        paths: Source number -> file.
        missing_ok: Whether a file that cannot be opened is read as if it were empty.
        reading: The rules by which the lines become requests; see `shapes.READING`.
        most_open: How many files may be open at once, >= 1.

    Raises:
        InputError: a file cannot be opened.
    """

    def __init__(
        self,
        paths: Mapping[int, Path],
        *,
        missing_ok: bool = False,
        reading: int = 1,
        most_open: int = _MOST_OPEN_FILES,
    ) -> None:
        self.reading = reading
        self._paths = dict(paths)
        self._most_open = most_open
        self._files: dict[int, int] = {}
        self.missing: list[Path] = []
        """The files that could not be opened."""
        for source, path in paths.items():
            try:
                self._open(source)
            except InputError:
                if missing_ok:
                    self.missing.append(path)
                    del self._paths[source]
                    continue
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, source: int, offset: int, length: int) -> bytes:
        """`length` bytes at `offset`; fewer if the file ends before.

        Raises:
            InputError: the file cannot be read.
        """
        file = self._files.get(source)
        if file is None:
            if source not in self._paths:
                return b""
            file = self._open(source)
        try:
            return os.pread(file, length, offset)
        except OSError as error:
            raise InputError(f"an input file cannot be read: {error.strerror}", "check its disk") from error

    def read_all(self, places: Sequence[Place]) -> list[bytes]:
        """The bytes at some places, each as `read` gives them; those that are near each other are read at once.

        Raises:
            InputError: a file cannot be read.
        """
        return read_places(places, self.read)

    def _open(self, source: int) -> int:
        while len(self._files) >= self._most_open:
            os.close(self._files.pop(next(iter(self._files))))
        path = self._paths[source]
        try:
            self._files[source] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}", "the run still needs this input file: restore it") from error
        return self._files[source]

    def close(self) -> None:
        """Close the files."""
        while self._files:
            os.close(self._files.popitem()[1])
