"""Terminals."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
from contextlib import contextmanager, suppress


@contextmanager
def stalled_terminal():
    """A terminal that nobody reads."""
    screen, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    yield side
    os.close(screen)
    with suppress(OSError):
        os.close(side)
