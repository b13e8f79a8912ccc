"""A terminal that shows one screen, redrawn in place, and is restored afterwards. Only ANSI control sequences."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from batchrun.display.screen import Line, Tone

_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
"""To the alternate screen without a cursor, and back."""
_HOME, _CLEAR_LINE, _CLEAR_REST = "\x1b[H", "\x1b[K", "\x1b[J"
_NO_TONE = "\x1b[0m"
_TONES: dict[Tone, str] = {"title": "\x1b[1m", "good": "\x1b[32m", "bad": "\x1b[31m", "wait": "\x1b[33m"}
_USUAL = (80, 24)


def can_redraw() -> bool:
    """Whether stdout is a terminal that understands control sequences."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def has_colors() -> bool:
    """Whether the user wants colors on a terminal; see https://no-color.org."""
    return not os.environ.get("NO_COLOR")


def has_blocks() -> bool:
    """Whether stdout can show block characters."""
    return str(getattr(sys.stdout, "encoding", "")).lower().startswith("utf")


class Terminal:
    """Draws screens on stdout, a terminal."""

    def __init__(self) -> None:
        self._colors = has_colors()

    def size(self) -> tuple[int, int]:
        """Its columns and lines, without the last column: some terminals wrap after it."""
        try:
            columns, lines = os.get_terminal_size(sys.stdout.fileno())
        except (OSError, ValueError):
            columns, lines = _USUAL
        return (columns or _USUAL[0]) - 1, lines or _USUAL[1]

    def draw(self, lines: Iterable[Line]) -> None:
        """Replace the screen; at most as many lines as it has."""
        drawn = [f"{self._toned(line)}{_CLEAR_LINE}" for line in lines]
        _write(_HOME + "\r\n".join(drawn) + _CLEAR_REST)

    def _toned(self, line: Line) -> str:
        tone = _TONES.get(line.tone) if self._colors else None
        return line.text if tone is None else f"{tone}{line.text}{_NO_TONE}"

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Show the alternate screen until the end of the block; Ctrl-Z shows the shell in the meantime."""

        def suspend(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a handler
            _write_within(_LEAVE)
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTSTP)
            signal.signal(signal.SIGTSTP, suspend)
            _write_within(_ENTER)

        was = signal.getsignal(signal.SIGTSTP)
        try:
            if was is signal.SIG_DFL:
                signal.signal(signal.SIGTSTP, suspend)
            _write(_ENTER)
            yield
        finally:
            if was is signal.SIG_DFL:
                signal.signal(signal.SIGTSTP, was)
            # A closed terminal needs nothing.
            with suppress(Exception):
                _write(_LEAVE)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _write_within(text: str) -> None:
    """Write in a signal handler, perhaps in the middle of a `_write`, in which stdout's buffer cannot be used."""
    with suppress(OSError):
        os.write(sys.stdout.fileno(), text.encode())
