"""Prints what a command has to say, except progress. Control characters are escaped, so the terminal is safe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchrun.display.printer import Printer
from batchrun.display.text import visible, visible_json
from batchrun.endpoint.secrets import Secrets, url_secrets
from batchrun.errors import UsageError

if TYPE_CHECKING:
    from batchrun.commands.session_arguments import ShowArguments
    from batchrun.commands.watch_folder import FileOutcome
    from batchrun.commands.watch_queue import Total
    from batchrun.display.summary import Observer, Summary


def echo(text: str | bytes, *, err: bool = False, nl: bool = True) -> None:
    """Print text, or JSON as bytes. All output of commands goes through here."""
    if isinstance(text, bytes):
        # A text stream may have any encoding.
        is_text = err or not hasattr(sys.stdout, "buffer")
        click.echo(visible_json(text, ascii_only=True) if is_text else visible_json(text).encode(), err=err, nl=nl)
    else:
        click.echo(visible(text), err=err, nl=nl)


def say(message: str, hint: str) -> None:
    """Print a message, and a line with the hint."""
    if message:
        echo(f"batchrun: {message}", err=True)
    if hint:
        echo(f"  -> {hint}", err=True)


def show_summary(summary: Summary, given: ShowArguments) -> None:
    """Print the summary of a run, as far as the options want it."""
    from batchrun.display.summary import to_event
    from batchrun.display.summary_text import render

    if given.quiet:
        say(summary.reason, summary.hint if summary.reason else "")
    elif given.progress == "json":
        echo(to_event(summary), err=True)
    else:
        echo(render(summary), err=True, nl=False)


def show_ending(file: str, ending: FileOutcome, given: ShowArguments) -> None:
    """Print the outcome of a file in a watched folder."""
    if ending.summary is not None:
        show_summary(ending.summary, given)
    elif given.progress == "json" and not given.quiet:
        _show_event({"event": "refused", "file": file, **ending.to_json()})
    elif ending.error is not None:
        say(f"{file} was refused, and none of it was sent: {ending.error.message}", ending.error.hint)


def show_total(total: Total, given: ShowArguments) -> None:
    """Print the totals of a watch."""
    if given.quiet:
        return
    if given.progress == "json":
        _show_event({"event": "total", **total.to_json()})
    else:
        echo(f"\n{total}", err=True)


def _show_event(event: dict[str, Any]) -> None:
    import orjson

    echo(orjson.dumps(event), err=True)


def make_observer(given: ShowArguments, api_key: str | None = None) -> Observer:
    """The observer that the options ask for. Also sets up logging, with secrets removed.

    Raises:
        UsageError: the log file cannot be opened.
    """
    from batchrun.display import progress

    observer = progress.make_observer("none" if given.quiet else given.progress, sys.stderr)
    if given.progress == "none" and not given.quiet:
        observer = progress.WarningObserver(sys.stderr)
    file = _log_file(given.log_file)
    if given.verbose or file is not None:
        from batchrun.endpoint.proxies import environment_proxies

        urls = [given.notify, *environment_proxies()]
        secrets = Secrets(api_key, *(secret for url in urls for secret in url_secrets(url)))
        progress.send_log(observer if given.verbose else None, file, secrets.hide)
    else:
        progress.send_log(None, None)
    return observer


def _log_file(path: Path | None) -> Printer | None:
    if path is None:
        return None
    try:
        printer = Printer(path.open("a", encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--log-file {path}: {error.strerror}", "give a file in an existing folder") from error
    click.get_current_context().call_on_close(printer.close)
    return printer
