"""Observers that show a run on stderr. Nothing else imports tqdm."""

from __future__ import annotations

from typing import Any, Literal, TextIO

import orjson
from tqdm import tqdm

from batchrun.foreign import visible, visible_json
from batchrun.results.cost import money
from batchrun.results.summary import Observer, Snapshot, duration

PLAIN_EVERY_S = 30.0
JSON_EVERY_S = 1.0
_BAR_FORMAT = "{percentage:3.0f}% |{bar}| {desc}"
_MIN_BAR_COLUMNS = 8
_LEAST_NOTE_COLUMNS = 16
_NARROW_COLUMNS = 80
"""When the terminal does not say how wide it is."""


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

    def write(self, text: str) -> None:
        if self._broken:
            return
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                self._stream.write(text.encode("ascii", "backslashreplace").decode("ascii"))
            self._stream.flush()
        except (OSError, ValueError):
            self._broken = True

    def flush(self) -> None:
        """Nothing is left to do: every write is flushed."""

    def __getattr__(self, name: str) -> Any:
        """What tqdm asks a terminal for: its encoding, its width."""
        return getattr(self._stream, name)


class BarObserver:
    """A bar on a terminal; messages scroll above it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = _Stream(stream)
        self._bar: tqdm[Any] | None = None

    def begin(self, snapshot: Snapshot) -> None:
        """Draw the bar, with what earlier sessions have done."""
        self._bar = tqdm(
            total=snapshot.total,
            initial=snapshot.done,
            file=self._stream,
            dynamic_ncols=True,
            bar_format=_BAR_FORMAT,
            mininterval=0,
        )
        self.update(snapshot)

    def update(self, snapshot: Snapshot) -> None:
        """Redraw the bar."""
        if self._bar is not None:
            columns = self._bar.format_dict["ncols"] or _NARROW_COLUMNS
            self._bar.n = snapshot.done
            self._bar.set_description_str(
                _fitting(snapshot, columns - len("100% || ") - _MIN_BAR_COLUMNS), refresh=False
            )
            self._bar.refresh()

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar is None:
            self._stream.write(f"{visible(text)}\n")
        else:
            self._bar.clear()
            self._stream.write(f"{visible(text)}\n")
            self._bar.refresh()

    def end(self, snapshot: Snapshot) -> None:
        """Leave the bar as it is at last."""
        self.update(snapshot)
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class PlainObserver:
    """A line every 30 s, for logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = _Stream(stream)
        self._next_s = PLAIN_EVERY_S

    def begin(self, snapshot: Snapshot) -> None:
        """Say where the run begins."""
        self._next_s = PLAIN_EVERY_S
        self._stream.write(f"{snapshot.total:,} rows, {snapshot.done:,} of them done before\n")

    def update(self, snapshot: Snapshot) -> None:
        """A line when the last is 30 s old."""
        if snapshot.elapsed_s >= self._next_s:
            self._next_s = snapshot.elapsed_s + PLAIN_EVERY_S
            self._line(snapshot)

    def message(self, text: str) -> None:
        """A line."""
        self._stream.write(f"{visible(text)}\n")

    def end(self, snapshot: Snapshot) -> None:
        """A last line."""
        self._line(snapshot)

    def _line(self, snapshot: Snapshot) -> None:
        done = f"{snapshot.done:,}/{snapshot.total:,}"
        self._stream.write(f"{duration(snapshot.elapsed_s)}: {done}, {', '.join(_figures(snapshot))}\n")


class JsonObserver:
    """One JSON object a line, `event` first: begin, progress once a second, message, end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = _Stream(stream)
        self._next_s = 0.0

    def begin(self, snapshot: Snapshot) -> None:
        """Event `begin`."""
        self._next_s = 0.0
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
        self._stream.write(visible_json(orjson.dumps(event), ascii_only=True) + "\n")


def _figures(snapshot: Snapshot) -> list[str]:
    """The figures beside the count, the most useful first."""
    s = snapshot
    parts = [f"{s.rows_per_s:,.1f}/s"]
    if s.note:
        parts.append(visible(s.note))
    elif s.eta_s is not None and s.done < s.total:
        parts.append(f"ETA {duration(s.eta_s)}")
    if s.failed:
        parts.append(f"{s.failed:,} failed")
    if s.cost is not None:
        projected = s.cost.most_projected
        parts.append(money(s.cost.most) + ("" if projected is None else f" of ~{money(projected)}"))
    parts += [f"{s.in_flight:,} in flight", f"{s.queued:,} queued", f"window {s.window:,}"]
    if s.tokens_per_s is not None:
        parts.append(f"{s.tokens_per_s:,.0f} tok/s")
    if s.held:
        parts.append(f"{s.held:,} held")
    if s.waiting:
        parts.append(f"{s.waiting:,} to retry")
    return parts


def _fitting(snapshot: Snapshot, columns: int) -> str:
    """The count, and those figures that have room: one that has not is left out, rather than cut in the middle.

    Only why nothing goes on is cut, because half of that is worth more than all the rest.
    """
    text = f"{snapshot.done:,}/{snapshot.total:,}"
    for part in _figures(snapshot):
        room = columns - len(text) - len(", ")
        if len(part) <= room:
            text += f", {part}"
        elif part == visible(snapshot.note) and room >= _LEAST_NOTE_COLUMNS:
            text += f", {part[: room - 1]}…"
    return text
