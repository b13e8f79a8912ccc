"""The command that scores the answers of a run: `score`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from batchrun.cli.command import command
from batchrun.cli.output import echo
from batchrun.cli.values import STATE, names
from batchrun.config import SCORE_TIMEOUT_S


@command
@click.argument("state", type=STATE)
@click.option(
    "--with",
    "scorer",
    metavar="SCORER",
    required=True,
    help="exact, contains, number, choice, json, regex:PATTERN or py:FILE:FUNCTION; see `batchrun help evaluation`.",
)
@click.option(
    "--reference",
    metavar="PATH",
    default="metadata.reference",
    show_default=True,
    help="Dotted path of the right answer in a record; a list holds several right answers.",
)
@click.option(
    "--normalize",
    metavar="A,B,...",
    multiple=True,
    callback=names,
    help="What to ignore when texts are compared: case, space (differences in white space), punctuation.",
)
@click.option(
    "--tolerance",
    metavar="N|N%",
    default="0",
    show_default=True,
    help="How far a number may be from the reference; with %, relative to it.",
)
@click.option(
    "--timeout",
    metavar="S",
    type=click.FloatRange(0.1, 3600),
    default=SCORE_TIMEOUT_S,
    show_default=True,
    help="Seconds that a function or a pattern may take per row.",
)
@click.option("--with-errors", is_flag=True, help="Count failed and held rows as wrong.")
def score(
    state: Path,
    *,
    scorer: str,
    reference: str,
    normalize: tuple[str, ...] | None,
    tolerance: str,
    timeout: float,
    with_errors: bool,
) -> None:
    """Score the answers of the run of a STATE file against references, from 0 (wrong) to 1 (right).

    The scores go to <stem>.scores.jsonl beside STATE, one line for each row and scorer, and `report` shows them.
    Nothing is sent. Running a SCORER again replaces its scores, and keeps those of other scorers. The exit code is 3 if
    some rows could not be scored.

    \b
    Examples:
      batchrun score sweep.jsonl.state --with exact --normalize case,punctuation
      batchrun score sweep.jsonl.state --with number --reference metadata.answer --tolerance 1%
      batchrun score sweep.jsonl.state --with 'regex:Answer: (.*)'
      batchrun score sweep.jsonl.state --with py:grade.py:grade
    """
    from batchrun.commands import score as scoring
    from batchrun.evaluation.scorers import Rules

    rules = Rules(reference, normalize or (), tolerance)
    found = scoring.score(state, scorer, rules, timeout_s=timeout, with_errors=with_errors)
    echo(f"{found}\nsee them: batchrun report {shlex.quote(str(state))}", err=True)
    sys.exit(3 if found.unscored else 0)
