"""Observers that show the progress of a run on stderr. The only module that imports tqdm."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TextIO, cast

import orjson
from tqdm import tqdm

from batchrun.config import ProgressMode
from batchrun.display.cost import money
from batchrun.display.notebook import NotebookObserver, has_widgets, in_notebook
from batchrun.display.printer import Printer
from batchrun.display.summary import Observer, Snapshot
from batchrun.display.text import clipped, columns_of, visible, visible_json
from batchrun.display.units import counted, duration

PLAIN_EVERY_S = 30.0
JSON_EVERY_S = 1.0
_BAR_FORMAT = "{percentage:3.0f}% |{bar}| {desc}"
_MIN_BAR_COLUMNS = 8
_LEAST_NOTE_COLUMNS = 16
_NARROW_COLUMNS = 80
"""Assumed if the terminal does not report its width."""


def make_observer(mode: ProgressMode, stream: TextIO | Printer) -> Observer:
    """The observer for a mode; `auto`: a bar on a terminal and in a notebook, plain lines elsewhere. None blocks."""
    printer = stream if isinstance(stream, Printer) else Printer(stream)
    if mode == "auto":
        mode = "bar" if printer.isatty() or in_notebook() else "plain"
    match mode:
        case "bar":
            if in_notebook() and has_widgets():
                return NotebookObserver(printer, partial(_fitting, columns=_NARROW_COLUMNS))
            return BarObserver(printer)
        case "plain":
            return PlainObserver(printer)
        case "json":
            return JsonObserver(printer)
        case _:
            return NullObserver()


def send_log(observer: Observer | None, file: Printer | None, hide: Callable[[str], str] = str) -> None:
    """Send the log, including that of libraries, to an observer, so that it does not break the bar, and to a file.

    Args:
        observer: Shows the log; None: it is not shown.
        file: The log file; None: there is none.
        hide: Removes secrets from text.
    """
    if observer is None and file is None:
        # Without a handler, Python prints warnings itself, so each of ours would be printed twice.
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
        """Do nothing."""

    def update(self, snapshot: Snapshot) -> None:
        """Do nothing."""

    def message(self, text: str) -> None:
        """Do nothing."""

    def end(self, snapshot: Snapshot) -> None:
        """Do nothing."""


class WarningObserver(NullObserver):
    """Shows only warnings."""

    def __init__(self, stream: TextIO | Printer) -> None:
        self._printer = stream if isinstance(stream, Printer) else Printer(stream)

    def warn(self, text: str) -> None:
        """Print a line."""
        self._printer.write(f"{visible(text)}\n")


class BarObserver:
    """A bar on a terminal; messages scroll above it."""

    def __init__(self, printer: Printer) -> None:
        self._printer = printer
        self._is_ascii = not printer.encoding.lower().startswith("utf")

    def begin(self, snapshot: Snapshot) -> None:
        """Draw the bar, with the progress of earlier sessions."""
        self.update(snapshot)

    def update(self, snapshot: Snapshot) -> None:
        """Redraw the bar."""
        self._printer.status(self._drawn(snapshot))

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        self._printer.write(f"{visible(text)}\n")

    def end(self, snapshot: Snapshot) -> None:
        """Print the final bar."""
        self._printer.status("")
        self._printer.write(f"{self._drawn(snapshot)}\n")

    def _drawn(self, snapshot: Snapshot) -> str:
        columns = self._columns()
        room = (columns or _NARROW_COLUMNS) - len("100% || ") - _MIN_BAR_COLUMNS
        # Only tqdm's drawing function: a tqdm object would leave a thread and a lock behind in a calling program.
        return tqdm.format_meter(
            snapshot.done,
            snapshot.total,
            0.0,
            ncols=columns and columns - 1,  # some terminals wrap after the last column
            ascii=self._is_ascii,
            prefix=_fitting(snapshot, room),
            bar_format=_BAR_FORMAT,
        )

    def _columns(self) -> int | None:
        """The present width of the terminal; None if it does not report it."""
        with suppress(OSError, ValueError):
            return os.get_terminal_size(self._printer.fileno()).columns or None
        return None


class PlainObserver:
    """Prints a line every 30 s, for logs."""

    def __init__(self, printer: Printer) -> None:
        self._printer = printer
        self._next_s = PLAIN_EVERY_S

    def begin(self, snapshot: Snapshot) -> None:
        """Print how many rows there are and how many are done."""
        self._next_s = PLAIN_EVERY_S
        self._printer.write(f"{counted(snapshot.total, 'row')}, {snapshot.done:,} already done\n")

    def update(self, snapshot: Snapshot) -> None:
        """Print a line if the last one is 30 s old."""
        if snapshot.elapsed_s >= self._next_s:
            self._next_s = snapshot.elapsed_s + PLAIN_EVERY_S
            self._line(snapshot)

    def message(self, text: str) -> None:
        """Print a line."""
        self._printer.write(f"{visible(text)}\n")

    def end(self, snapshot: Snapshot) -> None:
        """Print a last line."""
        self._line(snapshot)

    def _line(self, snapshot: Snapshot) -> None:
        done = f"{snapshot.done:,}/{snapshot.total:,}"
        self._printer.write(f"{duration(snapshot.elapsed_s)}: {done}, {', '.join(_figures(snapshot))}\n")


class JsonObserver:
    """Writes JSON lines, with the key `event` first: begin, progress once a second, message, end."""

    def __init__(self, printer: Printer) -> None:
        self._printer = printer
        self._next_s = 0.0
        self._warnings: list[str] = []

    def begin(self, snapshot: Snapshot) -> None:
        """Write event `begin`, then the warnings about the input lines."""
        self._next_s = 0.0
        self._write({"event": "begin", **snapshot.to_json()})
        self._flush()

    def warn(self, text: str) -> None:
        """Write event `message`, but only after the next other event, so that `begin` is the first event of a run."""
        self._warnings.append(text)

    def update(self, snapshot: Snapshot) -> None:
        """Write event `progress`, if the last one is a second old."""
        if snapshot.elapsed_s >= self._next_s:
            self._next_s = snapshot.elapsed_s + JSON_EVERY_S
            self._write({"event": "progress", **snapshot.to_json()})

    def message(self, text: str) -> None:
        """Write event `message`."""
        self._flush()
        self._write({"event": "message", "message": text})

    def end(self, snapshot: Snapshot) -> None:
        """Write event `end`."""
        self._write({"event": "end", **snapshot.to_json()})

    def _flush(self) -> None:
        while self._warnings:
            self._write({"event": "message", "message": self._warnings.pop(0)})

    def _write(self, event: dict[str, Any]) -> None:
        self._printer.write(visible_json(orjson.dumps(event), ascii_only=True) + "\n")


def _figures(snapshot: Snapshot) -> list[str]:
    """The figures after the count, the most useful first."""
    s = snapshot
    parts = [f"{s.rows_per_s:,.1f}/s"]
    if s.note:
        parts.append(visible(s.note))
    elif s.eta_s is not None and s.done < s.total and s.in_flight:
        parts.append(f"ETA {duration(s.eta_s)}")
    if s.failed:
        parts.append(f"{s.failed:,} failed")
    if s.cached:
        parts.append(f"{s.cached:,} cached")
    parts += [f"{count:,} {name}" for name, count in s.answers]
    if s.cost is not None:
        projected = s.cost.most_projected
        parts.append(money(s.cost.most) + ("" if projected is None else f" of ~{money(projected)}"))
    in_jobs = f" in {s.jobs:,} jobs" if s.jobs != s.in_flight else ""
    parts += [f"{s.in_flight:,} in flight{in_jobs}", f"{s.queued:,} queued", f"window {s.window:,}"]
    if s.tokens_per_s is not None:
        parts.append(f"{s.tokens_per_s:,.0f} tok/s")
    if s.held:
        parts.append(f"{s.held:,} held")
    if s.waiting:
        parts.append(f"{s.waiting:,} to retry")
    return parts


def _fitting(snapshot: Snapshot, columns: int) -> str:
    """The count, and those figures that fit as a whole.

    Only the reason why a run waits may be cut: half of it is still worth more than the other figures.
    """
    text = f"{snapshot.done:,}/{snapshot.total:,}"
    for part in _figures(snapshot):
        room = columns - columns_of(text) - len(", ")
        if columns_of(part) <= room:
            text += f", {part}"
        elif part == visible(snapshot.note) and room >= _LEAST_NOTE_COLUMNS:
            text += f", {clipped(part, room)}"
    return text
