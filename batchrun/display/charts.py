"""Plots as SVG that takes its colours and fonts from the page. Pure.

A plot has no script, no `id` and no style of its own, so it works under a strict policy. Strips and bars are drawn in
percent of the width they get; the others are drawn for a card of half the page, and scaled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from math import floor, log10
from typing import NamedTuple

from batchrun.display.text import visible

COLOURS = 6
"""The page has this many colours; a further series begins again with the first."""
_WIDTH, _HEIGHT = 440.0, 220.0
_RIGHT, _TOP, _BOTTOM = 22.0, 12.0, 40.0
_CHAR = 7.0
"""The usual width of a character of a label."""
_STRIP = (3.0, 97.0)
"""The part of a strip that the scale takes, in percent: marks at its ends are not cut off."""
_GAP_LABEL_CHARS = 30
_RADIUS = 8.5
_LEAST_SPAN = 1e-9
"""A scale with a smaller span, relative to its values, would have marks that look the same."""


class Gap(NamedTuple):
    """A part of an axis where nothing was measured."""

    low: float
    high: float
    label: str


class Axis(NamedTuple):
    """The scale of one axis."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    """The positions of the marks, and their labels."""
    label: str = ""
    gaps: tuple[Gap, ...] = ()

    def share(self, value: float) -> float:
        """The position of a value, from 0 at the low end to 1 at the high end."""
        return (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5


class Series(NamedTuple):
    """A line; it is interrupted between its parts."""

    label: str
    parts: list[list[tuple[float, float]]]


class Dot(NamedTuple):
    """A value with its interval."""

    number: int
    """The number of its variant, from 1, which also determines its colour."""
    title: str
    value: float
    low: float
    high: float
    x: float = 0.0
    """The horizontal position; only in a scatter plot."""


def axis(low: float, high: float, label: str = "", *, ticks: int = 5, whole: bool = False, suffix: str = "") -> Axis:
    """A scale with round marks, from the last one at or below `low` to the first one at or above `high`."""
    step = _step(low, high, ticks, whole=whole)
    first, last = floor(low / step + 1e-9), -floor(-high / step + 1e-9)
    last = max(last, first + 1)
    marks = tuple((number * step, plain(number * step, step) + suffix) for number in range(first, last + 1))
    return Axis(first * step, last * step, marks, label)


def plain(value: float, step: float) -> str:
    """A number with as many decimals as its step has."""
    decimals = max(0, -floor(log10(step) + 1e-9))
    return f"{value:,.{decimals}f}"


def _step(low: float, high: float, ticks: int, *, whole: bool) -> float:
    span = high - low
    if span < _LEAST_SPAN * max(abs(low), abs(high), 1.0):
        span = 1.0
    power = 10.0 ** floor(log10(span / ticks))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= ticks + 1e-9)
    return max(step, 1.0) if whole else step


def lines(name: str, across: Axis, up: Axis, series: Sequence[Series], *, filled: bool = False) -> str:
    """Draw each series as a line; `filled` also colours what is below it."""
    frame = _Frame(across, up)
    drawn = [frame.grid()]
    for index, each in enumerate(series):
        paths = ["M" + "L".join(frame.at(x, y) for x, y in part) for part in each.parts if part]
        below = [
            f"{path}L{frame.at(part[-1][0], up.low)}L{frame.at(part[0][0], up.low)}Z"
            for path, part in zip(paths, filter(None, each.parts), strict=True)
        ]
        drawn.append(f'<path class="a{_colour(index)}" d="{"".join(below)}"/>' if filled else "")
        drawn.append(f'<path class="l{_colour(index)}" d="{"".join(paths)}"/>')
    return _svg(name, drawn)


def bars(name: str, across: Axis, up: Axis, edges: Sequence[float], counts: Sequence[Sequence[float]]) -> str:
    """Draw bars between consecutive `edges`, stacked by series."""
    frame = _Frame(across, up)
    drawn = [frame.grid()]
    base = [0.0] * (len(edges) - 1)
    for index, heights in enumerate(counts):
        rects = []
        for number, height in enumerate(heights):
            if height:
                left, right = frame.x(edges[number]), frame.x(edges[number + 1])
                low, high = frame.y(base[number]), frame.y(base[number] + height)
                inset = min((right - left) * 0.08, 0.6)
                wide = f"{right - left - 2 * inset:.1f}"
                rects.append(f"M{left + inset:.1f} {low:.1f}V{high:.1f}h{wide}V{low:.1f}Z")
                base[number] += height
        drawn.append(f'<path class="f{_colour(index)}" d="{"".join(rects)}"/>')
    return _svg(name, drawn)


def scatter(name: str, across: Axis, up: Axis, dots: Iterable[Dot]) -> str:
    """Draw each dot with its interval and its number."""
    frame = _Frame(across, up)
    drawn = [frame.grid(), f'<text x="{frame.left:.0f}" y="{_TOP - 2:.0f}">{_text(up.label)}</text>' * bool(up.label)]
    for dot in dots:
        x, y, colour = frame.x(dot.x), frame.y(dot.value), _colour(dot.number - 1)
        drawn.append(
            f"<g><title>{_text(dot.title)}</title>"
            f'<path class="l{colour}" d="M{x:.1f} {frame.y(dot.low):.1f}V{frame.y(dot.high):.1f}"/>'
            f'<circle class="f{colour}" cx="{x:.1f}" cy="{y:.1f}" r="{_RADIUS}"/>'
            f'<text class="on" x="{x:.1f}" y="{y + 4:.1f}">{dot.number}</text></g>'
        )
    return _svg(name, drawn)


def strip(scale: Axis, dot: Dot) -> str:
    """One value with its interval, on a scale that all strips share."""
    a, at, b = (_percent(scale, each) for each in (dot.low, dot.value, dot.high))
    marks = "".join(f'<line class="grid" x1="{x}" x2="{x}" y1="0" y2="26"/>' for x in _marks(scale))
    colour = _colour(dot.number - 1)
    return (
        f'<svg class="strip" height="26" role="img" aria-label="{_text(dot.title)}">{marks}'
        f'<line class="l{colour}" x1="{a}" x2="{b}" y1="13" y2="13"/>'
        f'<line class="l{colour}" x1="{a}" x2="{a}" y1="8" y2="18"/>'
        f'<line class="l{colour}" x1="{b}" x2="{b}" y1="8" y2="18"/>'
        f'<circle class="f{colour}" cx="{at}" cy="13" r="5"/></svg>'
    )


def strip_scale(scale: Axis) -> str:
    """The scale below the strips."""
    texts = "".join(
        f'<text class="mid" x="{x}" y="13">{_text(label)}</text>'
        for x, (_, label) in zip(_marks(scale), scale.ticks, strict=True)
    )
    return f'<svg class="strip" height="18" aria-hidden="true">{texts}</svg>'


def bar(name: str, share: float, number: int = 1) -> str:
    """A bar that takes this share of the width, 0 to 1."""
    return (
        f'<svg class="strip" height="14" role="img" aria-label="{_text(name)}">'
        f'<rect class="f{_colour(number - 1)}" width="{max(min(share, 1), 0) * 100:.2f}%" height="14" rx="3"/></svg>'
    )


def badge(number: int) -> str:
    """The number of a variant in its colour, as a scatter plot shows it."""
    return (
        f'<svg class="badge" width="18" height="18" role="img" aria-label="{number}">'
        f'<circle class="f{_colour(number - 1)}" cx="9" cy="9" r="{_RADIUS}"/>'
        f'<text class="on" x="9" y="13">{number}</text></svg>'
    )


def key(labels: Sequence[str]) -> str:
    """The meaning of each colour, in the order of the series."""
    items = "".join(
        f'<span><svg width="10" height="10"><rect class="f{_colour(index)}" width="10" height="10" rx="2"/></svg>'
        f" {_text(label)}</span>"
        for index, label in enumerate(labels)
    )
    return f'<div class="key">{items}</div>'


class _Frame:
    """The area of a plot in which the data is."""

    def __init__(self, across: Axis, up: Axis) -> None:
        self._across, self._up = across, up
        self.left = 12 + _CHAR * max(len(label) for _, label in up.ticks)
        self._floor = _HEIGHT - _BOTTOM

    def x(self, value: float) -> float:
        return self.left + self._across.share(value) * (_WIDTH - _RIGHT - self.left)

    def y(self, value: float) -> float:
        return self._floor - self._up.share(value) * (self._floor - _TOP)

    def at(self, x: float, y: float) -> str:
        return f"{self.x(x):.1f} {self.y(y):.1f}"

    def grid(self) -> str:
        drawn = []
        for value, label in self._up.ticks:
            y = self.y(value)
            drawn.append(f'<path class="grid" d="M{self.left:.0f} {y:.1f}H{_WIDTH - _RIGHT:.0f}"/>')
            drawn.append(f'<text class="end" x="{self.left - 6:.0f}" y="{y + 4:.1f}">{_text(label)}</text>')
        for gap in self._across.gaps:
            a, b = self.x(gap.low), self.x(gap.high)
            drawn.append(
                f'<g><title>{_text(gap.label)}</title><rect class="gap" x="{a:.1f}" y="{_TOP:.0f}"'
                f' width="{b - a:.1f}" height="{self._floor - _TOP:.0f}"/></g>'
            )
            if len(gap.label) <= _GAP_LABEL_CHARS and b - a >= _CHAR * 2:
                x, y = (a + b) / 2 + 4, (self._floor + _TOP) / 2
                drawn.append(
                    f'<text class="mid" transform="rotate(-90 {x:.1f} {y:.1f})" x="{x:.1f}" y="{y:.1f}">'
                    f"{_text(gap.label)}</text>"
                )
        for value, label in self._across.ticks:
            x = self.x(value)
            drawn.append(f'<path class="grid" d="M{x:.1f} {self._floor:.0f}v4"/>')
            drawn.append(f'<text class="mid" x="{x:.1f}" y="{self._floor + 18:.0f}">{_text(label)}</text>')
        middle = (self.left + _WIDTH - _RIGHT) / 2
        drawn.append(f'<text class="mid" x="{middle:.0f}" y="{_HEIGHT - 5:.0f}">{_text(self._across.label)}</text>')
        return "".join(drawn)


def _svg(name: str, drawn: Sequence[str]) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" aria-label="{_text(name)}">'
        f"{''.join(drawn)}</svg>"
    )


def _marks(scale: Axis) -> list[str]:
    return [_percent(scale, value) for value, _ in scale.ticks]


def _percent(scale: Axis, value: float) -> str:
    low, high = _STRIP
    return f"{low + min(max(scale.share(value), 0), 1) * (high - low):.2f}%"


def _colour(index: int) -> int:
    return index % COLOURS + 1


def _text(text: str) -> str:
    return escape(visible(text))
