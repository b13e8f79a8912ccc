"""Decide when to report an obstacle: once, if it lasts; and when it is over. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from batchrun.display.summary import Observer
from batchrun.display.units import duration
from batchrun.scheduler import commands as cmd

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


class Stop(NamedTuple):
    """An engine submits nothing more; this says why, and what happens to its jobs in flight."""

    why: str
    """The reason; empty if the user asked for it."""
    jobs: int
    """The number of jobs in flight."""
    drain_s: float | None
    """How long they may take; None if unknown."""
    is_cancel: bool = False
    """Whether they are cancelled instead of collected."""


def joint_message(stops: Sequence[Stop]) -> str:
    """One message for all engines that stop for the same reason and in the same way."""
    jobs = sum(stop.jobs for stop in stops)
    drain_s = max((stop.drain_s for stop in stops if stop.drain_s is not None), default=None)
    why, *_, is_cancel = stops[0]
    if not jobs:
        what = "nothing is in flight"
    elif is_cancel:
        what = f"cancelling the {jobs:,} jobs in flight, queued ones first"
    else:
        time = "" if drain_s is None else f", which may take {duration(max(drain_s, 1.0))}"
        what = f"collecting the {jobs:,} jobs in flight, submitting nothing more{time}"
    return f"stopping: {why}; {what}" if why else f"stopping: {what}; Ctrl-C again exits at once"


class EngineObserver(Observer, Protocol):
    """Receives the progress and the messages of an engine."""

    def stopping(self, stop: Stop) -> None:
        """Called when the engine submits nothing more, although rows are left."""
