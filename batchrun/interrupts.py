"""The ways to leave a session: which signal asks for which.

The first Ctrl-C or SIGTERM does what the user has chosen, the second detaches: whoever asks twice wants to be gone.
SIGHUP detaches, because nobody is left to watch. SIGUSR1 cancels: `batchrun cancel` sends it to a run that goes on.
A hangup or an interrupt that was ignored before stays ignored: `nohup` and a shell's background jobs mean it.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from batchrun.config import InterruptPolicy

CANCEL_SIGNAL = signal.SIGUSR1
"""Sent by `batchrun cancel` to the process that drives the run."""


class Wish(Enum):
    """A way to leave."""

    DRAIN = "drain"
    """Submit nothing more, collect what is in flight."""
    CANCEL = "cancel"
    """Submit nothing more, cancel what is in flight."""
    DETACH = "detach"
    """Leave at once; what is in flight goes on at the endpoint."""


def interrupt_by_signals() -> None:
    """Let SIGTERM and SIGHUP end what goes on outside of an event loop as Ctrl-C does: by KeyboardInterrupt.

    To be called again after each event loop that has caught them. A hangup that is ignored stays ignored.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


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
def catching_for(leaving: Leaving, policy: InterruptPolicy | None = None) -> Iterator[None]:
    """Catch the signals for a session in another thread: they come to the main thread only. Elsewhere nothing is done.

    Args:
        leaving: Asks the session.
        policy: What the first Ctrl-C or SIGTERM asks for; None: those are left alone, and only `batchrun cancel` heard.
    """
    asked = False

    def interrupted(*_: object) -> None:
        nonlocal asked
        leaving.ask(Wish.DETACH if asked else Wish(policy))
        asked = True

    handlers: dict[signal.Signals, Callable[..., None]] = {CANCEL_SIGNAL: lambda *_: leaving.ask(Wish.CANCEL)}
    if policy is not None:
        handlers |= {signal.SIGINT: interrupted, signal.SIGTERM: interrupted}
    if threading.current_thread() is not threading.main_thread():
        handlers = {}
    before = {number: signal.getsignal(number) for number in handlers}
    caught = [number for number in handlers if before[number] is not signal.SIG_IGN or number is CANCEL_SIGNAL]
    for number in caught:
        signal.signal(number, handlers[number])
    try:
        yield
    finally:
        for number in caught:
            # None is a handler that is not Python's, and cannot be put back by it.
            signal.signal(number, before[number] or signal.SIG_DFL)


@contextmanager
def catching(policy: InterruptPolicy, tell: Callable[[Wish], None]) -> Iterator[None]:
    """Catch the signals in the running event loop.

    Args:
        policy: What the first Ctrl-C or SIGTERM asks for.
        tell: Called with each wish.
    """
    loop = asyncio.get_running_loop()
    asked = False

    def interrupted() -> None:
        nonlocal asked
        wish = Wish.DETACH if asked else Wish(policy)
        asked = True
        tell(wish)

    caught = []
    for number, handler in (
        (signal.SIGINT, interrupted),
        (signal.SIGTERM, interrupted),
        (signal.SIGHUP, lambda: tell(Wish.DETACH)),
        (CANCEL_SIGNAL, lambda: tell(Wish.CANCEL)),
    ):
        if number in (signal.SIGHUP, signal.SIGINT) and signal.getsignal(number) is signal.SIG_IGN:
            continue
        try:
            loop.add_signal_handler(number, handler)
        except (NotImplementedError, RuntimeError, ValueError):
            continue
        caught.append(number)
    try:
        yield
    finally:
        for number in caught:
            loop.remove_signal_handler(number)
        if CANCEL_SIGNAL in caught:
            # Left to its default it would kill a session that is writing its error files; `batchrun cancel` only waits.
            signal.signal(CANCEL_SIGNAL, signal.SIG_IGN)
