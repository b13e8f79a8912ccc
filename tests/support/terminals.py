"""Terminals."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@contextmanager
def stalled_terminal():
    """A terminal that nobody reads."""
    screen, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    yield side
    os.close(screen)
    with suppress(OSError):
        os.close(side)


class Screen:
    """What a terminal shows that understands the sequences of `status --watch`, and no others.

    Args:
        columns: Its width.
        lines: Its height.
    """

    def __init__(self, columns: int, lines: int) -> None:
        self.columns, self.lines = columns, lines
        self._screens = {False: self._blank(), True: self._blank()}
        self.is_other = False
        """Whether the alternate screen is shown."""
        self.has_cursor = True
        self.tones: set[str] = set()
        """The numbers of the colors and styles that were used."""
        self.scrolled = 0
        """How many lines scrolled off the alternate screen."""
        self._line = self._column = 0
        self._saved = (0, 0)
        self._rest = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def _blank(self) -> list[list[str]]:
        return [[" "] * self.columns for _ in range(self.lines)]

    def text(self) -> str:
        """What is shown."""
        return "\n".join("".join(line).rstrip() for line in self._screens[self.is_other]).rstrip()

    def feed(self, data: bytes) -> None:
        """Take what a program writes."""
        text = self._rest + self._decoder.decode(data)
        self._rest = ""
        while text:
            if text[0] == "\x1b":
                found = re.match(r"\x1b\[(\??[\d;]*)([A-Za-z])", text)
                if found is None:
                    assert len(text) < 12, f"not a control sequence: {text[:12]!r}"
                    self._rest = text
                    return
                self._control(found[1], found[2])
                text = text[found.end() :]
            else:
                self._put(text[0])
                text = text[1:]

    def _put(self, char: str) -> None:
        if char == "\r":
            self._column = 0
        elif char == "\n":
            self._line += 1
            if self._line == self.lines:
                self._line -= 1
                shown = self._screens[self.is_other]
                self._screens[self.is_other] = [*shown[1:], [" "] * self.columns]
                self.scrolled += self.is_other
        else:
            assert char.isprintable(), repr(char)
            if self._column == self.columns:
                self._put("\r")
                self._put("\n")
            self._screens[self.is_other][self._line][self._column] = char
            self._column += 1

    def _control(self, arguments: str, final: str) -> None:
        shown = self._screens[self.is_other]
        match (arguments, final):
            case ("?1049", "h" | "l"):
                self.is_other = final == "h"
                if self.is_other:
                    self._screens[True], self._saved = self._blank(), (self._line, self._column)
                else:
                    self._line, self._column = self._saved
            case ("?25", "h" | "l"):
                self.has_cursor = final == "h"
            case ("", "H"):
                self._line = self._column = 0
            case ("", "K"):
                shown[self._line][self._column :] = [" "] * (self.columns - self._column)
            case ("", "J"):
                shown[self._line][self._column :] = [" "] * (self.columns - self._column)
                shown[self._line + 1 :] = self._blank()[self._line + 1 :]
            case (_, "m"):
                self.tones.add(arguments)
            case _:
                raise AssertionError(f"an unknown control sequence: {arguments}{final}")


class OnTerminal:
    """A command on a terminal of its own.

    Args:
        command: The command and its arguments.
        columns: The terminal's width.
        lines: Its height.
        env: The command's environment.
        cwd: Its folder.
    """

    def __init__(self, command: list[str], columns: int, lines: int, env: dict[str, str], cwd: Path) -> None:
        self.screen = Screen(columns, lines)
        self._side, inner = pty.openpty()
        self.settings = termios.tcgetattr(inner)
        self._inner = inner
        self.resize(columns, lines)
        self.process = subprocess.Popen(
            command,
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env={"TERM": "xterm", "LANG": "C.UTF-8", **env},
            cwd=cwd,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - it allocates nothing
        )

    def resize(self, columns: int, lines: int) -> None:
        """Change the terminal's size, before anything is shown on it."""
        fcntl.ioctl(self._side, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._side, keys)

    def look(self, until: Callable[[Screen], bool], timeout_s: float = 60.0) -> str:
        """What is shown as soon as `until` holds."""
        ends_at = time.monotonic() + timeout_s
        while not until(self.screen):
            assert time.monotonic() < ends_at, self.screen.text()
            if select.select([self._side], [], [], 0.2)[0]:
                self.screen.feed(os.read(self._side, 1 << 16))
        return self.screen.text()

    def end(self) -> int:
        """Wait for the command's end; returns its exit code. The terminal's settings must be as they were."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(60)
        while select.select([self._side], [], [], 0.1)[0]:
            self.screen.feed(os.read(self._side, 1 << 16))
        assert termios.tcgetattr(self._inner) == self.settings
        os.close(self._inner)
        os.close(self._side)
        return self.process.returncode
