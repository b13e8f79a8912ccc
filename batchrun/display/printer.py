"""Writes messages to a stream that may be stalled, without ever making the caller wait."""

from __future__ import annotations

import io
import select
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO, cast

_MOST_WAITING_CHARS = 1 << 20
"""When more than this is waiting to be written, the oldest messages are dropped and counted."""
_CHUNK_BYTES = 4096
"""Written at once; small, so that a slow reader can be told from a stalled one."""
_STALLED_S = 2.0
"""A reader that has read nothing for this long is stalled."""


class Printer:
    """Writes to a stream from a thread of its own: messages in order, and below them a status line.

    A stalled terminal, a full or closed pipe, or a full disk stops only that thread. Messages wait in a bounded list
    meanwhile, and a status line that has not been written yet is replaced by the next. A stream that cannot be written
    raises nothing: lost messages are counted, and reported when it can be written again.

    It can replace `sys.stderr`, but `flush` does not wait; `settle` does.

    Args:
        stream: The stream; None (as `sys.stderr` is when it is closed): nothing is written.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._file = _file_of(stream)
        self._thread: threading.Thread | None = None
        # Reentrant: the garbage collector may print something in the middle of a `write`.
        self._lock = threading.RLock()
        self._has_text = threading.Condition(self._lock)
        self._has_written = threading.Condition(self._lock)
        self._messages: list[str] = []
        self._waiting_chars = 0
        self._dropped = 0
        self._status = ""
        self._shown = ""
        self._is_due = False
        """Whether there is something to write that the thread has not taken yet."""
        self._is_writing = False
        with suppress(Exception):
            stream.flush()  # type: ignore[union-attr] # earlier output of the program comes first

    @property
    def encoding(self) -> str:
        """The stream's encoding."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:
        """How characters that the encoding lacks are handled."""
        return "backslashreplace"

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        try:
            return self._stream.isatty()  # type: ignore[union-attr] # it may be closed, or have only `write`
        except (AttributeError, OSError, ValueError):
            return False

    def fileno(self) -> int:
        """The stream's file descriptor.

        Raises:
            OSError: it has none.
        """
        if self._stream is None:
            raise io.UnsupportedOperation("the stream is closed")
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Queue text to be written; if too much is waiting, the oldest messages are dropped."""
        if not isinstance(text, str):
            raise TypeError(f"expected str, not {type(text).__name__}")
        with self._lock:
            self._messages.append(text)
            self._waiting_chars += len(text)
            while self._waiting_chars > _MOST_WAITING_CHARS and len(self._messages) > 1:
                self._drop_oldest()
            self._wake()
        return len(text)

    def flush(self) -> None:
        """Do nothing: everything is already queued."""

    def status(self, line: str) -> None:
        """Set the status line, which is shown below all messages; empty: no status line."""
        with self._lock:
            self._status = line
            self._wake()

    def settle(self) -> None:
        """Wait until everything is written, or the reader has read nothing for 2 seconds."""
        with self._lock:
            while self._is_due or self._is_writing:
                if not self._has_written.wait(_STALLED_S):
                    return

    def close(self) -> None:
        """Settle, and close the stream, unless its reader is stalled. What is written later goes nowhere."""
        self.settle()
        with self._lock:
            if self._stream is None or self._is_due or self._is_writing:
                return
            stream, self._stream, self._file = self._stream, None, None
        with suppress(OSError):  # all has been written, past the stream's own buffer
            stream.close()

    def _drop_oldest(self) -> None:
        # Drop many at once: a full list stays full, and must not be shifted for each message.
        count = max(len(self._messages) // 10, 1)
        self._waiting_chars -= sum(map(len, self._messages[:count]))
        del self._messages[:count]
        self._dropped += count

    def _wake(self) -> None:
        self._is_due = True
        self._has_text.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="printer", daemon=True)
            with suppress(RuntimeError):  # the interpreter is shutting down
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                self._is_writing = False
                self._has_written.notify_all()
                while not self._is_due:
                    self._has_text.wait()
                text, count = self._take()
                self._is_writing = True
            try:
                self._put(text)
            except Exception:  # noqa: BLE001 - a calling program's own stream may raise anything
                with self._lock:
                    self._dropped += count

    def _take(self) -> tuple[str, int]:
        """The text to write now, and the number of messages in it."""
        dropped, self._dropped = self._dropped, 0
        messages, self._messages = self._messages, []
        self._waiting_chars, self._is_due = 0, False
        text = (f"messages dropped: {dropped:,}\n" if dropped else "") + "".join(messages)
        # After an incomplete line there is no status line, until the rest of the line comes.
        status = self._status if not text or text.endswith("\n") else ""
        shown, self._shown = self._shown, status
        if shown and (text or not status):
            text = f"\r{' ' * len(shown)}\r{text}"
        elif shown:
            status += " " * (len(shown) - len(status))
        return (f"{text}\r{status}" if status else text), dropped + len(messages)

    def _put(self, text: str) -> None:
        if self._file is None:
            self._put_in_stream(text)
            return
        data = memoryview(text.encode(self.encoding, self.errors))
        while data:
            # Unbuffered: a write that never returns must not hold a buffer's lock when the interpreter shuts down.
            count = self._file.write(data[:_CHUNK_BYTES])
            if count is None:  # another program has set the terminal to non-blocking
                wait = select.poll()
                wait.register(self._file, select.POLLOUT)
                wait.poll()
                continue
            data = data[count:]
            with self._lock:
                self._has_written.notify_all()

    def _put_in_stream(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            self._stream.write(text.encode("ascii", self.errors).decode("ascii"))
        if hasattr(self._stream, "flush"):
            self._stream.flush()


@contextmanager
def printing_stderr() -> Iterator[None]:
    """Replace `sys.stderr` by a printer until the end of the block."""
    stream = sys.stderr
    printer = Printer(stream)
    sys.stderr = cast("TextIO", printer)
    try:
        yield
    finally:
        sys.stderr = stream
        with suppress(KeyboardInterrupt):  # only the last messages are lost: all work is done
            printer.settle()


def _file_of(stream: TextIO | None) -> io.FileIO | None:
    """The raw file below a stream; None if there is none, as in a notebook."""
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    return raw if isinstance(raw, io.FileIO) else None
