"""The course of a run over time, in at most a few hundred points. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

MOST_POINTS = 400
"""When there are more, every second point is dropped, and points are taken half as often from then on."""
_LEAST_GAP_S = 1.0
_BLOCKS = "▁▂▃▄▅▆▇█"


class Point(NamedTuple):
    """A run at one moment."""

    at_ms: int
    """UTC epoch milliseconds."""
    window: int
    """How many jobs may be in flight."""
    in_flight: int
    running: int
    """Jobs that were being executed at their last poll."""
    succeeded: int
    failed: int
    output_tokens: int
    """Output tokens of this session."""


class Timeline:
    """The points of a run, over all its sessions.

    Args:
        points: The points of earlier sessions, as returned by `to_json`; anything else is ignored.
    """

    def __init__(self, points: object = None) -> None:
        self._points = [Point(*point) for point in points if _is_point(point)] if isinstance(points, list) else []
        self.is_new = False
        """Whether there are points that `to_json` has not returned yet."""
        self._gap_s = _LEAST_GAP_S
        if len(self._points) > 1:
            gaps = sorted(b.at_ms - a.at_ms for a, b in zip(self._points, self._points[1:], strict=False))
            self._gap_s = max(gaps[len(gaps) // 2] / 1000, _LEAST_GAP_S)

    def is_due(self, at_ms: int) -> bool:
        """Whether it is time to add a point."""
        # If the clock was set back since an earlier session, points must still be added.
        return not self._points or abs(at_ms - self._points[-1].at_ms) >= self._gap_s * 1000

    def add(self, point: Point) -> None:
        """Add a point."""
        self._points.append(point)
        self.is_new = True
        if len(self._points) > MOST_POINTS:
            self._points = self._points[::2]
            self._gap_s *= 2

    def to_json(self) -> list[Any]:
        """The points as JSON values."""
        self.is_new = False
        return [list(point) for point in self._points]

    def windows(self) -> list[int]:
        """The window over time."""
        return [point.window for point in self._points]


def sparkline(values: list[int], columns: int) -> str:
    """Numbers as a line of block characters, the largest as a full block; a column shows the largest of its numbers."""
    if not values:
        return ""
    columns = min(columns, len(values))
    parts = [values[len(values) * i // columns : len(values) * (i + 1) // columns] for i in range(columns)]
    most = max(values)
    return "".join(_BLOCKS[round(max(part) / most * (len(_BLOCKS) - 1)) if most else 0] for part in parts)


def _is_point(point: object) -> bool:
    return isinstance(point, list) and len(point) == len(Point._fields) and all(type(item) is int for item in point)
