"""The commands that drive a run: `run`, `estimate`, `resume`, `redo`, `watch` and `cancel`."""

from __future__ import annotations

import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from batchrun.cli.command import ARGUMENTS, command
from batchrun.cli.options import takes
from batchrun.cli.output import echo, make_observer, show_ending, show_summary, show_total
from batchrun.cli.values import STATE
from batchrun.commands.arguments import RunArguments, WatchArguments
from batchrun.commands.estimate_arguments import EstimateArguments
from batchrun.commands.redo_arguments import RedoArguments
from batchrun.commands.session_arguments import CancelArguments, ResumeArguments, SessionArguments, ShowArguments
from batchrun.errors import BatchrunError, StoppedError, UsageError
from batchrun.files.streams import stdout_bytes

if TYPE_CHECKING:
    from batchrun.commands.detached import Background
    from batchrun.config import RunOptions
    from batchrun.display.estimate import Estimate
    from batchrun.display.summary import Observer, Summary
    from batchrun.runs.trust import GivenByCommand


@command
@takes(RunArguments)
def run(given: RunArguments) -> None:
    """Run the prompts in INPUT..., or resume a run: the same command again resumes it.

    INPUT is a file (.jsonl, .csv, .tsv, .json, .parquet; also .gz, .bz2, .xz, .zst), a folder of such files, a quoted
    pattern such as 'data/*.csv', a URL (https, s3, gs, hf), or `-` for JSON lines on stdin. A line, or a row of a
    table, is a prompt, chat messages, an `input` object for any worker, or an OpenAI batch line; --prompt makes one of
    any other columns. The results are JSON lines; `export` makes a table of them. The API key comes from
    RUNPOD_API_KEY.

    \b
    Examples:
      batchrun run prompts.jsonl -e abc123xyz -o results.jsonl
      batchrun run prompts.jsonl -e abc123xyz -o results.jsonl --set max_tokens=256 --system "Be brief."
      batchrun run shards/ -e abc123xyz -o out/
      batchrun run reviews.csv -e abc123xyz -o labels.jsonl --prompt 'Label: {{ review }}' --schema 'mood, topic'
      zcat big.jsonl.gz | batchrun run - -e abc123xyz -o results.jsonl --limit 100
      batchrun run prompts.jsonl -e abc123xyz --canary 10 --price-per-hour 2.5 --max-cost 40 --deadline 8h
      batchrun run questions.jsonl -e abc123xyz --sweep temperature=0.3,0.7 --repeat 4 --dry-run
      batchrun run --config sweep.toml
      batchrun run samples/ -e local -o rehearsal/ --dry-run
    """
    from batchrun.commands.dry_run import dry_run
    from batchrun.commands.local_endpoint import refuse_local_options
    from batchrun.commands.run_options import run_options

    options = run_options(given)
    refuse_local_options(given, options)
    if given.dry_run:
        dry_run(options, stdout_bytes(), make_observer(given), given.dry_run)
        return
    if given.confirm:
        if not (given.detach and _is_in_background(options)):
            _pilot(options, given)
        given = replace(given, retry_failed=False, only=())  # the pilot has done so
    _run(options, given, given.api_key_file, detach=given.detach)


def _pilot(options: RunOptions, given: RunArguments) -> None:
    """Run the pilot, show the estimate and ask; returns if the rest is to run.

    Raises:
        UsageError: there is no terminal to ask on; nothing was sent.
        StoppedError: the answer is no.
    """
    from batchrun.commands.estimate_arguments import PILOT_ROWS
    from batchrun.display.estimate_text import render

    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            "--confirm: there is no terminal to ask on; nothing was sent",
            "run `batchrun estimate` with the same options, then `batchrun run` without --confirm",
        )
    found, *_ = _estimate(options, given, PILOT_ROWS)
    echo(render(found), err=True)
    if not click.confirm("Run the rest?", err=True):
        raise StoppedError(
            "not confirmed; the rows of the pilot keep their results",
            "without --confirm, the same command runs the rest",
        )


@command
@takes(EstimateArguments)
def estimate(given: EstimateArguments) -> None:
    """Run a few random rows of INPUT..., and estimate the time and cost of the rest.

    The rows are part of the run: `batchrun run` with the same options runs the rest. The estimate goes to stdout: for 1
    worker, 3 workers and as many as the endpoint has, with a range for each figure. The same command again runs nothing
    more, unless --pilot is larger.

    \b
    Examples:
      batchrun estimate prompts.jsonl -e abc123xyz -o results.jsonl --price-per-hour 2.5
      batchrun estimate prompts.jsonl -e abc123xyz -o results.jsonl --pilot 200 --json
      batchrun estimate prompts.jsonl -e abc123xyz -o results.jsonl --pilot 0
    """
    from batchrun.commands import estimate as estimating
    from batchrun.commands.local_endpoint import refuse_local_options
    from batchrun.commands.run_options import run_options
    from batchrun.display.estimate_text import render, to_json

    options = run_options(given)
    refuse_local_options(given, options)
    if not given.pilot:
        counted = estimating.count(options, make_observer(given))
        echo(counted.to_json() if given.as_json else str(counted), nl=False)
        return
    found, exit_code, observer = _estimate(options, given, given.pilot)
    echo(to_json(found) if given.as_json else render(found), nl=False)
    budget = "" if found.max_cost is None else f" --max-cost {found.max_cost:g}"
    observer.message(f"run the rest: batchrun resume {shlex.quote(str(options.state))}{budget}")
    sys.exit(exit_code)


