"""How one process asks the process that drives a run to cancel its jobs and to exit.

The request is a lock on the state file (`batchrun.files.locks`), not a signal: a process ID may belong to another
container or host, whereas a lock is seen only by the process that holds this very file.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from batchrun.display.summary import Observer
from batchrun.errors import StateError
from batchrun.state.lock import CANCEL, Request, holder, signs_of_life

_LOOK_AGAIN_S = 0.2
_PATIENCE_S = 9.0
"""A run that was asked to cancel gives a sign of life every two seconds, on a busy machine a little later."""


def ask_to_cancel(
    state: Path, observer: Observer, *, clock: Callable[[], float], pause: Callable[[float], None]
) -> bool:
    """Ask the process that drives a run to cancel its jobs, and wait until it has exited; False if none drives it.

    Args:
        state: The run's state file.
        observer: Receives a message if another process was asked.
        clock: Monotonic seconds.
        pause: Sleeps for this many seconds.

    Raises:
        StateError: the process cannot be asked, or gives no sign of life.
    """
    who = holder(state)
    if who is None:
        return False
    with closing(Request(state, CANCEL)):
        observer.message(f"this run is driven by {who}, which was asked to cancel its jobs and exit")
        seen, seen_at = signs_of_life(state, who), clock()
        while (now := holder(state)) is not None:
            who = now
            if (signs := signs_of_life(state, who)) != seen:
                seen, seen_at = signs, clock()
            if clock() - seen_at > _PATIENCE_S:
                raise StateError(
                    f"{state} is in use by {who}, which does not respond",
                    f"wake it (kill -CONT {who.pid}) or end it (kill {who.pid}), then give the same command again"
                    if who.pid and not who.place
                    else "end it where it runs, then give the same command again",
                )
            pause(_LOOK_AGAIN_S)
    return True
