"""What a command says on stderr, but for the progress of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from batchrun.queued import Total
    from batchrun.results.summary import Summary
    from batchrun.watching import Ending


def say(message: str, hint: str) -> None:
    """A message in one line, and what to do in another."""
    if message:
        click.echo(f"batchrun: {message}", err=True)
    if hint:
        click.echo(f"  -> {hint}", err=True)


def show_summary(summary: Summary, given: dict[str, Any]) -> None:
    """What a run came to, as much of it as the options want."""
    from batchrun.results.summary import render, to_event

    if given["progress"] == "json":
        click.echo(to_event(summary), err=True)
    elif not given["quiet"]:
        click.echo(render(summary), err=True, nl=False)
    elif summary.reason:
        click.echo(f"batchrun: {summary.reason}", err=True)


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
        click.echo(f"\n{total}", err=True)


def _show_event(event: dict[str, Any]) -> None:
    import orjson

    click.echo(orjson.dumps(event).decode(), err=True)
