"""Decide when to report an obstacle: once, if it lasts; and when it is over. Pure."""

from __future__ import annotations

from batchrun.display.units import duration
from batchrun.scheduler import commands as cmd
from batchrun.scheduler.scheduler import Scheduler

_LASTS_S = 5.0
"""Shorter obstacles are not reported."""
_REPEAT_S = 300.0
"""A changed reason is reported only after this time: each probe may fail with different words."""


class Notices:
    """Makes messages of a note that may change whenever it is looked at."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._clear_since: float | None = None
        self._said = ""
        self._said_at = 0.0

    def look(self, note: str, now: float) -> str | None:
        """The message to show for the present obstacle, empty if there is none; None for no message."""
        if not note:
            return self._clear(now)
        self._clear_since = None
        if self._since is None:
            self._since = now
        if now - self._since < _LASTS_S or note == self._said:
            return None
        if self._said and now - self._said_at < _REPEAT_S:
            return None
        self._said, self._said_at = note, now
        return note

    def _clear(self, now: float) -> str | None:
        if self._since is None:
            return None
        if self._clear_since is None:
            self._clear_since = now
        if now - self._clear_since < _LASTS_S and self._said:
            return None
        lasted_s, said = now - self._since, self._said
        self._since, self._clear_since, self._said = None, None, ""
        return f"continuing after {duration(lasted_s)}" if said else None


def message_of(command: cmd.Tell | cmd.Leave | cmd.Return) -> str:
    """What to tell the user, for instance when an endpoint leaves its pool, or comes back."""
    if isinstance(command, cmd.Tell):
        return command.message
    if isinstance(command, cmd.Return):
        return "it answers again, and gets rows again"
    return f"it gets no more rows until it answers again: {command.error.message} ({command.error.hint})"


def collecting(scheduler: Scheduler, now: float) -> str:
    """How a run that submits nothing more goes on, as a clause."""
    if not scheduler.in_flight:
        return "nothing is in flight"
    drain_s = scheduler.drain_s(now)
    time = "" if drain_s is None else f", which may take {duration(max(drain_s, 1.0))}"
    return f"collecting the {scheduler.in_flight:,} jobs in flight, submitting nothing more{time}"
