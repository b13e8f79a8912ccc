"""The end of a session, whatever ended it: error files, summary, manifest.

Everything is read from the state file, so it is the same after a crash as without one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing
from itertools import chain
from pathlib import Path

from batchrun.config import VERSION
from batchrun.display.summary import FailureGroup, Percentiles, Summary, WorkerGroup
from batchrun.display.timeline import Timeline
from batchrun.engine.driver import Outcome
from batchrun.engine.rules import has_rules
from batchrun.errors import OutputError, StoppedError
from batchrun.results.record import CACHED
from batchrun.results.superseded import superseded_path
from batchrun.results.text import CONTEXT_FULL, MARKS
from batchrun.results.writer import errors_path, is_private, write_errors
from batchrun.runs.checks import OwnFiles
from batchrun.runs.conversion import error_lines
from batchrun.runs.manifest import FileDigest, digest_file, manifest_path, write_manifest
from batchrun.runs.opening import OpenRun
from batchrun.runs.ordering import order_results
from batchrun.runs.spending import cost_so_far
from batchrun.runs.superseding import committed_superseded
from batchrun.runs.work import endpoint_work, few_jobs
from batchrun.scheduler.faulty_workers import ENDED_BY, FAILED_BY
from batchrun.scheduler.states import RowState
from batchrun.state import figures
from batchrun.state.amendments import count_tries
from batchrun.state.dedupe import count_shared
from batchrun.state.reader import StateReader
from batchrun.state.stored_options import read_options
from batchrun.state.tunings import applied_tunings


def conclude(run: OpenRun, outcome: Outcome) -> Summary:
    """Write error files and manifest, end the session, and return the summary.

    If a file cannot be written, a finished run becomes a stopped one; its rows are safe in the state.

    Args:
        run: The run, with the session still open.
        outcome: How the session ended.
    """
    store, now = run.store, run.wall()
    errors: list[Path] = []
    error = outcome.error
    try:
        errors = _write_errors(run)
        if run.options.ordered and outcome.kind == "finished":
            order_results(store.path, store.token)
    except StoppedError as failed:
        error = error or failed
    try:
        kind = outcome.kind if error is outcome.error else "stopped"
        store.end_session(run.session, round(now * 1000), kind, error.message if error else "")
    except StoppedError as failed:
        error = error or failed
    summary = _summary(run, outcome, error, errors, now)
    try:
        summary.manifest = _write_manifest(run, summary, now)
    except OutputError as failed:
        if error is None:
            summary.outcome, summary.reason, summary.hint = "stopped", failed.message, failed.hint
    return summary


def _write_errors(run: OpenRun) -> list[Path]:
    """Write the error files; returns those that exist."""
    store, own, written = run.store, OwnFiles(run.store), []
    results = [store.results_path(output) for output in store.outputs()]
    own.adopt([made for path in results for made in (errors_path(path), superseded_path(path))])
    for output in store.outputs():
        results_file = store.results_path(output)
        path = errors_path(results_file)
        with closing(error_lines(store, run.options.format, run.lines, output.output)) as lines:
            first = next(lines, None)
            if first is not None:
                own.claim(path)
            elif path not in own:
                continue
            all_lines = (line for _, line in (lines if first is None else chain([first], lines)))
            if write_errors(path, all_lines, token=store.token, private=is_private(results_file)):
                written.append(path)
    return written


def _summary(run: OpenRun, outcome: Outcome, error: StoppedError | None, errors: list[Path], now: float) -> Summary:
    options, store = run.options, run.store
    counts, counters = store.counts(), store.counters()
    wall_s = figures.sessions_ms(store) / 1000
    ended = counts[RowState.SUCCEEDED] + counts[RowState.FAILED] + counts[RowState.HELD]
    tokens = any(name.endswith("put_tokens") for name in counters)
    summary = Summary(
        outcome=outcome.kind if error is outcome.error else "stopped",
        reason=error.message if error else "",
        hint=error.hint if error else "",
        total=sum(counts.values()),
        succeeded=counts[RowState.SUCCEEDED],
        failed=counts[RowState.FAILED],
        held=counts[RowState.HELD],
        not_run=counts[RowState.PENDING],
        in_flight=counts[RowState.SUBMITTING] + counts[RowState.SUBMITTED],
        failures=[FailureGroup(*group) for group in figures.failure_groups(store)],
        wall_s=wall_s,
        session_s=run.clock() - run.opened_at,
        rows_per_s=ended / wall_s if wall_s else 0.0,
        delay_ms=_percentiles(store, "delay_ms"),
        execution_ms=_percentiles(store, "execution_ms"),
        refused_input_tokens=counters.get("refused_input_tokens", 0),
        refused_output_tokens=counters.get("refused_output_tokens", 0),
        input_tokens=counters.get("input_tokens", 0) if tokens else None,
        output_tokens=counters.get("output_tokens", 0) if tokens else None,
        calls={name.removeprefix("calls_"): n for name, n in counters.items() if name.startswith("calls_")},
        throttled=counters.get("throttled", 0),
        retries=counters.get("retries", 0),
        reasks=counters.get("reasks", 0),
        packed_rows=counters.get("packed_rows", 0),
        packed_jobs=counters.get("packed_jobs", 0),
        separated=counters.get("separated", 0),
        few_jobs=few_jobs(store, counters, options),
        workers=_workers(counters),
        unconfirmed=counters.get("unconfirmed", 0),
        mismatched=counters.get("mismatched", 0),
        results=[store.results_path(output) for output in store.outputs()],
        errors=errors,
        state=_absolute(options.state),
        windows=Timeline(store.get_setting("timeline")).windows(),
        cost=cost_so_far(store, counts, counters, options),
        rescue_by=figures.rescue_by(store, now),
        endpoints=endpoint_work(store, options),
        shared=count_shared(store) if options.dedupe else 0,
        cached=counters.get(CACHED, 0),
        to_confirm=_to_confirm(run) if run.api_key is None else [],
    )
    for mark in (*MARKS, CONTEXT_FULL):
        setattr(summary, mark, counters.get(mark, 0))
    if has_rules(options):
        more = count_tries(store)
        at_once = summary.succeeded - summary.shared - summary.cached - sum(more.values())
        summary.tries = {str(tries): rows for tries, rows in ({1: at_once} | more).items()}
    return summary


def _to_confirm(run: OpenRun) -> list[str]:
    check, cache, folder = run.options.answers.check, run.options.answers.cache, run.options.state.absolute().parent
    arguments = ["--check", check] if check else []
    is_elsewhere = cache is not None and not Path(os.path.realpath(cache)).is_relative_to(os.path.realpath(folder))
    return [*arguments, "--cache", cache] if cache is not None and is_elsewhere else arguments


def _write_manifest(run: OpenRun, summary: Summary, now: float) -> Path:
    options, store = run.options, run.store
    path = _absolute(manifest_path(options))
    OwnFiles(store).claim(path)
    inputs, tunings = store.get_setting("inputs"), applied_tunings(store)
    write_manifest(
        path,
        batchrun_version=VERSION,
        written_at=now,
        options=read_options(store) if tunings else options,
        summary=summary,
        inputs=[FileDigest(*entry) for entry in inputs] if isinstance(inputs, list) else [],
        results=[digest_file(path) for path in summary.results if path.exists()],
        superseded=[
            FileDigest(str(path), file.size_bytes, file.sha256) for path, file in committed_superseded(store).items()
        ],
        sessions=figures.sessions(store),
        tunings=tunings,
        token=store.token,
    )
    return path


def _absolute(path: Path) -> Path:
    """An absolute path for messages, like that of each results file."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - pathlib would keep a `..`


def _workers(counters: Mapping[str, int]) -> list[WorkerGroup]:
    """The workers that have failed jobs through their own fault, the worst first."""
    failed = {name.removeprefix(FAILED_BY): count for name, count in counters.items() if name.startswith(FAILED_BY)}
    groups = [WorkerGroup(worker, count, counters.get(ENDED_BY + worker, count)) for worker, count in failed.items()]
    return sorted(groups, key=lambda group: -group.failed)


def _percentiles(store: StateReader, column: figures.TimeColumn) -> Percentiles | None:
    values = figures.percentiles(store, column, (0.5, 0.9, 0.99))
    return Percentiles(*values) if values else None
