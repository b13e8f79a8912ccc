"""Make the standard streams safe: closed ones are opened, replaced ones are used as they are.

That stdout cannot be written is reported once.
"""

from __future__ import annotations

import os
import select
import sys
from io import BufferedIOBase, BufferedReader, BufferedWriter, BytesIO, FileIO, RawIOBase, TextIOWrapper
from typing import Any, BinaryIO, TextIO, cast

from batchrun.errors import OutputError

_STDIN, _STDOUT, _STDERR = range(3)


def open_closed() -> None:
    """Open the descriptors of closed standard streams.

    Otherwise the next files would get their numbers, and what a library writes to a stream would be in the results.
    """
    for number in (_STDIN, _STDOUT, _STDERR):
        try:
            os.fstat(number)
        except OSError:
            # This opens the lowest free number, which is this one. It is read-only, so that writing to it fails.
            os.open(os.devnull, os.O_RDONLY)


def stdin_bytes() -> BinaryIO:
    """Stdin as bytes, even if a program has replaced it; empty if it is closed."""
    stream = sys.stdin
    if stream is None or getattr(stream, "closed", False):
        return BytesIO()
    buffer = getattr(stream, "buffer", stream)
    is_binary = buffer is not stream or isinstance(stream, (BufferedIOBase, RawIOBase))
    return cast("BinaryIO", buffer if is_binary else BufferedReader(_Encoded(stream)))


def stdout_bytes() -> BinaryIO:
    """Stdout for bytes, even if a program has replaced it."""
    buffer = getattr(sys.stdout, "buffer", None)
    return cast("BinaryIO", _Decoded(sys.stdout) if buffer is None else buffer)


class _Encoded(RawIOBase):
    """The bytes of a text-only stream, such as a StringIO."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any, /) -> int:
        text = self._stream.read(max(len(into) // 4, 1))  # a character has up to 4 bytes
        data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
        into[: len(data)] = data
        return len(data)


class _Decoded(RawIOBase):
    """Writes whole lines to a text-only stream, such as the log of a task."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._stream.write(bytes(data).decode("utf-8", "backslashreplace"))
        return len(data)

    def flush(self) -> None:
        if hasattr(self._stream, "flush"):
            self._stream.flush()


def take_over() -> None:
    """Make the standard streams of this process safe; those that a program has replaced are left alone.

    Reading from a closed stdin gives nothing, and writing to a closed stdout fails.
    """
    open_closed()
    if sys.stdin is None:
        sys.stdin = open(_STDIN, closefd=False, encoding="utf-8")  # noqa: SIM115 - a descriptor that stays open
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(_Stdout(_STDOUT, "w", closefd=False), sys.stdout)


def _text(raw: FileIO, was: TextIO | None) -> TextIO:
    """A text stream; characters that its encoding lacks are written as escapes."""
    encoding = "utf-8" if was is None else was.encoding
    return TextIOWrapper(BufferedWriter(raw), encoding, "backslashreplace", line_buffering=True)


class _Stdout(FileIO):
    """Reports once, as an OutputError, that stdout cannot be written; later output is dropped."""

    _has_failed = False

    def write(self, data: Any, /) -> int:
        """Write.

        Raises:
            OutputError: the stream is closed, or the disk is full; without a message if its reader has gone.
        """
        if not self._has_failed:
            try:
                return _write(self, data)
            except OSError as error:
                self._has_failed = True
                if isinstance(error, BrokenPipeError):
                    raise OutputError("") from error
                raise OutputError(
                    f"stdout cannot be written: {error.strerror}", "the output so far is incomplete"
                ) from error
        return memoryview(data).nbytes


def _write(file: FileIO, data: Any) -> int:
    """Write, and wait for room if another process has made the stream non-blocking."""
    while (count := FileIO.write(file, data)) is None:
        select.select([], [file], [])
    return count
