"""How one process asks the process that drives a run to end.

The request is a lock on the state file (`batchrun.files.locks`), not a signal: a process ID may belong to another
container or host, whereas a lock is seen only by the process that holds this very file.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from batchrun.errors import StateError
from batchrun.state.lock import Holder, Request, holder, signs_of_life

_LOOK_AGAIN_S = 0.2
_PATIENCE_S = 9.0
"""A run that was asked to end gives a sign of life every two seconds, on a busy machine a little later."""


def ask_to_end(
    state: Path,
    what: int,
    asked: Callable[[Holder], None],
    *,
    clock: Callable[[], float],
    pause: Callable[[float], None],
    patience_s: float = _PATIENCE_S,
) -> bool:
    """Ask the process that drives a run to end, and wait until it has exited; False if none drives it.

    Args:
        state: The run's state file.
        what: How it should end, such as `lock.CANCEL`.
        asked: Called with the process once it has been asked.
        clock: Monotonic seconds.
        pause: Sleeps for this many seconds.
        patience_s: How long it may give no sign of life, in seconds.

    Raises:
        StateError: the process cannot be asked, or gives no sign of life.
    """
    who = holder(state)
    if who is None:
        return False
    with closing(Request(state, what)):
        asked(who)
        seen, seen_at = signs_of_life(state, who), clock()
        while (now := holder(state)) is not None:
            who = now
            if (signs := signs_of_life(state, who)) != seen:
                seen, seen_at = signs, clock()
            if clock() - seen_at > patience_s:
                raise no_answer(state, who)
            pause(_LOOK_AGAIN_S)
    return True


def no_answer(state: Path, who: Holder) -> StateError:
    """The process that drives a run gives no sign of life."""
    return StateError(
        f"{state} is in use by {who}, which does not respond",
        f"wake it (kill -CONT {who.pid}) or end it (kill {who.pid}), then give the same command again"
        if who.pid and not who.place
        else "end it where it runs, then give the same command again",
    )
