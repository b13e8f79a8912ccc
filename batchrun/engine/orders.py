"""The requests of other processes to a session: to stop, to cancel, to leave, or to change something."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from batchrun.config import InterruptPolicy
from batchrun.engine.signals import Wish
from batchrun.errors import BatchrunError
from batchrun.scheduler.events import Tuned
from batchrun.state.lock import CANCEL, LEAVE, STOP, StateLock
from batchrun.state.store import Store
from batchrun.state.tunings import Requests, Tuning, record_applied

_LOG = logging.getLogger(__name__)


class Orders:
    """Checks for requests of other processes.

    Args:
        lock: The lock of the state file.
        store: The state file.
        policy: What an interrupt does; a request to stop does the same.
        thread: The thread in which the state file is used.
        now_ms: UTC epoch milliseconds.
    """

    def __init__(
        self,
        lock: StateLock,
        store: Store,
        policy: InterruptPolicy,
        *,
        thread: ThreadPoolExecutor,
        now_ms: Callable[[], int],
    ) -> None:
        self._lock = lock
        self._store = store
        self._requests = Requests(store)
        self._thread = thread
        self._now_ms = now_ms
        self._wishes = [(STOP, Wish(policy)), (CANCEL, Wish.CANCEL), (LEAVE, Wish.LEAVE)]
        """The requests that have not been seen yet, the mildest first."""

    def wish(self) -> Wish | None:
        """How another process wants the session to end; None if there is no new request."""
        for index in reversed(range(len(self._wishes))):
            byte, wish = self._wishes[index]
            if self._lock.is_requested(byte):
                del self._wishes[: index + 1]
                return wish
        return None

    async def change(self, *, is_ending: bool) -> Tuned | None:
        """What another process wants to change; None if nothing.

        It is recorded, for the process that asks and for later sessions.

        Args:
            is_ending: Whether the run is about to end, so that the change is too late for it.
        """

        def look() -> Tuned | None:
            found = self._requests.next()
            if found is None:
                return None
            number, change = found
            record_applied(self._store, Tuning(number, self._now_ms(), change, is_ending))
            return change

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, look)
        except BatchrunError as error:
            # The journal is about to get the same error.
            _LOG.warning("requests to tune the run cannot be read: %s", error.message)
            return None


def as_options(change: Tuned) -> str:
    """A change as the options of the command line."""
    words = []
    if change.concurrency is not None:
        words.append(f"-j {change.concurrency}")
    if change.max_cost is not None:
        words.append(f"--max-cost {_limit(change.max_cost, f'{change.max_cost:g}')}")
    if change.deadline_s is not None:
        words.append(f"--deadline {_limit(change.deadline_s, _time(change.deadline_s))}")
    if change.is_paused is not None:
        words.append("--pause" if change.is_paused else "--resume")
    return " ".join(words)


def _limit(value: float, shown: str) -> str:
    return "off" if value == math.inf else shown


def _time(seconds: float) -> str:
    """As on the command line: `10h`, `90m`, `45s`."""
    unit, size_s = next((u, s) for u, s in (("h", 3600), ("m", 60), ("s", 1)) if seconds % s == 0 or s == 1)
    return f"{seconds / size_s:g}{unit}"
