"""Text for people, on a stream that perhaps nobody reads: whoever says something never waits for it to be written."""

from __future__ import annotations

import io
import select
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO, cast

_MOST_WAITING_CHARS = 1 << 20
"""Messages that wait to be written: beyond this the oldest are dropped and counted."""
_CHUNK_BYTES = 4096
"""Written at once. A slow reader is told by it from one that has stopped."""
_STALLED_S = 2.0
"""A reader that takes nothing for this long is not waited for."""


class Printer:
    """Writes to a stream from a thread of its own: messages in order, and below them a status line.

    A stalled terminal, a full pipe, a closed one or a full disk stops that thread alone. Messages wait meanwhile, in a
    bounded list. A status line that is not written yet is replaced by the next. Nothing is raised for a stream that
    cannot be written: what it did not take is counted, and told when it can be.

    It has what a text stream needs to be `sys.stderr`, but `flush` does not wait; `settle` does.

    Args:
        stream: Where to; None (as `sys.stderr` is when it is closed): nowhere.
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
        """Whether there is something that the thread has not taken yet."""
        self._is_writing = False
        with suppress(Exception):
            stream.flush()  # type: ignore[union-attr] # what the program has said before comes first

    @property
    def encoding(self) -> str:
        """The stream's."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:
        """What becomes of a character that the encoding does not have."""
        return "backslashreplace"

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        try:
            return self._stream.isatty()  # type: ignore[union-attr] # closed, or a stream that has only `write`
        except (AttributeError, OSError, ValueError):
            return False

    def fileno(self) -> int:
        """The stream's descriptor.

        Raises:
            OSError: it has none.
        """
        if self._stream is None:
            raise io.UnsupportedOperation("the stream is closed")
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Say something; when too much is waiting, the oldest messages are dropped."""
        if not isinstance(text, str):
            raise TypeError(f"text is printed, not {type(text).__name__}")
        with self._lock:
            self._messages.append(text)
            self._waiting_chars += len(text)
            while self._waiting_chars > _MOST_WAITING_CHARS and len(self._messages) > 1:
                self._drop_oldest()
            self._wake()
        return len(text)

    def flush(self) -> None:
        """Nothing: all is on its way."""

    def status(self, line: str) -> None:
        """Show a line below all messages from now on, without a line end; empty: none."""
        with self._lock:
            self._status = line
            self._wake()

    def settle(self) -> None:
        """Wait until everything is written, unless the reader takes nothing for 2 seconds."""
        with self._lock:
            while self._is_due or self._is_writing:
                if not self._has_written.wait(_STALLED_S):
                    return

    def _drop_oldest(self) -> None:
        # In one step for many: a list that is full stays full, and must not be moved for each message.
        count = max(len(self._messages) // 10, 1)
        self._waiting_chars -= sum(map(len, self._messages[:count]))
        del self._messages[:count]
        self._dropped += count

    def _wake(self) -> None:
        self._is_due = True
        self._has_text.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="printer", daemon=True)
            with suppress(RuntimeError):  # the interpreter is ending
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
            except Exception:  # noqa: BLE001 - a stream of a program's own may raise anything
                with self._lock:
                    self._dropped += count

    def _take(self) -> tuple[str, int]:
        """What is to be written now, and how many messages that is."""
        dropped, self._dropped = self._dropped, 0
        messages, self._messages = self._messages, []
        self._waiting_chars, self._is_due = 0, False
        text = (f"{dropped:,} messages were dropped\n" if dropped else "") + "".join(messages)
        # Half a line stays alone, until its other half comes.
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
            # Below the locks of Python's buffers: a write that never ends must not hold one when the interpreter ends.
            count = self._file.write(data[:_CHUNK_BYTES])
            if count is None:  # another program has made the terminal non-blocking
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
    """Have all that this process says on stderr written by a printer, to the end of the block."""
    stream = sys.stderr
    printer = Printer(stream)
    sys.stderr = cast("TextIO", printer)
    try:
        yield
    finally:
        sys.stderr = stream
        with suppress(KeyboardInterrupt):  # only the last words are cut off: all else is done
            printer.settle()


def _file_of(stream: TextIO | None) -> io.FileIO | None:
    """The file of the system under a stream; None when the stream is something else, such as a notebook's."""
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    return raw if isinstance(raw, io.FileIO) else None
