"""The ways to leave a session, and the signals that request them.

The first Ctrl-C or SIGTERM does what the user has chosen; the second leaves, because the user wants to exit at once.
SIGHUP leaves, because nobody is watching any more. SIGUSR1 cancels, like `batchrun cancel`. A SIGHUP or SIGINT that
was ignored before stays ignored: `nohup` and a shell's background jobs rely on it.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from functools import partial
from typing import Any

from batchrun.config import FORMER_NAMES, InterruptPolicy

CANCEL_SIGNAL = signal.SIGUSR1
"""Cancels from outside, if `batchrun cancel` cannot reach the state file."""


class Wish(Enum):
    """A way to leave."""

    DRAIN = "drain"
    """Submit nothing more, collect the jobs in flight."""
    CANCEL = "cancel"
    """Submit nothing more, cancel the jobs in flight."""
    LEAVE = "leave"
    """Leave at once; the jobs in flight keep running at the endpoint."""

    @classmethod
    def _missing_(cls, value: object) -> Wish | None:
        return cls(FORMER_NAMES[value]) if isinstance(value, str) and value in FORMER_NAMES else None


class Leaving:
    """Lets another thread ask a session to leave. A wish from before the session begins takes effect when it does."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal may arrive while it is held
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tell: Callable[[Wish], None] | None = None
        self._early: list[Wish] = []

    def ask(self, wish: Wish) -> None:
        """Ask the session to leave; from any thread or signal handler."""
        with self._lock:
            if self._loop is None or self._tell is None:
                self._early.append(wish)
            else:
                self._loop.call_soon_threadsafe(self._tell, wish)

    @contextmanager
    def heard_by(self, tell: Callable[[Wish], None]) -> Iterator[None]:
        """Call `tell` in the running event loop with each wish."""
        with self._lock:
            self._loop, self._tell = asyncio.get_running_loop(), tell
            for wish in self._early:
                self._loop.call_soon(tell, wish)
        try:
            yield
        finally:
            with self._lock:
                self._loop = self._tell = None


@contextmanager
def cancellable(leaving: Leaving) -> Iterator[None]:
    """Handle `CANCEL_SIGNAL`, from before a session's loop to the end of its last file: by default it would kill.

    Only the main thread receives signals: in any other, nothing is done.
    """
    with _handled({CANCEL_SIGNAL: lambda: leaving.ask(Wish.CANCEL)}):
        yield


@contextmanager
def interruptible(leaving: Leaving, policy: InterruptPolicy) -> Iterator[None]:
    """Handle Ctrl-C, SIGTERM and SIGHUP, if this is the main thread; in any other, nothing is done.

    Args:
        leaving: Asks the session to leave, which may be in another thread.
        policy: What the first Ctrl-C or SIGTERM requests.
    """
    asked = False

    def interrupted() -> None:
        nonlocal asked
        leaving.ask(Wish.LEAVE if asked else Wish(policy))
        asked = True

    hangup = partial(leaving.ask, Wish.LEAVE)
    with _handled({signal.SIGINT: interrupted, signal.SIGTERM: interrupted, signal.SIGHUP: hangup}):
        yield


_listeners: dict[int, list[Callable[[], None]]] = {}
"""The listeners of each signal. Sessions of several tasks begin and end in any order, so they share one handler."""
_previous: dict[int, Any] = {}
"""The handlers from before the first of them began."""


@contextmanager
def _handled(heard: Mapping[signal.Signals, Callable[[], None]]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught = [number for number in heard if _can_be_caught(number)]
    for number in caught:
        _listeners.setdefault(number, []).append(heard[number])
        if number not in _previous:
            _previous[number] = signal.signal(number, _handle)
    try:
        yield
    finally:
        for number in caught:
            _listeners[number].remove(heard[number])
            if not _listeners[number]:
                previous = _previous.pop(number)
                if signal.getsignal(number) is _handle:  # else the program has set another one meanwhile
                    signal.signal(number, previous)


def _can_be_caught(number: signal.Signals) -> bool:
    handler = signal.getsignal(number)
    if handler is signal.SIG_IGN:
        return number not in (signal.SIGHUP, signal.SIGINT)
    return handler is not None  # None is a handler that Python did not set, and could not restore


def _handle(number: int, _: object) -> None:
    for listener in list(_listeners[number]):
        listener()


@contextmanager
def wakeup_fd_kept() -> Iterator[None]:
    """Restore the program's `signal.set_wakeup_fd`, which an event loop in the main thread drops."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
