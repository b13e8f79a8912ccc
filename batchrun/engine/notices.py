"""When to say aloud that something is in the way: once, when it lasts, and when it is over. Pure."""

from __future__ import annotations

from batchrun.display.units import duration

_LASTS_S = 5.0
"""What is over sooner is nobody's business."""
_REPEAT_S = 300.0
"""A reason that has changed is told again after so long: each probe may fail with words of its own."""


class Notices:
    """Makes lines for a log out of a note that may change with every look."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._clear_since: float | None = None
        self._said = ""
        self._said_at = 0.0

    def look(self, note: str, now: float) -> str | None:
        """What to say, given what is in the way now (empty: nothing); None: nothing new."""
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
        return f"going on after {duration(lasted_s)}" if said else None
