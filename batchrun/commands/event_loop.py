"""The event loop of a command: the faster one where it is installed, and nothing left behind in a program's process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from batchrun.engine.signals import wakeup_fd_kept

T = TypeVar("T")


def in_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end."""
    with wakeup_fd_kept(), asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(work)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes a loop. Without one a runner would also set, and in the end unset, the event loop of a program."""
    found: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with contextlib.suppress(ImportError):
        import uvloop  # noqa: PLC0415 - it may not be there

        found = uvloop.new_event_loop
    return found
