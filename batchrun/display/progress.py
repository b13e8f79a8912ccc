"""Observers that show a run on stderr. Nothing else imports tqdm."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO, cast

import orjson
from tqdm import tqdm

from batchrun.config import ProgressMode
from batchrun.display.cost import money
from batchrun.display.printer import Printer
from batchrun.display.summary import Observer, Snapshot
from batchrun.display.text import clipped, columns_of, visible, visible_json
from batchrun.display.units import duration

PLAIN_EVERY_S = 30.0
JSON_EVERY_S = 1.0
_BAR_FORMAT = "{percentage:3.0f}% |{bar}| {desc}"
_MIN_BAR_COLUMNS = 8
_LEAST_NOTE_COLUMNS = 16
_NARROW_COLUMNS = 80
"""When the terminal does not say how wide it is."""


def make_observer(mode: ProgressMode, stream: TextIO | Printer) -> Observer:
    """The observer for a mode; `auto` is a bar on a terminal and plain lines elsewhere. None of them blocks."""
    printer = stream if isinstance(stream, Printer) else Printer(stream)
    if mode == "auto":
        mode = "bar" if printer.isatty() else "plain"
    match mode:
        case "bar":
            return BarObserver(printer)
        case "plain":
            return PlainObserver(printer)
        case "json":
            return JsonObserver(printer)
        case _:
            return NullObserver()


def send_log(observer: Observer | None, file: Printer | None, hide: Callable[[str], str] = str) -> None:
    """Send the log, that of the libraries too, to an observer, so that it does not tear the bar, and to a file.

    Args:
        observer: None: it is not shown.
        file: None: it is not kept.
        hide: Takes secrets out of a text.
    """
    if observer is None and file is None:
        # Without a handler Python prints warnings itself, and each of ours would be said twice.
        logging.getLogger("batchrun").addHandler(logging.NullHandler())
        return

    class Clean(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return visible(hide(super().format(record)))

    class ToObserver(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if observer is not None:
                observer.message(self.format(record))

    handlers: list[logging.Handler] = [ToObserver()]
    if file is not None:
        handlers.append(logging.StreamHandler(cast("TextIO", file)))
    for handler in handlers:
        handler.setFormatter(Clean("%(asctime)s %(levelname)-7s %(message)s"))
    logging.basicConfig(level=logging.DEBUG, handlers=handlers, force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


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


class WarningObserver(NullObserver):
    """Shows only what may be a mistake."""

    def __init__(self, stream: TextIO | Printer) -> None:
        self._printer = stream if isinstance(stream, Printer) else Printer(stream)

    def warn(self, text: str) -> None:
        """A line."""
        self._printer.write(f"{visible(text)}\n")


class BarObserver:
    """A bar on a terminal; messages scroll above it."""

    def __init__(self, printer: Printer) -> None:
        self._printer = printer
        self._is_ascii = not printer.encoding.lower().startswith("utf")

    def begin(self, snapshot: Snapshot) -> None:
        """Draw the bar, with what earlier sessions have done."""
        self.update(snapshot)

    def update(self, snapshot: Snapshot) -> None:
        """Redraw the bar."""
        self._printer.status(self._drawn(snapshot))

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        self._printer.write(f"{visible(text)}\n")

    def end(self, snapshot: Snapshot) -> None:
        """Leave the bar as it is at last."""
        self._printer.status("")
        self._printer.write(f"{self._drawn(snapshot)}\n")

    def _drawn(self, snapshot: Snapshot) -> str:
        columns = self._columns()
        room = (columns or _NARROW_COLUMNS) - len("100% || ") - _MIN_BAR_COLUMNS
        # Only the drawing is tqdm's: a bar of its own would leave a thread and a lock behind in a program.
        return tqdm.format_meter(
            snapshot.done,
            snapshot.total,
            0.0,
            ncols=columns and columns - 1,  # some terminals begin a new line after the last column
            ascii=self._is_ascii,
            prefix=_fitting(snapshot, room),
            bar_format=_BAR_FORMAT,
        )

    def _columns(self) -> int | None:
        """How wide the terminal is now; None when it does not say."""
        with suppress(OSError, ValueError):
            return os.get_terminal_size(self._printer.fileno()).columns or None
        return None


class PlainObserver:
    """A line every 30 s, for logs."""

    def __init__(self, printer: Printer) -> None:
        self._printer = printer
        self._next_s = PLAIN_EVERY_S

    def begin(self, snapshot: Snapshot) -> None:
        """Say where the run begins."""
        self._next_s = PLAIN_EVERY_S
        self._printer.write(f"{snapshot.total:,} rows, {snapshot.done:,} of them done before\n")

    def update(self, snapshot: Snapshot) -> None:
        """A line when the last is 30 s old."""
        if snapshot.elapsed_s >= self._next_s:
            self._next_s = snapshot.elapsed_s + PLAIN_EVERY_S
            self._line(snapshot)

    def message(self, text: str) -> None:
        """A line."""
        self._printer.write(f"{visible(text)}\n")

    def end(self, snapshot: Snapshot) -> None:
        """A last line."""
        self._line(snapshot)

    def _line(self, snapshot: Snapshot) -> None:
        done = f"{snapshot.done:,}/{snapshot.total:,}"
        self._printer.write(f"{duration(snapshot.elapsed_s)}: {done}, {', '.join(_figures(snapshot))}\n")


class JsonObserver:
    """One JSON object a line, `event` first: begin, progress once a second, message, end."""

    def __init__(self, printer: Printer) -> None:
        self._printer = printer
        self._next_s = 0.0
        self._warnings: list[str] = []

    def begin(self, snapshot: Snapshot) -> None:
        """Event `begin`, and then what the lines have given rise to."""
        self._next_s = 0.0
        self._write({"event": "begin", **snapshot.to_json()})
        self._flush()

    def warn(self, text: str) -> None:
        """Event `message`; not before the next other event, so that a run's first is its beginning."""
        self._warnings.append(text)

    def update(self, snapshot: Snapshot) -> None:
        """Event `progress`, when the last is a second old."""
        if snapshot.elapsed_s >= self._next_s:
            self._next_s = snapshot.elapsed_s + JSON_EVERY_S
            self._write({"event": "progress", **snapshot.to_json()})

    def message(self, text: str) -> None:
        """Event `message`."""
        self._flush()
        self._write({"event": "message", "message": text})

    def end(self, snapshot: Snapshot) -> None:
        """Event `end`."""
        self._write({"event": "end", **snapshot.to_json()})

    def _flush(self) -> None:
        while self._warnings:
            self._write({"event": "message", "message": self._warnings.pop(0)})

    def _write(self, event: dict[str, Any]) -> None:
        self._printer.write(visible_json(orjson.dumps(event), ascii_only=True) + "\n")


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
    parts += [f"{count:,} {name}" for name, count in s.answers]
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
        room = columns - columns_of(text) - len(", ")
        if columns_of(part) <= room:
            text += f", {part}"
        elif part == visible(snapshot.note) and room >= _LEAST_NOTE_COLUMNS:
            text += f", {clipped(part, room)}"
    return text
