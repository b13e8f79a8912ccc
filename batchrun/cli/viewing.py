"""The commands that show rows of a run: `view`, `show` and `head`."""

from __future__ import annotations

from pathlib import Path

import click

from batchrun.cli.command import command
from batchrun.cli.output import echo
from batchrun.cli.values import PATH, STATE
from batchrun.config import VIEW_ROWS


@command
@click.argument("state", type=STATE)
@click.option("-o", "--output", metavar="FILE", type=PATH, help="Page to write. [default: <results>.view.html]")
@click.option(
    "--rows",
    metavar="N",
    type=click.IntRange(1, 1_000_000),
    default=VIEW_ROWS,
    show_default=True,
    help="Most rows on the page. Of a larger run, it has a sample with some rows of each input and kind of failure.",
)
def view(state: Path, output: Path | None, rows: int) -> None:
    """Write every row of a STATE file, prompt and answer, to a page for searching, filtering and comparing.

    The page is one file for a browser. It needs no network and loads nothing. Variants of a sweep are shown side by
    side, with the scores of `batchrun score` if there are any. During a run, it contains the rows that have ended so
    far.

    \b
    Examples:
      batchrun view results.jsonl.state
      batchrun view sweep.jsonl.state -o sweep.html
    """
    from batchrun.commands import view as viewing

    echo(str(viewing.view(state, output, rows)), err=True)


@command
@click.argument("state", type=STATE)
@click.argument("row_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per row on stdout.")
def show(state: Path, row_id: str, *, as_json: bool) -> None:
    """Show the row with an ID: its prompt, answer, scores, error and times.

    In a sweep, the ID of an input line shows all rows of the line.

    \b
    Examples:
      batchrun show results.jsonl.state q17
      batchrun show sweep.jsonl.state q17/temperature=0.7 --json | jq .answers
    """
    from batchrun.commands import show as showing

    for text in showing.show(state, row_id, as_json=as_json):
        echo(text, nl=False)


@command
@click.argument("state", type=STATE)
@click.option("-n", "--rows", metavar="N", type=click.IntRange(1, 100_000), default=5, show_default=True, help="Rows.")
@click.option("--failed", is_flag=True, help="Show only failed and held rows.")
def head(state: Path, rows: int, *, failed: bool) -> None:
    """Show the first rows of a STATE file that have ended, in input order, each in a few lines.

    \b
    Examples:
      batchrun head results.jsonl.state
      batchrun head results.jsonl.state --failed -n 20
    """
    from batchrun.commands import show as showing

    texts = list(showing.head(state, rows, only_failed=failed))
    for text in texts:
        echo(text, nl=False)
    if not texts:
        echo("no row has failed", err=True)
