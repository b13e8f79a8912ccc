"""The standard streams of the command, made safe: closed ones are opened, and what cannot be written is told once."""

from __future__ import annotations

import os
import select
import sys
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import TYPE_CHECKING, Any

from batchrun.errors import OutputError

if TYPE_CHECKING:
    from typing import TextIO

_STDIN, _STDOUT, _STDERR = range(3)


def take_over() -> None:
    """Make the standard streams of this process safe; those that a program has replaced are left alone.

    A number that is closed is opened: else it would be that of the next file, and a message would go into the results.
    Nothing can be read from a closed stdin, and a closed stdout cannot be written.
    """
    for number in (_STDIN, _STDOUT, _STDERR):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one. As it is not open for writing, what is written to it fails.
            os.open(os.devnull, os.O_RDONLY)
    if sys.stdin is None:
        sys.stdin = open(_STDIN, closefd=False, encoding="utf-8")  # noqa: SIM115 - it is a number
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(_Stdout(_STDOUT, "w", closefd=False), sys.stdout)


def _text(raw: FileIO, was: TextIO | None) -> TextIO:
    """A text stream; what its encoding does not have is written as an escape."""
    encoding = "utf-8" if was is None else was.encoding
    return TextIOWrapper(BufferedWriter(raw), encoding, "backslashreplace", line_buffering=True)


class _Stdout(FileIO):
    """Says once that stdout cannot be written, as an error of ours; what comes after that is dropped."""

    _has_failed = False

    def write(self, data: Any, /) -> int:
        """Write.

        Raises:
            OutputError: the stream is closed, or the disk is full; without a message when its reader has gone.
        """
        if not self._has_failed:
            try:
                return _write(self, data)
            except OSError as error:
                self._has_failed = True
                if isinstance(error, BrokenPipeError):
                    raise OutputError("") from error
                raise OutputError(
                    f"stdout cannot be written: {error.strerror}", "what it was given so far is not whole"
                ) from error
        return memoryview(data).nbytes


def _write(file: FileIO, data: Any) -> int:
    """Write, and wait for room where another process has made the stream non-blocking."""
    while (count := FileIO.write(file, data)) is None:
        select.select([], [file], [])
    return count
