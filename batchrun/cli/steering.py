"""The commands that act on a run that another process drives: `stop` and `tune`."""

from __future__ import annotations

from pathlib import Path

import click

from batchrun.cli.command import command
from batchrun.cli.options import takes
from batchrun.cli.output import echo
from batchrun.cli.values import STATE
from batchrun.commands.tune_arguments import TuneArguments
from batchrun.errors import UsageError


@command
@click.argument("state", type=STATE)
@click.option("--leave", is_flag=True, help="Exit at once; the jobs in flight keep running at the endpoint.")
@click.option("--cancel", is_flag=True, help="Cancel the jobs in flight, queued ones first.")
def stop(state: Path, *, leave: bool, cancel: bool) -> None:
    """Stop the process that drives the run of a STATE file, and wait until it has exited.

    Without an option, this is like Ctrl-C (--on-interrupt): unless the run was started with another value, it collects
    the jobs in flight. `batchrun resume` continues the run.

    \b
    Examples:
      batchrun stop results.jsonl.state
      batchrun stop results.jsonl.state --leave
    """
    from batchrun.commands import stop as stopping

    if leave and cancel:
        raise UsageError("both --leave and --cancel are given", "remove one of them")
    how: stopping.How = "leave" if leave else "cancel" if cancel else "interrupt"
    echo(stopping.stop(state, how, lambda text: echo(text, err=True)), err=True)


@command
@click.argument("state", type=STATE)
@takes(TuneArguments)
def tune(given: TuneArguments, state: Path) -> None:
    """Change the run of a STATE file while a process drives it.

    The process applies the change within two seconds, and records it in its log and in the manifest. The new values
    also apply when the run is resumed; a pause ends with the session.

    \b
    Examples:
      batchrun tune results.jsonl.state -j 200
      batchrun tune results.jsonl.state --max-cost 60 --deadline 10h
      batchrun tune results.jsonl.state --pause
      batchrun tune results.jsonl.state --resume
    """
    from batchrun.commands import tune as tuning

    echo(tuning.tune(state, tuning.change_of(given), lambda text: echo(text, err=True)), err=True)
