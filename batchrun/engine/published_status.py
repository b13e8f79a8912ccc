"""What other processes read about a run: its timeline and its present status. It is written with other commits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from batchrun.display.live import LiveRecord
from batchrun.display.pace import PaceCounts
from batchrun.display.summary import Snapshot, merged
from batchrun.display.timeline import Point, Timeline

_POINTS_FIRST_S, _POINTS_EVERY_S = 1.0, 15.0
"""How often the points since the first session are written: often at first, so that a short session leaves some."""
_LIVE_EVERY_S = 1.0
"""How often the present status is written, if there are commits that often."""


class PublishedStatus:
    """The timeline of a run over all its sessions, and its present status.

    Args:
        points: The timeline of earlier sessions, as it was stored.
        session: The number of this session.
        wall: UTC epoch seconds.
    """

    def __init__(self, points: object, session: int, wall: Callable[[], float]) -> None:
        self._timeline = Timeline(points)
        self._pace = PaceCounts()
        self._session = session
        self._wall = wall
        self.look: Callable[[], Mapping[str, Snapshot]] = dict
        """Gives the present parts of the run, by endpoint ID; empty at first."""
        self._parts: dict[str, Snapshot] = {}
        self._told: object = []
        self._points_at = self._live_at = float("-inf")
        self._points_after_s = _POINTS_FIRST_S

    def update(self, parts: Mapping[str, Snapshot]) -> Snapshot:
        """Note the present status.

        Args:
            parts: Endpoint ID -> its part of the run.

        Returns:
            The run as a whole.
        """
        self._parts = dict(parts)
        whole, at_ms = merged(parts), round(self._wall() * 1000)
        self._pace.note(whole.elapsed_s, whole.ended_in_session)
        if self._timeline.is_due(at_ms):
            w = whole
            self._timeline.add(Point(at_ms, w.window, w.in_flight, w.running, w.succeeded, w.failed, w.output_tokens))
        return whole

    @property
    def is_news(self) -> bool:
        """Whether a change has not been written yet."""
        return self._news() != self._told

    def take(self, now: float, *, is_last: bool) -> dict[str, Any]:
        """The settings to write now, by name.

        Args:
            now: Monotonic seconds.
            is_last: Whether the session ends.
        """
        found: dict[str, Any] = {}
        if (is_last or now - self._live_at >= _LIVE_EVERY_S) and (parts := self.look()):
            self.update(parts)
            self._live_at, self._told = now, self._news()
            found["live"] = LiveRecord(self._session, round(self._wall() * 1000), self._parts, self._pace).to_json()
        if self._timeline.is_new and (is_last or now - self._points_at >= self._points_after_s):
            self._points_at, self._points_after_s = now, min(2 * self._points_after_s, _POINTS_EVERY_S)
            found["timeline"] = self._timeline.to_json()
        return found

    def _news(self) -> object:
        """The changes that are worth a write of their own: all but times and costs."""
        return [(p.stopping, p.note, p.workers, p.window, p.queued, p.running, p.waiting) for p in self._parts.values()]
