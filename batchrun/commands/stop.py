"""`batchrun stop`: ends the process that drives a run, as a signal would."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from batchrun.commands.asking import ask_to_end
from batchrun.engine.clock import steady_s
from batchrun.errors import StateError
from batchrun.scheduler.states import RowState
from batchrun.state import figures
from batchrun.state.lock import CANCEL, LEAVE, STOP, Holder, holder
from batchrun.state.reader import StateReader
from batchrun.state.stored_options import read_options

How = Literal["interrupt", "leave", "cancel"]

_REQUESTS = {"interrupt": STOP, "leave": LEAVE, "cancel": CANCEL}
_WORDS = {
    "drain": "to collect its jobs in flight and exit",
    "leave": "to leave its jobs in flight and exit",
    "cancel": "to cancel its jobs in flight and exit",
    "interrupt": "to exit, as soon as it has read its input",
}


def stop(state: Path, how: How, tell: Callable[[str], None]) -> str:
    """End the process that drives a run, and wait until it has exited.

    Args:
        state: The run's state file.
        how: `interrupt` does what the run does at an interrupt.
        tell: Called with a message once the process has been asked.

    Returns:
        How the run ended, for people.

    Raises:
        StateError: there is no such run, or its process does not respond.
    """
    policy: str = how
    if how == "interrupt":
        try:
            with StateReader(state) as store:
                policy = read_options(store).guards.on_interrupt
        except StateError:
            if holder(state) is None:
                raise

    def asked(who: Holder) -> None:
        tell(f"this run is driven by {who}, which was asked {_WORDS[policy]}")

    was_running = ask_to_end(state, _REQUESTS[how], asked, clock=steady_s, pause=time.sleep)
    with StateReader(state) as store:
        return _ending(store, time.time(), was_running=was_running)


def _ending(store: StateReader, now: float, *, was_running: bool) -> str:
    counts, sessions = store.counts(), figures.sessions(store)
    outcome = (sessions[-1].outcome if sessions else None) or "killed"
    text = f"{outcome}: " if was_running else f"no process drives {store.path}; its last session: {outcome}, "
    text += f"{counts[RowState.SUCCEEDED]:,} of {sum(counts.values()):,} rows succeeded"
    in_flight = counts[RowState.SUBMITTED] + counts[RowState.SUBMITTING]
    rest = {"failed": counts[RowState.FAILED], "in flight": in_flight}
    text += "".join(f", {count:,} {name}" for name, count in rest.items() if count)
    if in_flight + counts[RowState.PENDING] + counts[RowState.HELD]:
        text += f"\n  resume: batchrun resume {shlex.quote(str(store.path))}"
        by = figures.rescue_by(store, now)
        if by is not None:
            left = max(by - now, 0)
            text += f"\n  within {left / 60:.0f} min, or results of jobs in flight may be lost"
    return text
