"""Observers that show a run on stderr. Nothing else imports tqdm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TextIO

import orjson
from tqdm import tqdm

from batchrun.results.summary import Observer, Snapshot, duration

if TYPE_CHECKING:
    from collections.abc import Callable

PLAIN_EVERY_S = 30.0
JSON_EVERY_S = 1.0
_BAR_FORMAT = "{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{postfix}"


def make_observer(mode: Literal["auto", "bar", "plain", "json", "none"], stream: TextIO) -> Observer:
    """The observer for a mode; `auto` is a bar on a terminal and plain lines elsewhere."""
    if mode == "auto":
        mode = "bar" if stream.isatty() else "plain"
    match mode:
        case "bar":
            return BarObserver(stream)
        case "plain":
            return PlainObserver(stream)
        case "json":
            return JsonObserver(stream)
        case _:
            return NullObserver()


class NullObserver:
    """Shows nothing."""

    def begin(self, snapshot: Snapshot) -> None:
        """Nothing."""

    def update(self, snapshot: Snapshot) -> None:
        """Nothing."""

    def message(self, text: str) -> None:
        """Nothing."""

    def end(self, snapshot: Snapshot) -> None:
        """Nothing."""


class _Stream:
    """A stream that a run outlives: when nobody reads it any more, the run goes on in silence."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._broken = False

    def attempt(self, action: Callable[[], object]) -> None:
        if not self._broken:
            try:
                action()
            except (OSError, ValueError):
                self._broken = True

    def write(self, text: str) -> None:
        def write() -> None:
            self._stream.write(text)
            self._stream.flush()

        self.attempt(write)


class BarObserver:
    """A bar on a terminal; messages scroll above it."""

    def __init__(self, stream: TextIO) -> None:
        self._raw = stream
        self._stream = _Stream(stream)
        self._bar: tqdm[Any] | None = None

    def begin(self, snapshot: Snapshot) -> None:
        """Draw the bar, with what earlier sessions have done."""
        self._bar = tqdm(
            total=snapshot.total,
            initial=snapshot.done,
            file=self._raw,
            dynamic_ncols=True,
            bar_format=_BAR_FORMAT,
            mininterval=0,
        )
        self.update(snapshot)

    def update(self, snapshot: Snapshot) -> None:
        """Redraw the bar."""
        bar = self._bar
        if bar is None:
            return

        def draw() -> None:
            bar.n = snapshot.done
            bar.set_postfix_str(_figures(snapshot), refresh=False)
            bar.refresh()

        self._stream.attempt(draw)

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar is None:
            self._stream.write(f"{text}\n")
        else:
            self._stream.attempt(lambda: tqdm.write(text, file=self._raw))

    def end(self, snapshot: Snapshot) -> None:
        """Leave the bar as it is at last."""
        self.update(snapshot)
        if self._bar is not None:
            self._stream.attempt(self._bar.close)
            self._bar = None


class PlainObserver:
    """A line every 30 s, for logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = _Stream(stream)
        self._next_s = PLAIN_EVERY_S

    def begin(self, snapshot: Snapshot) -> None:
        """Say where the run begins."""
        self._stream.write(f"{snapshot.total:,} rows, {snapshot.done:,} of them done before\n")

    def update(self, snapshot: Snapshot) -> None:
        """A line when the last is 30 s old."""
        if snapshot.elapsed_s >= self._next_s:
            self._next_s = snapshot.elapsed_s + PLAIN_EVERY_S
            self._line(snapshot)

    def message(self, text: str) -> None:
        """A line."""
        self._stream.write(f"{text}\n")

    def end(self, snapshot: Snapshot) -> None:
        """A last line."""
        self._line(snapshot)

    def _line(self, snapshot: Snapshot) -> None:
        done = f"{snapshot.done:,}/{snapshot.total:,}"
        self._stream.write(f"{duration(snapshot.elapsed_s)}: {done}, {_figures(snapshot)}\n")


class JsonObserver:
    """One JSON object a line, `event` first: begin, progress once a second, message, end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = _Stream(stream)
        self._next_s = 0.0

    def begin(self, snapshot: Snapshot) -> None:
        """Event `begin`."""
        self._write({"event": "begin", **snapshot.to_json()})

    def update(self, snapshot: Snapshot) -> None:
        """Event `progress`, when the last is a second old."""
        if snapshot.elapsed_s >= self._next_s:
            self._next_s = snapshot.elapsed_s + JSON_EVERY_S
            self._write({"event": "progress", **snapshot.to_json()})

    def message(self, text: str) -> None:
        """Event `message`."""
        self._write({"event": "message", "message": text})

    def end(self, snapshot: Snapshot) -> None:
        """Event `end`."""
        self._write({"event": "end", **snapshot.to_json()})

    def _write(self, event: dict[str, Any]) -> None:
        self._stream.write(orjson.dumps(event).decode() + "\n")


def _figures(snapshot: Snapshot) -> str:
    """The figures beside the count: the most useful first, because a narrow terminal cuts the end off."""
    s = snapshot
    parts = [f"{s.rows_per_s:,.1f}/s"]
    if s.eta_s is not None and s.done < s.total:
        parts.append(f"ETA {duration(s.eta_s)}")
    parts.append(f"{s.in_flight:,} in flight ({s.queued:,} queued)")
    if s.failed:
        parts.append(f"{s.failed:,} failed")
    if s.waiting:
        parts.append(f"{s.waiting:,} to retry")
    if s.held:
        parts.append(f"{s.held:,} held")
    if s.tokens_per_s is not None:
        parts.append(f"{s.tokens_per_s:,.0f} tok/s")
    if s.note:
        parts.append(s.note)
    return ", ".join(parts)
