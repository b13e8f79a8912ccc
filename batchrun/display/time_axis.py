"""A run over time, for plots: its pace, its window, and the gaps between its sessions. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from batchrun.display.charts import Axis, Gap, Series, axis
from batchrun.display.timeline import Point
from batchrun.display.units import duration

_UNITS = (("days", 86_400_000), ("hours", 3_600_000), ("minutes", 60_000), ("seconds", 1000))
_UNITS_LEAST = 3
"""A time axis has at least this many of its units, unless they are seconds."""
_GAPS_SHARE = 0.25
"""All gaps together take at most this part of the running time; longer ones are drawn shorter."""
_SILENT = 10
"""A pause this many times as long as the usual one between points is a gap: the computer slept."""
_SILENT_MS = 30_000
"""No pause below this is one: a busy computer may be late."""
_MOST_STEPS = 100


class TimeAxis:
    """The time axis of a run, as long as its sessions together, and what was measured on it.

    Args:
        sessions: When each session began and last wrote, in UTC epoch milliseconds, in order.
        points: The run's timeline.
    """

    def __init__(self, sessions: Sequence[tuple[int, int]], points: Sequence[Point]) -> None:
        spans = _merged(sessions) or [(0, 0)]
        self._parts = _parts(spans, points)
        spans = _without_pauses(spans, self._parts)
        total_ms = sum(end - start for start, end in spans) or 1
        pauses = [after[0] - before[1] for before, after in pairwise(spans)]
        most_ms = total_ms * _GAPS_SHARE
        # Short pauses keep their length; what they leave is divided among the longer ones.
        widths, left = [0.0] * len(pauses), len(pauses)
        for index in sorted(range(len(pauses)), key=pauses.__getitem__):
            widths[index] = min(pauses[index], most_ms / left)
            most_ms, left = most_ms - widths[index], left - 1
        self._wall, self._drawn, self._ran = [], [], []
        drawn = ran = 0.0
        for (start, end), width in zip(spans, [*widths, 0.0], strict=True):
            self._wall += [start, end]
            self._drawn += [drawn, drawn + end - start]
            self._ran += [ran, ran + end - start]
            drawn, ran = drawn + end - start + width, ran + end - start
        self.axis = self._axis(pauses)
        self.is_known = any(len(part) > 1 for part in self._parts)
        """Whether there is a line to draw."""

    def _axis(self, pauses: list[int]) -> Axis:
        total_ms = self._ran[-1]
        unit, unit_ms = next((each for each in _UNITS if total_ms >= _UNITS_LEAST * each[1]), _UNITS[-1])
        marks = axis(0, total_ms / unit_ms, ticks=6).ticks
        ticks = tuple((self._of_running(at * unit_ms), label) for at, label in marks if at * unit_ms <= total_ms)
        gaps = tuple(
            Gap(self._drawn[2 * index + 1], self._drawn[2 * index + 2], f"pause of {duration(ms / 1000)}")
            for index, ms in enumerate(pauses)
        )
        return Axis(0, self._drawn[-1] or 1.0, ticks, f"{unit} of running time", gaps)

    def _of_running(self, ran_ms: float) -> float:
        index = min(bisect_right(self._ran, ran_ms), len(self._ran) - 1) // 2 * 2
        return self._drawn[index] + ran_ms - self._ran[index]

    def at(self, at_ms: int) -> float:
        """Where a moment is on the axis; a moment outside all sessions is at an end or in a gap."""
        after = bisect_right(self._wall, at_ms)
        if after in (0, len(self._wall)):
            return self._drawn[0 if after == 0 else -1]
        (a, b), (low, high) = self._wall[after - 1 : after + 1], self._drawn[after - 1 : after + 1]
        return low + (high - low) * (at_ms - a) / max(b - a, 1)

    def values(self, label: str, name: str) -> Series:
        """A field of the points."""
        return Series(label, [[(self.at(p.at_ms), getattr(p, name)) for p in part] for part in self._parts])

    def pace(self, label: str, *names: str) -> tuple[str, Series]:
        """How fast the sum of some fields grew, as steps; and the unit: `second`, `minute` or `hour`."""
        every = -(-sum(map(len, self._parts)) // _MOST_STEPS)
        parts = []
        for part in self._parts:
            kept = part[::every] if len(part) <= every or (len(part) - 1) % every == 0 else [*part[::every], part[-1]]
            steps = []
            for a, b in pairwise(kept):
                grown = sum(getattr(b, name) - getattr(a, name) for name in names)
                rate = max(grown, 0) * 1000 / max(b.at_ms - a.at_ms, 1)
                steps += [(self.at(a.at_ms), rate), (self.at(b.at_ms), rate)]
            parts.append(steps)
        factor, unit = unit_of_rate(max((rate for steps in parts for _, rate in steps), default=0.0))
        return unit, Series(label, [[(x, rate * factor) for x, rate in steps] for steps in parts])


def unit_of_rate(per_s: float) -> tuple[int, str]:
    """The unit in which a rate is at least 1, if there is one: the factor to multiply it by, and the unit's name."""
    return (1, "second") if per_s >= 1 else (60, "minute") if per_s * 60 >= 1 else (3600, "hour")


def _merged(sessions: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sessions in order and without overlap, even if the clock was set back."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(sessions):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, max(end, start)))
    return found


def _parts(spans: list[tuple[int, int]], points: Sequence[Point]) -> list[list[Point]]:
    """The points of each session, also divided where the computer slept."""
    points = sorted(points)
    usual = sorted(b.at_ms - a.at_ms for a, b in pairwise(points))
    silent_ms = max(usual[len(usual) // 2] * _SILENT, _SILENT_MS) if usual else _SILENT_MS
    starts = [start for start, _ in spans]
    parts: list[list[Point]] = []
    last: Point | None = None
    for point in points:
        is_next = last is None or bisect_right(starts, last.at_ms) != bisect_right(starts, point.at_ms)
        if is_next or (last is not None and point.at_ms - last.at_ms > silent_ms):
            parts.append([])
        parts[-1].append(point)
        last = point
    return parts


def _without_pauses(spans: list[tuple[int, int]], parts: list[list[Point]]) -> list[tuple[int, int]]:
    """Sessions, divided where the computer slept."""
    found = []
    for start, end in spans:
        for before, after in pairwise(parts):
            if start < before[-1].at_ms and after[0].at_ms < end:
                found.append((start, before[-1].at_ms))
                start = after[0].at_ms  # noqa: PLW2901 - the rest of the session
        found.append((start, end))
    return found
