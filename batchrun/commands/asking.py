"""How one process asks another, the one that drives a run, to cancel and to end.

It is asked through a lock on the state file (`batchrun.files.locks`), not by a signal: a process ID may be of another
container or host by now, and a lock says nothing to anybody but the holder of this very file.
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
"""A run that is asked to end gives a sign of life every two seconds; on a busy machine a little later."""


def ask_to_cancel(
    state: Path, observer: Observer, *, clock: Callable[[], float], pause: Callable[[float], None]
) -> None:
    """Ask the process that drives a run to cancel its jobs, and wait until it is gone; nothing, when there is none.

    Args:
        state: The run's state file.
        observer: Told that another process has been asked.
        clock: Monotonic seconds.
        pause: Waits for so many seconds.

    Raises:
        StateError: it cannot be asked, or it shows no sign of life.
    """
    who = holder(state)
    if who is None:
        return
    with closing(Request(state, CANCEL)):
        observer.message(f"{who} drives this run: it cancels its jobs and ends")
        seen, seen_at = signs_of_life(state, who), clock()
        while (now := holder(state)) is not None:
            who = now
            if (signs := signs_of_life(state, who)) != seen:
                seen, seen_at = signs, clock()
            if clock() - seen_at > _PATIENCE_S:
                raise StateError(
                    f"{state} is in use by {who}, which does not answer: it shows no sign of life",
                    f"wake it (kill -CONT {who.pid}) or end it (kill {who.pid}), then run the same command"
                    if who.pid and not who.place
                    else "end it where it runs, then run the same command",
                )
            pause(_LOOK_AGAIN_S)