def _estimate(options: RunOptions, given: RunArguments, pilot: int) -> tuple[Estimate, int, Observer]:
    """Run the pilot; returns the estimate, the pilot's exit code, and the observer. Without an estimate, it exits."""
    from batchrun.commands import estimate as estimating
    from batchrun.endpoint.credentials import find_key

    api_key = find_key(options, key_file=given.api_key_file)
    observer = make_observer(given, api_key)
    report = estimating.estimate(options, given, pilot, observer=observer, api_key=api_key)
    if report.estimate is None:
        _finish(report.summary, given)
    return report.estimate, report.summary.exit_code, observer


@command
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
    from batchrun.commands.confirming import confirmed
    from batchrun.commands.local_endpoint import refuse_local_options
    from batchrun.commands.session_options import session_options
    from batchrun.runs.resumed import resumed_options

    options = session_options(given, resumed_options(state, repair=given.repair))
    refuse_local_options(given, options)
    _run(options, given, given.api_key_file, detach=given.detach, confirmed=confirmed(given, options))


@command
@click.argument("state", type=STATE)
@takes(RedoArguments)
def redo(given: RedoArguments, state: Path) -> None:
    """Run finished rows of a STATE file again, in the same run.

    Says how many rows it will pay for, and asks. Then their old results move to <output stem>.superseded.jsonl, and
    the run is resumed. A row that fails this time has no result any more; its old one is still in that file.

    \b
    Examples:
      batchrun redo results.jsonl.state --where finish_reason=length --set max_tokens=2048
      batchrun redo results.jsonl.state --where 'text~(?i)as an ai' --where metadata.lang=en
      batchrun redo results.jsonl.state --failed --only bad_request --set max_tokens=256 --yes
      jq -r 'select(.score < 3).id' judged.jsonl | batchrun redo results.jsonl.state --ids - --yes
    """
    from batchrun.commands import redo as redoing
    from batchrun.commands.confirming import confirmed
    from batchrun.commands.local_endpoint import refuse_local_options
    from batchrun.commands.session_options import session_options
    from batchrun.endpoint.credentials import find_key
    from batchrun.runs.resumed import resumed_options

    options = session_options(given, resumed_options(state))
    refuse_local_options(given, options)
    api_key = find_key(options, key_file=given.api_key_file)
    observer = make_observer(given, api_key)
    summary = redoing.redo(
        options,
        given,
        observer=observer,
        confirm=observer.message if given.yes else _confirm,
        api_key=api_key,
        confirmed=confirmed(given, options),
    )
    _finish(summary, given)


def _confirm(what: str) -> None:
    """Ask on the terminal.

    Raises:
        UsageError: the answer is no, or there is no terminal.
    """
    echo(what, err=True)
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            "there is no terminal to ask on; nothing was sent, and nothing has changed", "add --yes to agree"
        )
    if not click.confirm("Run them?", err=True):
        raise UsageError("not confirmed; nothing was sent, and nothing has changed")


@command
@takes(WatchArguments)
def watch(given: WatchArguments) -> None:
    """Run every input file that arrives in FOLDER, one after another.

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


@command
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
    from batchrun.commands.answer_options import answers
    from batchrun.commands.confirming import confirmed
    from batchrun.endpoint.credentials import find_key
    from batchrun.runs.resumed import resumed_options

    options = resumed_options(state)
    options = replace(options, answers=answers(given, options.answers))
    api_key = find_key(options, key_file=given.api_key_file)
    summary = cancelling.cancel(
        options,
        observer=make_observer(given, api_key),
        confirmed=confirmed(given, options),
        api_key=api_key,
        notify_url=given.notify,
    )
    _finish(summary, given)


def _run(
    options: RunOptions,
    given: SessionArguments,
    key_file: Path | None,
    *,
    detach: bool,
    confirmed: GivenByCommand | None = None,
) -> NoReturn:
    """Run or, with what the command confirms, resume. With `detach`, a background process does it."""
    from batchrun.commands import run as running
    from batchrun.endpoint.credentials import find_key
    from batchrun.runs.trust import EVERYTHING

    background = _background(options) if detach else None
    api_key = find_key(options, key_file=key_file)
    observer = make_observer(given, api_key)
    summary = running.run(
        options,
        given,
        observer=observer if background is None else background.watching(observer),
        api_key=api_key,
        resumed=confirmed is not None,
        confirmed=confirmed or EVERYTHING,
    )
    _finish(summary, given)


def _is_in_background(options: RunOptions) -> bool:
    """Whether this process is in the background already.

    Raises:
        UsageError: it is not, and could not go there.
    """
    from batchrun.commands import detached

    detached.refuse_wrong_log(options)
    return detached.Background.is_here()


def _background(options: RunOptions) -> Background:
    """What this process has to do in the background. If it is in the foreground, start the background process."""
    import orjson

    from batchrun.commands import detached

    background = detached.Background.of_environment()
    if background is not None:
        return background
    arguments = click.get_current_context().meta[ARGUMENTS]
    started = detached.start(options, arguments, sys.stderr.write)
    if not isinstance(started, int):
        echo(orjson.dumps(started))
        sys.exit(0)
    if started < 0:
        raise BatchrunError(
            f"the run was ended by {signal.Signals(-started).name} before it was under way",
            "run the same command to start it again",
        )
    sys.exit(started)


def _finish(summary: Summary, given: ShowArguments) -> NoReturn:
    show_summary(summary, given)
    sys.exit(summary.exit_code)
