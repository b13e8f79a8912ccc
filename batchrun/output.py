"""What a command says, and logs, but for the progress of a run. Nothing that it shows can act on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from batchrun.errors import UsageError
from batchrun.foreign import visible, visible_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from batchrun.queued import Total
    from batchrun.results.summary import Observer, Summary
    from batchrun.watching import Ending


def echo(text: str | bytes, *, err: bool = False, nl: bool = True) -> None:
    """The one way to a person's screen; JSON, as bytes, is also for programs."""
    if isinstance(text, bytes):
        # On stderr it passes through a text stream, in whatever encoding that has.
        click.echo(visible_json(text, ascii_only=True) if err else visible_json(text).encode(), err=err, nl=nl)
    else:
        click.echo(visible(text), err=err, nl=nl)


def say(message: str, hint: str) -> None:
    """A message in one line, and what to do in another."""
    if message:
        echo(f"batchrun: {message}", err=True)
    if hint:
        echo(f"  -> {hint}", err=True)


def show_summary(summary: Summary, given: dict[str, Any]) -> None:
    """What a run came to, as much of it as the options want."""
    from batchrun.results.summary import render, to_event

    if given["progress"] == "json":
        echo(to_event(summary), err=True)
    elif not given["quiet"]:
        echo(render(summary), err=True, nl=False)
    elif summary.reason:
        echo(f"batchrun: {summary.reason}", err=True)


def show_ending(file: str, ending: Ending, given: dict[str, Any]) -> None:
    """How the run of a file in a watched folder ended."""
    if ending.summary is not None:
        show_summary(ending.summary, given)
    elif given["progress"] == "json":
        _show_event({"event": "refused", "file": file, **ending.to_json()})
    elif ending.error is not None:
        say(f"{file} is refused, nothing of it was sent: {ending.error.message}", ending.error.hint)


def show_total(total: Total, given: dict[str, Any]) -> None:
    """What a watch came to."""
    if given["progress"] == "json":
        _show_event({"event": "total", **total.to_json()})
    elif not given["quiet"]:
        echo(f"\n{total}", err=True)


def _show_event(event: dict[str, Any]) -> None:
    import orjson

    echo(orjson.dumps(event), err=True)


def log(observer: Observer | None, path: Path | None, hide: Callable[[str], str]) -> None:
    """Send the log, that of the libraries too, to the observer, so that it does not tear the bar, and to a file.

    Args:
        observer: None: it is not shown.
        path: Appended to; None: it is not kept.
        hide: Takes secrets out of a text.

    Raises:
        UsageError: the file cannot be opened.
    """
    import logging

    class Clean(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return visible(hide(super().format(record)))

    class ToObserver(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if observer is not None:
                observer.message(self.format(record))

    handlers: list[logging.Handler] = [ToObserver(logging.DEBUG)] if observer is not None else []
    if path is not None:
        try:
            handlers.append(logging.FileHandler(path, encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"--log-file {path}: {error.strerror}", "give a file in a folder that exists") from error
    for handler in handlers:
        handler.setFormatter(Clean("%(asctime)s %(levelname)-7s %(message)s"))
    logging.basicConfig(level=logging.DEBUG, handlers=handlers, force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
