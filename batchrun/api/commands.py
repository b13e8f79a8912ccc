"""The other commands, as functions: each returns what it found, and prints nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Unpack

from batchrun.api.arguments import (
    RequestKeywords,
    RunKeywords,
    StreamKeywords,
    as_json,
    checked,
    refuse_other_words,
    refuse_out_of_bounds,
    spelled_out,
)
from batchrun.api.calls import observing, run_to_end
from batchrun.api.loaded import Summary
from batchrun.api.requests import endpoint_ids, files_or_requests
from batchrun.commands import check as checking
from batchrun.commands import estimate as estimating
from batchrun.commands import export as exporting
from batchrun.commands import merge as merging
from batchrun.commands import redo as redoing
from batchrun.commands import report as reporting
from batchrun.commands import score as scoring
from batchrun.commands import status as looking
from batchrun.commands import verify as verification
from batchrun.commands import view as viewing
from batchrun.commands.arguments import RunArguments
from batchrun.commands.check import CheckReport
from batchrun.commands.confirming import confirmed
from batchrun.commands.estimate_arguments import PILOT_ROWS
from batchrun.commands.export import Exported, Only, Wanted
from batchrun.commands.findings import Verification
from batchrun.commands.merge import MergeReport
from batchrun.commands.redo_arguments import RedoArguments
from batchrun.commands.request_arguments import RequestArguments, several
from batchrun.commands.run_options import refuse_wrong_parameters, request_options, run_options
from batchrun.commands.score import ScoreReport
from batchrun.commands.session_options import session_options
from batchrun.commands.status import RunStatus
from batchrun.commands.view import ViewReport
from batchrun.config import SCORE_TIMEOUT_S, VIEW_ROWS, ProgressMode, ResultFormat
from batchrun.display.estimate import Estimate
from batchrun.display.variants import VariantTable
from batchrun.errors import RunInterrupted, StoppedError, UsageError, shown
from batchrun.evaluation.scorers import DEFAULT_REFERENCE, Rules
from batchrun.files.paths import refuse_unspeakable
from batchrun.prompts.sources import find_sources
from batchrun.results.hub import hub_file, is_hub_name
from batchrun.results.tables import parse_columns
from batchrun.runs.resumed import resumed_options
from batchrun.runs.state_path import state_file

PathLike = str | os.PathLike[str]


@spelled_out(RequestKeywords)
def check(
    inputs: PathLike | Sequence[PathLike],
    *,
    sweep: Mapping[str, Sequence[Any]] | None = None,
    repeat: int = 1,
    strict: bool = False,
    **options: Unpack[RequestKeywords],
) -> CheckReport:
    """Validate every line of files and folders. `is_good` says whether they can be run, `problems` what is wrong.

    Args:
        inputs: A file or folder, or a list of several.
        sweep: Key -> values, as for `run`.
        repeat: Samples of each line, or of each combination.
        strict: Whether warnings count as errors.

    Returns:
        What was found.

    Raises:
        UsageError: an argument is invalid.
        InputError: a file cannot be read.
    """
    names = [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, (str, os.PathLike)) for name in names):
        raise UsageError(
            f"inputs is of type {type(inputs).__name__}, not one or several paths",
            "check reads files; run checks the requests of a program before it sends any",
        )
    given = checked(RequestArguments(sweep=sweep, repeat=repeat, strict=strict, **options))
    request, variants = request_options(given)
    refuse_wrong_parameters(given)
    sources = find_sources([os.fsdecode(name) for name in names])
    for source in sources:
        refuse_unspeakable(Path(source.path))
    return checking.inspect(sources, stdin=BytesIO(), request=request, sweep=variants, strict=strict)


def status(state: PathLike) -> RunStatus:
    """The status of a run, running or not.

    Raises:
        StateError: there is no such state file, or it cannot be read.
    """
    return looking.read_status(state_file(state))


@spelled_out(RequestKeywords, StreamKeywords, RunKeywords)
def estimate(
    inputs: PathLike | Sequence[PathLike],
    *,
    endpoint: str | Sequence[str] | None = None,
    output: PathLike,
    pilot: int = PILOT_ROWS,
    state: PathLike | None = None,
    api_key: str | None = None,
    progress: ProgressMode = "none",
    **options: Unpack[RunKeywords],
) -> Estimate | None:
    """Run a few random rows of files, and estimate the rest. `run` with the same arguments runs the rest.

    Args:
        inputs: As for `run`, but files only.
        endpoint: As for `run`.
        output: As for `run`.
        pilot: The number of rows, at least two; those of earlier calls count.
        state: As for `run`.
        api_key: None: that of RUNPOD_API_KEY, else that in `~/.runpod/config.toml`.
        progress: Progress on stderr, as for `run`.

    Returns:
        Ranges for times, tokens and cost; None if no row is left, or if every row of the pilot failed.

    Raises:
        UsageError: an argument, an input or the state file is invalid; nothing was sent.
        StoppedError: the run stopped before the pilot had ended.
        BatchrunError: it was interrupted, or nothing was sent.
    """
    names, requests = files_or_requests(inputs)
    if requests is not None:
        raise UsageError("estimate needs files", "write the requests to a file")
    given = checked(
        RunArguments(
            inputs=names,
            endpoint=None if endpoint is None else endpoint_ids(endpoint),
            output=os.fsdecode(output),
            state=None if state is None else os.fsdecode(state),
            progress=progress,
            **options,
        )
    )
    run_as = run_options(given)
    with observing(progress) as observer:
        work = partial(estimating.estimate, run_as, given, pilot, observer=observer, api_key=api_key)
        found = run_to_end(work, run_as.guards.on_interrupt)
    if found.summary.outcome == "stopped":
        raise StoppedError(found.summary.reason, found.summary.hint)
    if found.summary.outcome == "interrupted":
        raise RunInterrupted("the pilot was interrupted", "the same call continues it")
    return found.estimate


def verify(state: PathLike) -> Verification:
    """Prove that a run is complete and undamaged; `is_whole` says whether it is, `problems` what is wrong.

    Raises:
        StateError: there is no such state file, or it cannot be read.
    """
    return verification.verify(state_file(state))


def score(
    state: PathLike,
    scorer: str,
    *,
    reference: str = DEFAULT_REFERENCE,
    normalize: Sequence[str] = (),
    tolerance: float | str = 0,
    timeout: float = SCORE_TIMEOUT_S,
    with_errors: bool = False,
) -> ScoreReport:
    """Score the answers of a run, and write the scores beside its state file; `report` then includes the quality.

    Args:
        state: The state file.
        scorer: `exact`, `contains`, `number`, `choice`, `json`, `regex:PATTERN` or `py:FILE:FUNCTION`.
        reference: The dotted path of the right answer in a record.
        normalize: What to ignore when texts are compared: `case`, `space`, `punctuation`.
        tolerance: How far a number may be from the reference; with `%`, relative to it.
        timeout: Seconds that a function or a pattern may take per row.
        with_errors: Whether failed and held rows count as wrong.

    Raises:
        UsageError: an argument is invalid, or no row can be scored.
        StateError: the state file or the results cannot be read, or there are none.
        OutputError: the scores cannot be written.
    """
    rules = Rules(reference, tuple(several(normalize)), str(tolerance))
    return scoring.score(state_file(state), scorer, rules, timeout_s=timeout, with_errors=with_errors)


def report(state: PathLike, *, by: str | None = None) -> VariantTable:
    """The results of a run by the variants of its sweep, and their quality if the answers were scored.

    Args:
        state: The state file.
        by: A field of the records by which the questions are split, such as `metadata.topic`; None: they are not.

    Raises:
        StateError: there is no such state file, or it cannot be read.
        UsageError: the scores cannot be split by this field.
    """
    return reporting.read(state_file(state), by)


def view(state: PathLike, output: PathLike | None = None, *, rows: int = VIEW_ROWS) -> ViewReport:
    """Write the page of a run: every row with its prompt and answer, for searching, filtering and comparing.

    Args:
        state: The state file.
        output: The page; None: `<output stem>.view.html` beside the state file.
        rows: The most rows it shows; of a larger run, it shows a sample.

    Raises:
        UsageError: the output is a folder, or a file that batchrun did not write; or `rows` is invalid.
        StateError: the state file, a results file or the scores cannot be read, or no row has ended.
        OutputError: the page cannot be written.
    """
    if rows < 1:
        raise UsageError(f"rows={shown(rows)} is not valid", "give a whole number, at least 1")
    return viewing.view(state_file(state), None if output is None else Path(output), rows)


def export(
    state: PathLike,
    output: PathLike,
    *,
    columns: Sequence[str] | None = None,
    messages: bool = False,
    format: ResultFormat | None = None,  # noqa: A002 - the option's name
    with_errors: bool = False,
    only: Only | None = None,
) -> Exported:
    """Write the results of a run to a file, in input order: as records or as a table, as its suffix says.

    Args:
        state: The state file.
        output: The file, which is replaced by a rename; or `hf://datasets/OWNER/NAME[/FILE]`.
        columns: The columns of a table, dotted paths among them; None: those that it has by itself.
        messages: Whether to write each chat with its answer, for fine-tuning.
        format: `batchrun` or `openai`; None: that of the results.
        with_errors: Whether to write the error records of failed and held rows, too.
        only: Only the `succeeded` or only the `failed` rows; None: as `with_errors` says.

    Raises:
        UsageError: the file belongs to a run, is not a regular file, or has an unknown suffix; or no row has a column;
            or an argument is invalid.
        StateError: the state file or the results cannot be read.
        OutputError: the file cannot be written.
    """
    refuse_other_words("format", format, ResultFormat)
    refuse_other_words("only", only, Only)
    chosen = None if columns is None else parse_columns(",".join(several(columns)))
    wanted = Wanted(format, with_errors, only, chosen, messages)
    name = os.fspath(output)
    target = hub_file(name) if is_hub_name(name) else Path(name)
    return exporting.export(state_file(state), target, BytesIO(), wanted)


def merge(states: Sequence[PathLike], output: PathLike, *, partial: bool = False) -> MergeReport:
    """Merge the results of shards, in input order.

    Args:
        states: The state files of all shards of one input, in any order.
        output: The file; the failed rows go to the error file beside it.
        partial: Whether shards may be missing or unfinished.

    Raises:
        StateError: the shards do not belong together, or are incomplete.
        UsageError: the file belongs to a run, or is not a regular file; or there are no state files.
        OutputError: the file cannot be written.
    """
    shards = [states] if isinstance(states, (str, os.PathLike)) else list(states)
    if not shards:
        raise UsageError("there are no state files", "give those of all shards")
    return merging.merge([state_file(state) for state in shards], Path(output), BytesIO(), partial=partial)


def redo(
    state: PathLike,
    *,
    where: Sequence[str] = (),
    ids: Iterable[str] | None = None,
    failed: bool = False,
    only: Sequence[str] = (),
    set: Mapping[str, Any] | None = None,  # noqa: A002 - the option's name
    api_key: str | None = None,
    base_url: str | None = None,
    max_cost: float | None = None,
    deadline: float | None = None,
    progress: ProgressMode = "none",
) -> Summary:
    """Run rows again that have ended, in the same run, and pay for them. Their old results move to another file.

    Args:
        state: The state file.
        where: Conditions on the record, such as `finish_reason=length`; all must hold.
        ids: Only rows with these ids; None: all.
        failed: Rows that failed, and no others.
        only: With `failed`, only rows that failed with one of these kinds of error.
        set: Sampling parameters for these rows alone.
        api_key: None: that of RUNPOD_API_KEY, else that in `~/.runpod/config.toml`.
        base_url: Confirms the URL of the run's jobs, if the state file does not prove that you chose it.
        max_cost: Budget of the whole run in dollars; None: as before.
        deadline: Seconds from now by which the run must end; None: as before.
        progress: Progress on stderr, as for `run`.

    Raises:
        UsageError: no row is chosen, or an argument is invalid; nothing has changed.
        BatchrunError: nothing was sent.
    """
    found = resumed_options(state_file(state))
    given = RedoArguments(
        where=tuple(several(where)),
        ids=None if ids is None else tuple(map(str, several(ids))),
        failed=failed,
        kinds=tuple(several(only)),
        set=as_json("set", set),
        base_url=base_url,
        max_cost=max_cost,
        deadline=deadline,
        progress=progress,
    )
    refuse_out_of_bounds(given)
    options = session_options(given, found)
    with observing(progress) as observer:
        work = partial(
            redoing.redo,
            options,
            given,
            observer=observer,
            confirm=_agree,
            api_key=api_key,
            confirmed=confirmed(given, options),
        )
        return Summary.of(run_to_end(work, options.guards.on_interrupt))


def _agree(_: str) -> None:
    """Do nothing: a program that calls the function has decided."""
