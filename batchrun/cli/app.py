"""The command line: parse, wire, print, exit. stdout is for data, stderr for people.

Only click and the options are imported at the top, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, get_args

import click

from batchrun.cli.command import Group
from batchrun.cli.guides import show_guide
from batchrun.cli.options import takes
from batchrun.cli.output import echo, make_observer, show_ending, show_summary, show_total
from batchrun.cli.values import PATH, STATE
from batchrun.commands.arguments import (
    CancelArguments,
    RequestArguments,
    ResumeArguments,
    RunArguments,
    SessionArguments,
    ShowArguments,
    WatchArguments,
)
from batchrun.commands.serve_arguments import ServeArguments
from batchrun.config import VERSION, ResultFormat
from batchrun.files.streams import stdin_bytes, stdout_bytes

if TYPE_CHECKING:
    from batchrun.config import RunOptions
    from batchrun.display.summary import Summary

_EXIT_CODES = """
\b
Exit codes:
  0    every row succeeded
  1    unexpected error
  2    invalid usage or invalid input; nothing was sent
  3    finished, but some rows failed
  4    stopped early (breaker, canary, budget, deadline, refused key, disk full); can be resumed
  130  interrupted; can be resumed
"""

_ENVIRONMENT = {"auto_envvar_prefix": "BATCHRUN"}
"""Every option can also be given as BATCHRUN_<OPTION>."""


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EXIT_CODES,
)
@click.version_option(VERSION, "-V", "--version", prog_name="batchrun")
def main() -> None:
    """Run JSONL prompt files through a Runpod serverless queue endpoint.

    Every prompt is submitted, tracked in a state file and collected into a JSONL results file.
    However a run is interrupted, the same command resumes it.

    \b
    Examples:
      batchrun run samples/haikus.jsonl --endpoint local -o haikus.results.jsonl
      batchrun run prompts.jsonl -e abc123xyz -o out/results.jsonl
      batchrun status out/results.jsonl.state
    """


def _command(short_help: str) -> Callable[[Callable[..., None]], click.Command]:
    """Define a command, with a summary that fits 80 columns."""
    return main.command(context_settings=_ENVIRONMENT, short_help=short_help)


@_command("Run prompt files. The same command again resumes the run.")
@takes(RunArguments)
def run(given: RunArguments) -> None:
    """Run the prompts in INPUT..., or resume a run: the same command again resumes it.

    INPUT is a JSONL file (also .gz), a folder of such files, or `-` for stdin. A line is a prompt, chat
    messages, an `input` object for any worker, or an OpenAI batch line. The API key comes from RUNPOD_API_KEY.

    \b
    Examples:
      batchrun run prompts.jsonl -e abc123xyz -o results.jsonl
      batchrun run prompts.jsonl -e abc123xyz -o results.jsonl --set max_tokens=256 --system "Be brief."
      batchrun run shards/ -e abc123xyz -o out/
      zcat big.jsonl.gz | batchrun run - -e abc123xyz -o results.jsonl --limit 100
      batchrun run prompts.jsonl -e abc123xyz --canary 10 --price-per-hour 2.5 --max-cost 40 --deadline 8h
      batchrun run questions.jsonl -e abc123xyz --sweep temperature=0,0.7 --repeat 4 --dry-run
      batchrun run --config sweep.toml
      batchrun run samples/ -e local -o rehearsal/ --dry-run
    """
    from batchrun.commands.dry_run import dry_run
    from batchrun.commands.local_endpoint import refuse_local_options
    from batchrun.commands.run_options import run_options

    options = run_options(given)
    refuse_local_options(given, options)
    if given.dry_run:
        dry_run(options, stdout_bytes(), make_observer(given))
        return
    _run(options, given, given.api_key_file)


@_command("Resume the run of a STATE file, with its options.")
@click.argument("state", type=STATE)
@takes(ResumeArguments)
def resume(given: ResumeArguments, state: Path) -> None:
    """Resume the run of a STATE file with the options that it was started with.

    \b
    Examples:
      batchrun resume results.jsonl.state
      batchrun resume results.jsonl.state --retry-failed --only timed_out
      batchrun resume results.jsonl.state --max-cost 80
    """
    from batchrun.commands.local_endpoint import refuse_local_options
    from batchrun.commands.run_options import confirms_base_url, guards
    from batchrun.runs.resumed import resumed_options

    options = resumed_options(state, repair=given.repair)
    options = replace(options, guards=guards(given, options.guards))
    refuse_local_options(given, options)
    _run(options, given, given.api_key_file, resumed=True, confirmed_url=confirms_base_url(given, options))


@_command("Run every JSONL file that arrives in FOLDER, one after another.")
@takes(WatchArguments)
def watch(given: WatchArguments) -> None:
    """Run every JSONL file that arrives in FOLDER, one after another.

    Each file is a run of its own, with its own results and state file. The options are those of `batchrun run`; guards
    and --limit apply to each file. When a file is done, a record is written beside its results: NAME.done or
    NAME.failed. Nothing in FOLDER is changed. The same command again resumes an interrupted file, and runs all files
    that have no record.

    \b
    Examples:
      batchrun watch inbox/ -e abc123xyz -o results/
      batchrun watch inbox/ -e abc123xyz -o results/ --until-empty --set max_tokens=256
    """
    from batchrun.commands import watch as watching
    from batchrun.commands.local_endpoint import refuse_local_options
    from batchrun.commands.run_options import watch_options
    from batchrun.endpoint.credentials import find_key

    options = watch_options(given, given.folder, given.output)
    refuse_local_options(given, options)
    api_key = find_key(options, key_file=given.api_key_file)
    total = watching.watch(
        options,
        given,
        observer=make_observer(given, api_key),
        show=lambda file, ending: show_ending(file, ending, given),
        api_key=api_key,
    )
    show_total(total, given)
    sys.exit(total.exit_code)


@_command("Show the status of the run of a STATE file, running or not.")
@click.argument("state", type=STATE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def status(state: Path, *, as_json: bool) -> None:
    """Show the status of the run of a STATE file, running or not.

    \b
    Examples:
      batchrun status results.jsonl.state
      watch -n 10 batchrun status results.jsonl.state
    """
    from batchrun.commands import status as reporting

    found = reporting.read_status(state)
    echo(reporting.to_json(found) if as_json else reporting.render(found), nl=False)


@_command("Cancel the jobs in flight of the run of a STATE file.")
@click.argument("state", type=STATE)
@takes(CancelArguments)
def cancel(given: CancelArguments, state: Path) -> None:
    """Cancel the jobs in flight of the run of a STATE file, queued ones first.

    Only the run's own jobs are cancelled. Jobs that have finished by then are collected; the other rows return to
    pending, and `resume` submits them again. If another process is driving the run, it cancels the jobs and exits.

    \b
    Examples:
      batchrun cancel results.jsonl.state
    """
    from batchrun.commands import cancel as cancelling
    from batchrun.commands.run_options import confirms_base_url
    from batchrun.endpoint.credentials import find_key
    from batchrun.runs.resumed import resumed_options

    options = resumed_options(state)
    api_key = find_key(options, key_file=given.api_key_file)
    summary = cancelling.cancel(
        options,
        observer=make_observer(given, api_key),
        confirmed_url=confirms_base_url(given, options),
        api_key=api_key,
        notify_url=given.notify,
    )
    _finish(summary, given)


@_command("Prove that runs are complete and undamaged.")
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


@_command("Merge the results of shards, in input order.")
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


@_command("Write the results of a STATE file in input order.")
@click.argument("state", type=STATE)
@click.option("-o", "--output", metavar="FILE", type=PATH, required=True, help="File to write; `-`: stdout.")
@click.option(
    "--format",
    "form",
    type=click.Choice(get_args(ResultFormat)),
    help="Format of the file. [default: that of the results]",
)
@click.option("--all", "with_errors", is_flag=True, help="Write failed and held rows, too, as in the error file.")
def export(state: Path, output: Path, form: ResultFormat | None, *, with_errors: bool) -> None:
    """Write the results of a STATE file in input order.

    FILE gets the lines of all results files, and is written completely or not at all. During a run it gets the results
    so far.

    \b
    Examples:
      batchrun export results.jsonl.state -o ordered.jsonl
      batchrun export out.state -o - | gzip > ordered.jsonl.gz
      batchrun export results.jsonl.state -o batch_output.jsonl --format openai --all
    """
    from batchrun.commands import export as exporting

    target = None if str(output) == "-" else output
    echo(str(exporting.export(state, target, stdout_bytes(), form, with_errors=with_errors)), err=True)


@_command("Show the results of a run by the variants of its sweep.")
@click.argument("state", type=STATE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with all variants on stdout.")
@click.option("--html", metavar="FILE", type=PATH, help="Also write a page with plots to FILE.")
def report(state: Path, *, as_json: bool, html: Path | None) -> None:
    """Show the results of the run of a STATE file by the variants of its sweep, even during the run.

    \b
    Examples:
      batchrun report sweep.jsonl.state
      batchrun report sweep.jsonl.state --json | jq '.variants[] | [.label, .execution_ms.p50]'
    """
    from batchrun.commands import report as reporting
    from batchrun.display import variants as tables

    if html is not None:
        from batchrun.commands import report_page as webpage
    seen = reporting.read(state)
    if html is not None:
        webpage.write(seen, html)
    echo(tables.to_json(seen) if as_json else tables.render(seen), nl=False)


@_command("Validate prompt files, and report every invalid line.")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@takes(RequestArguments)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def check(given: RequestArguments, inputs: tuple[str, ...], *, as_json: bool) -> None:
    """Validate INPUT... and report every invalid line, or sum the inputs up if there is none.

    Also shows how each field is used. Give the options of `run` that change what is sent, and they are applied.

    \b
    Examples:
      batchrun check prompts.jsonl
      batchrun check prompts.jsonl --chat --default max_tokens=256 --strict
      batchrun check shards/ --json
    """
    import orjson

    from batchrun.commands import check as checking
    from batchrun.commands.run_options import refuse_wrong_parameters, request_options
    from batchrun.files.paths import refuse_unspeakable
    from batchrun.prompts.sources import find_sources

    request, sweep = request_options(given)
    refuse_wrong_parameters(given)

    sources = find_sources(inputs, tell=lambda text: click.echo(text, err=True))
    for source in sources:
        refuse_unspeakable(Path(source.path))
    report = checking.inspect(sources, stdin=stdin_bytes(), request=request, sweep=sweep, strict=given.strict)
    if as_json:
        echo(orjson.dumps(checking.to_json(report), option=orjson.OPT_INDENT_2))
    else:
        echo(checking.render(report), nl=False)
    sys.exit(0 if report.is_good else 2)


@_command("Serve a local endpoint with Runpod's queue API.")
@takes(ServeArguments)
def serve(given: ServeArguments) -> None:
    """Serve a local endpoint with Runpod's queue API, for rehearsals and tests.

    \b
    Examples:
      batchrun serve --port 8000
      batchrun serve --worker echo --workers 100 --latency 0.2 --fail-rate 0.01 --limits
      batchrun serve --upstream http://localhost:11434/v1
      batchrun run prompts.jsonl -e any --base-url http://127.0.0.1:8000/v2 -o results.jsonl
    """
    from batchrun.commands import serve as serving

    serving.serve(given, make_observer(ShowArguments(progress="plain")), lambda text: echo(text, err=True))


main.add_command(show_guide)


def _run(
    options: RunOptions,
    given: SessionArguments,
    key_file: Path | None,
    *,
    resumed: bool = False,
    confirmed_url: bool = False,
) -> NoReturn:
    from batchrun.commands import run as running
    from batchrun.endpoint.credentials import find_key

    api_key = find_key(options, key_file=key_file)
    observer = make_observer(given, api_key)
    summary = running.run(
        options, given, observer=observer, api_key=api_key, resumed=resumed, confirmed_url=confirmed_url
    )
    _finish(summary, given)


def _finish(summary: Summary, given: ShowArguments) -> NoReturn:
    show_summary(summary, given)
    sys.exit(summary.exit_code)
