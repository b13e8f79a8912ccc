"""`batchrun cache`: shows the contents of an answer cache, and prunes it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from batchrun.cli import values
from batchrun.cli.command import command
from batchrun.cli.output import echo
from batchrun.commands.definitions import TIME
from batchrun.config import Bounds

_AGES, _SIZES = TIME.bounds or Bounds(0, 1), Bounds(1_000_000, 1_000_000_000_000, whole=True)


@command
@click.argument("file", type=values.PATH)
@click.option(
    "--older-than",
    metavar="TIME",
    callback=partial(values.duration, _AGES),
    help="Remove the answers that are older than this: 30d, 12h.",
)
@click.option(
    "--max-size",
    metavar="SIZE",
    callback=partial(values.size, _SIZES),
    help="Remove the oldest answers until the file has at most this size: 1GB.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def cache(file: Path, older_than: float | None, max_size: int | None, *, as_json: bool) -> None:
    """Show the contents of an answer cache, and prune it if a limit is given. This is safe while runs use it.

    \b
    Examples:
      batchrun cache answers.cache
      batchrun cache answers.cache --older-than 30d --max-size 1GB
    """
    from batchrun.commands import cache as caching

    report = caching.inspect_cache(file, older_than_s=older_than, max_size_bytes=max_size)
    echo(caching.to_json(report) if as_json else caching.render(report), nl=False)
