"""The event loop of a command: uvloop if it is installed. A calling program's own event loop is left alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from batchrun.engine.signals import wakeup_fd_kept

T = TypeVar("T")


def in_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end."""
    with wakeup_fd_kept(), asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(work)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """The function that makes a loop. Without it, a runner would set, and finally unset, the program's event loop."""
    found: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with contextlib.suppress(ImportError):
        import uvloop  # noqa: PLC0415 - it may not be installed

        found = uvloop.new_event_loop
    return found
