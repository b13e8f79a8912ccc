"""Plots of how times and failures are distributed. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil, floor, log10

from batchrun.display.charts import Axis, axis, bars, key
from batchrun.display.page import section
from batchrun.display.time_axis import TimeAxis
from batchrun.display.units import duration

_BINS = 40
_WIDE = 30
"""If the longest time is this many times the shortest, the scale is logarithmic."""
_LEAST_S = 0.001
_MARKS = (
    *((0.001, "1 ms"), (0.01, "10 ms"), (0.1, "100 ms"), (1.0, "1 s"), (10.0, "10 s"), (60.0, "1 min")),
    *((600.0, "10 min"), (3600.0, "1 h"), (36_000.0, "10 h"), (360_000.0, "100 h")),
)
"""The marks of a logarithmic scale, in seconds."""
_UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0), ("milliseconds", 0.001))
_KINDS = 5
"""This many kinds have their own colour; the others share the last colour."""


def times(title: str, values: Sequence[tuple[float, int]]) -> list[str]:
    """A section with the distribution of times; none if no time was measured.

    Args:
        title: Its heading.
        values: Times in seconds, and the number of jobs that took each.
    """
    high = max(values, default=(0.0, 0))[0]
    if high <= 0:
        return []
    low = max(min(values)[0], _LEAST_S)
    is_log = high > _WIDE * low
    across = _logarithmic(low, high) if is_log else _linear(high)
    edges = [across.low + (across.high - across.low) * number / _BINS for number in range(_BINS + 1)]
    counts = [0.0] * _BINS
    for value, count in values:
        share = across.share(log10(max(value, _LEAST_S)) if is_log else value)
        counts[min(max(int(share * _BINS), 0), _BINS - 1)] += count
    drawn = bars(title, across, axis(0, max(counts), ticks=4, whole=True), edges, [counts])
    half, most, nearly = _percentiles(values, (0.5, 0.9, 0.99))
    return [section(title, drawn, f"Half took at most {half}, 90% at most {most}, 99% at most {nearly}.")]


def _linear(high: float) -> Axis:
    unit, seconds = next((unit for unit in _UNITS if high >= unit[1]), _UNITS[-1])
    scale = axis(0, high / seconds, unit)
    return Axis(0, scale.high * seconds, tuple((at * seconds, label) for at, label in scale.ticks), unit)


def _logarithmic(low: float, high: float) -> Axis:
    ends = floor(log10(low) * 10) / 10, ceil(log10(high) * 10) / 10
    ticks = tuple((log10(at), label) for at, label in _MARKS if ends[0] <= log10(at) <= ends[1])
    return Axis(*ends, ticks, "time, on a logarithmic scale")


def _percentiles(values: Sequence[tuple[float, int]], shares: Sequence[float]) -> list[str]:
    """Nearest-rank percentiles for ascending shares."""
    total = sum(count for _, count in values)
    found: list[str] = []
    seen = 0
    for value, count in sorted(values):
        seen += count
        while len(found) < len(shares) and seen > min(int(shares[len(found)] * total), total - 1):
            found.append(duration(value))
    return found


def failures(title: str, time: TimeAxis, found: Sequence[tuple[str, int, int]]) -> str:
    """A section with failures over the time of a run: kind, UTC epoch milliseconds, and their number."""
    totals = Counter[str]()
    for kind, _, count in found:
        totals[kind] += count
    kinds = [kind for kind, _ in totals.most_common(_KINDS)]
    labels = [*kinds, "other"] if len(totals) > _KINDS else kinds
    across = time.axis
    edges = [across.low + (across.high - across.low) * number / _BINS for number in range(_BINS + 1)]
    counts = [[0.0] * _BINS for _ in labels]
    for kind, at_ms, count in found:
        number = kinds.index(kind) if kind in kinds else len(labels) - 1
        counts[number][min(int(across.share(time.at(at_ms)) * _BINS), _BINS - 1)] += count
    up = axis(0, max(map(sum, zip(*counts, strict=True))), ticks=4, whole=True)
    return section(title, key(labels) + bars(title, across, up, edges, counts))
