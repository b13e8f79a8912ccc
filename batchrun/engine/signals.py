"""The ways to leave a session: which signal asks for which.

The first Ctrl-C or SIGTERM does what the user has chosen, the second detaches: whoever asks twice wants to be gone.
SIGHUP detaches, because nobody is left to watch. SIGUSR1 cancels, as `batchrun cancel` does.
A hangup or an interrupt that was ignored before stays ignored: `nohup` and a shell's background jobs mean it.
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

from batchrun.config import InterruptPolicy

CANCEL_SIGNAL = signal.SIGUSR1
"""Cancels from outside where `batchrun cancel` cannot reach the state file."""


class Wish(Enum):
    """A way to leave."""

    DRAIN = "drain"
    """Submit nothing more, collect what is in flight."""
    CANCEL = "cancel"
    """Submit nothing more, cancel what is in flight."""
    DETACH = "detach"
    """Leave at once; what is in flight goes on at the endpoint."""


class Leaving:
    """How another thread asks a session to leave; what is asked before the session has begun is heard then."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal may come while it is held
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tell: Callable[[Wish], None] | None = None
        self._early: list[Wish] = []

    def ask(self, wish: Wish) -> None:
        """Ask to leave; from any thread, or from a signal handler."""
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
    """Hear the signal, from before a session's loop to the end of its last file: by default it would kill.

    Signals come to the main thread only: in another one nothing is done.
    """
    with _caught({CANCEL_SIGNAL: lambda: leaving.ask(Wish.CANCEL)}):
        yield


@contextmanager
def interruptible(leaving: Leaving, policy: InterruptPolicy) -> Iterator[None]:
    """Hear Ctrl-C, SIGTERM and SIGHUP, if this is the main thread; in another one nothing is done.

    Args:
        leaving: Asks the session, which may be one in another thread.
        policy: What the first Ctrl-C or SIGTERM asks for.
    """
    asked = False

    def interrupted() -> None:
        nonlocal asked
        leaving.ask(Wish.DETACH if asked else Wish(policy))
        asked = True

    hangup = partial(leaving.ask, Wish.DETACH)
    with _caught({signal.SIGINT: interrupted, signal.SIGTERM: interrupted, signal.SIGHUP: hangup}):
        yield


_hearers: dict[int, list[Callable[[], None]]] = {}
"""Who hears each signal. Sessions of several tasks begin and end in any order, so they share one handler."""
_found: dict[int, Any] = {}
"""The handlers that were there before the first of them began."""


@contextmanager
def _caught(heard: Mapping[signal.Signals, Callable[[], None]]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught = [number for number in heard if _can_be_caught(number)]
    for number in caught:
        _hearers.setdefault(number, []).append(heard[number])
        if number not in _found:
            _found[number] = signal.signal(number, _hear)
    try:
        yield
    finally:
        for number in caught:
            _hearers[number].remove(heard[number])
            if not _hearers[number]:
                found = _found.pop(number)
                if signal.getsignal(number) is _hear:  # else the program has set another meanwhile
                    signal.signal(number, found)


def _can_be_caught(number: signal.Signals) -> bool:
    handler = signal.getsignal(number)
    if handler is signal.SIG_IGN:
        return number not in (signal.SIGHUP, signal.SIGINT)
    return handler is not None  # None is a handler that is not Python's, and could not be put back


def _hear(number: int, _: object) -> None:
    for hear in list(_hearers[number]):
        hear()


@contextmanager
def wakeup_fd_kept() -> Iterator[None]:
    """Put back the program's `signal.set_wakeup_fd`, which an event loop in its main thread drops."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    found = signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        signal.set_wakeup_fd(found)
