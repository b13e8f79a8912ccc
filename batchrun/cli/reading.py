"""The commands that read the state files of runs: `status`, `ls`, `verify`, `merge`, `export` and `report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal, get_args

import click

from batchrun.cli.command import command
from batchrun.cli.output import echo
from batchrun.cli.values import PATH, STATE, TARGET
from batchrun.config import ResultFormat
from batchrun.errors import UsageError
from batchrun.files.streams import stdout_bytes

Only = Literal["succeeded", "failed"]
_LEFT = 130
"""The user left before the run ended."""


@command
@click.argument("state", type=STATE, required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout; with --watch, one per update.")
@click.option("--watch", "is_watching", is_flag=True, help="Redraw one screen until the run ends; Ctrl-C exits.")
@click.option(
    "--every",
    "every_s",
    metavar="S",
    type=click.FloatRange(0.1, 86400),
    help="Seconds between two updates of --watch. [default: 1 on a terminal, else 30]",
)
def status(state: Path | None, every_s: float | None, *, as_json: bool, is_watching: bool) -> None:
    """Show the status of the run of a STATE file, running or not.

    Without STATE, the newest state file in the current folder is used.

    \b
    Examples:
      batchrun status results.jsonl.state
      batchrun status --watch
    """
    if state is None:
        from batchrun.runs.state_files import newest_state

        state = newest_state(Path())
    if is_watching:
        from batchrun.commands.status_watch import watch

        try:
            watch(state, echo, every_s=every_s, as_json=as_json)
        except KeyboardInterrupt:
            sys.exit(_LEFT)
        return
    if every_s is not None:
        raise UsageError("--every needs --watch", "add --watch")
    from batchrun.commands import status as reporting

    found = reporting.read_status(state)
    echo(reporting.to_json(found) if as_json else reporting.render(found), nl=False)


@command
@click.argument("folders", nargs=-1, metavar="[FOLDER]...", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per state file on stdout.")
def ls(folders: tuple[Path, ...], *, as_json: bool) -> None:
    """List the runs in folders: progress, pace, time left, cost, and the process that drives each or why it stopped.

    Looks at every *.state file in FOLDER... (default: the current folder) and at batchrun.state in their subfolders.

    \b
    Examples:
      batchrun ls
      batchrun ls out nights --json | jq -r 'select(.process == null) | .state'
    """
    from batchrun.commands import listing

    found = listing.statuses(folders or (Path(),))
    echo(listing.to_json(found) if as_json else listing.render(found), nl=False)


@command
@click.argument("states", nargs=-1, required=True, metavar="STATE...", type=STATE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per STATE on stdout.")
@click.option("--repair-list", is_flag=True, help="Print only the ids of rows whose result is lost or damaged.")
def verify(states: tuple[Path, ...], *, as_json: bool, repair_list: bool) -> None:
    """Prove that runs are complete and undamaged; several STATE files must be all shards of one input.

    Checks that every row is accounted for, that every result is present once and as it was written, and that every
    input line has its row and is unchanged. Changes nothing and sends nothing; works during a run, too. The exit code
    is 0 if there are no problems, else 1.

    \b
    Examples:
      batchrun verify results.jsonl.state
      batchrun verify results.jsonl.state --repair-list
      batchrun verify prompts.shard-*.results.jsonl.state
    """
    from batchrun.commands import findings
    from batchrun.commands import merge as merging
    from batchrun.commands import verify as verification

    found, shown = [], findings.to_json if as_json else findings.render
    for state in states:
        found.append(verification.verify(state, echo if repair_list else None))
        echo("" if repair_list else shown(found[-1]), nl=False)
    if len(states) > 1 and not repair_list:
        echo(merging.whole_shards(states), err=as_json)
    sys.exit(0 if all(each.is_whole for each in found) else 1)


@command
@click.argument("states", nargs=-1, required=True, metavar="STATE...", type=STATE)
@click.option("-o", "--output", metavar="FILE", type=PATH, required=True, help="File to write; `-`: stdout.")
@click.option("--partial", is_flag=True, help="Merge what there is: shards may be missing or unfinished.")
def merge(states: tuple[Path, ...], output: Path, *, partial: bool) -> None:
    """Merge the results of shards, in input order.

    STATE... are the state files of all shards of one input, in any order. FILE is written completely or not at all, and
    the failed rows go to the error file beside it. Shards must not overlap, be missing or be unfinished.

    \b
    Examples:
      batchrun merge prompts.shard-*.results.jsonl.state -o results.jsonl
      batchrun merge out/*.state -o sofar.jsonl --partial
    """
    from batchrun.commands import merge as merging

    target = None if str(output) == "-" else output
    echo(str(merging.merge(states, target, stdout_bytes(), partial=partial)), err=True)


@command
@click.argument("state", type=STATE)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=TARGET,
    required=True,
    help="File to write: .jsonl, .json, .csv (also with .gz or .zst) or .parquet; hf://datasets/OWNER/NAME[/FILE]"
    " pushes it to the Hugging Face Hub; `-`: lines on stdout.",
)
@click.option(
    "--columns",
    metavar="A,B,...",
    help="Columns, with dotted paths: id,prompt,text,metadata.topic. [default of a .csv or .parquet: id, those of the"
    " input, prompt, text, finish_reason, tokens, status, error, values of the sweep]",
)
@click.option("--messages", is_flag=True, help="Write each chat with its answer, as lines for fine-tuning.")
@click.option(
    "--format",
    "form",
    type=click.Choice(get_args(ResultFormat)),
    help="Format of the records in a .jsonl or .json file. [default: that of the results]",
)
@click.option(
    "--with-errors", "--all", "with_errors", is_flag=True, help="Write failed and held rows, too, as in the error file."
)
@click.option("--only", type=click.Choice(("succeeded", "failed")), help="Write only these rows. [default: succeeded]")
def export(
    state: Path,
    output: Path | str,
    columns: str | None,
    form: ResultFormat | None,
    only: Only | None,
    *,
    messages: bool,
    with_errors: bool,
) -> None:
    """Write the results of a STATE file in input order, as records or as a table.

    FILE gets the results of all files of the run, and is written completely or not at all. Its suffix says its form.
    During a run it gets the results so far.

    \b
    Examples:
      batchrun export results.jsonl.state -o ordered.jsonl
      batchrun export results.jsonl.state -o results.parquet
      batchrun export results.jsonl.state -o results.csv --with-errors
      batchrun export results.jsonl.state -o short.csv --columns id,prompt,text,metadata.topic
      batchrun export results.jsonl.state -o train.jsonl --messages
      batchrun export results.jsonl.state -o hf://datasets/OWNER/NAME
      batchrun export out.state -o - --columns id,text | head
      batchrun export results.jsonl.state -o batch_output.jsonl --format openai --all
    """
    from batchrun.commands import export as exporting
    from batchrun.results.hub import hub_file
    from batchrun.results.tables import parse_columns

    chosen = None if columns is None else parse_columns(columns)
    wanted = exporting.Wanted(form, with_errors, only, chosen, messages)
    target = hub_file(output) if isinstance(output, str) else None if str(output) == "-" else output
    echo(str(exporting.export(state, target, stdout_bytes(), wanted)), err=True)


@command
@click.argument("state", type=STATE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with all variants on stdout.")
@click.option("--csv", "as_csv", is_flag=True, help="Print one table, as CSV, on stdout.")
@click.option("--by", metavar="PATH", help="Split the scores by this field of the records, such as metadata.topic.")
@click.option("--html", metavar="FILE", type=PATH, help="Also write a page with plots to FILE.")
def report(state: Path, *, as_json: bool, as_csv: bool, by: str | None, html: Path | None) -> None:
    """Show the results of the run of a STATE file by the variants of its sweep, even during the run.

    If the answers have been scored (see `batchrun score`), their quality is shown, with 95% intervals.

    \b
    Examples:
      batchrun report sweep.jsonl.state
      batchrun report sweep.jsonl.state --by metadata.topic
      batchrun report sweep.jsonl.state --csv > sweep.csv
      batchrun report sweep.jsonl.state --json | jq '.variants[] | [.label, .execution_ms.p50]'
    """
    from batchrun.commands import report as reporting
    from batchrun.display import report_csv
    from batchrun.display import variants as tables

    if html is not None:
        from batchrun.commands import report_page as webpage
    if as_json and as_csv:
        raise UsageError("both --json and --csv are given", "remove one of them")
    seen = reporting.read(state, by)
    if html is not None:
        webpage.write(seen, html)
        echo(f"page with plots written to {html}", err=True)
    if as_csv:
        echo(report_csv.to_csv(seen), nl=False)
    else:
        echo(tables.to_json(seen) if as_json else tables.render(seen), nl=False)
