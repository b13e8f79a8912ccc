"""The end of a session, whatever ended it: error files, the summary, the manifest.

All of it is read from the state file, so that it is the same after a crash as it would have been before.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import closing
from importlib.metadata import version
from itertools import chain
from pathlib import Path

from batchrun.config import RETENTION_S, RunOptions
from batchrun.display.summary import FailureGroup, Percentiles, Summary, WorkerGroup
from batchrun.display.timeline import Timeline
from batchrun.engine.driver import Outcome
from batchrun.engine.rows import RowLines
from batchrun.errors import OutputError, StoppedError
from batchrun.results.text import CONTEXT_FULL, MARKS
from batchrun.results.writer import errors_path, is_private, write_errors
from batchrun.runs.checks import OwnFiles
from batchrun.runs.conversion import error_lines
from batchrun.runs.manifest import FileDigest, SessionTimes, digest_file, manifest_path, write_manifest
from batchrun.runs.ordering import order_results
from batchrun.runs.spending import cost_so_far
from batchrun.scheduler.blame import ENDED_BY, FAILED_BY
from batchrun.scheduler.states import RowState
from batchrun.state import figures
from batchrun.state.dedupe import count_shared
from batchrun.state.reader import StateReader
from batchrun.state.records import OutputRecord
from batchrun.state.store import Store


class Conclusion:
    """Concludes a session.

    Args:
        options: The run's options.
        store: Its state, with the session still open.
        session: The session's number.
        session_s: How long it has been going on.
        lines: Leads from a row to its lines.
    """

    def __init__(
        self,
        options: RunOptions,
        store: Store,
        session: int,
        session_s: float,
        lines: RowLines,
    ) -> None:
        self._options = options
        self._store = store
        self._session = session
        self._session_s = session_s
        self._lines = lines

    def conclude(self, outcome: Outcome, now: float) -> Summary:
        """Write what is to be written, close the session, and sum up.

        A file that cannot be written makes a stopped run of a finished one: its rows are in the state.

        Args:
            outcome: How the session ended.
            now: UTC epoch seconds.
        """
        errors: list[Path] = []
        error = outcome.error
        try:
            errors = self._write_errors()
            if self._options.ordered and outcome.kind == "finished":
                order_results(self._store.path, self._store.token)
        except StoppedError as failed:
            error = error or failed
        try:
            kind = outcome.kind if error is outcome.error else "stopped"
            self._store.end_session(self._session, round(now * 1000), kind)
        except StoppedError as failed:
            error = error or failed
        summary = self._summary(outcome, error, errors, now)
        try:
            summary.manifest = self._write_manifest(summary, now)
        except OutputError as failed:
            if error is None:
                summary.outcome, summary.reason, summary.hint = "stopped", failed.message, failed.hint
        return summary

    def _write_errors(self) -> list[Path]:
        own, written = OwnFiles(self._store), []
        for output in self._store.outputs():
            results = results_path(self._store, output)
            path = errors_path(results)
            with closing(self._error_lines(output.output)) as lines:
                first = next(lines, None)
                if first is not None:
                    own.claim(path)
                elif path not in own:
                    continue
                whole = lines if first is None else chain([first], lines)
                if write_errors(path, whole, token=self._store.token, private=is_private(results)):
                    written.append(path)
        return written

    def _error_lines(self, output: int) -> Generator[bytes]:
        return (line for _, line in error_lines(self._store, self._options.format, self._lines, output))

    def _summary(self, outcome: Outcome, error: StoppedError | None, errors: list[Path], now: float) -> Summary:
        counts, counters = self._store.counts(), self._store.counters()
        wall_s = figures.sessions_ms(self._store) / 1000
        ended = counts[RowState.SUCCEEDED] + counts[RowState.FAILED] + counts[RowState.HELD]
        tokens = "input_tokens" in counters or "output_tokens" in counters
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
            failures=[FailureGroup(*group) for group in figures.failure_groups(self._store)],
            wall_s=wall_s,
            session_s=self._session_s,
            rows_per_s=ended / wall_s if wall_s else 0.0,
            delay_ms=_percentiles(self._store, "delay_ms"),
            execution_ms=_percentiles(self._store, "execution_ms"),
            input_tokens=counters.get("input_tokens", 0) if tokens else None,
            output_tokens=counters.get("output_tokens", 0) if tokens else None,
            calls={name.removeprefix("calls_"): n for name, n in counters.items() if name.startswith("calls_")},
            throttled=counters.get("throttled", 0),
            retries=counters.get("retries", 0),
            workers=_workers(counters),
            unconfirmed=counters.get("unconfirmed", 0),
            mismatched=counters.get("mismatched", 0),
            results=[results_path(self._store, output) for output in self._store.outputs()],
            errors=errors,
            state=self._options.state,
            windows=Timeline(self._store.get_setting("timeline")).windows(),
            cost=cost_so_far(self._store, counts, counters, self._options.guards.price_per_hour),
            rescue_by=rescue_by(self._store, now),
            shared=count_shared(self._store) if self._options.dedupe else 0,
        )
        for mark in (*MARKS, CONTEXT_FULL):
            setattr(summary, mark, counters.get(mark, 0))
        return summary

    def _write_manifest(self, summary: Summary, now: float) -> Path:
        path = manifest_path(self._options)
        OwnFiles(self._store).claim(path)
        inputs = self._store.get_setting("inputs")
        write_manifest(
            path,
            batchrun_version=version("runpod-batchrun"),
            written_at=now,
            options=self._options,
            summary=summary,
            inputs=[FileDigest(*entry) for entry in inputs] if isinstance(inputs, list) else [],
            results=[digest_file(path) for path in summary.results if path.exists()],
            sessions=[SessionTimes(*times) for times in figures.sessions(self._store)],
            token=self._store.token,
        )
        return path


def results_path(store: StateReader, output: OutputRecord) -> Path:
    """Where an output's results file stands, as people are told: absolute."""
    return Path(os.path.abspath(store.results_path(output)))  # noqa: PTH100 - pathlib would keep a `..`


def rescue_by(store: StateReader, now: float) -> float | None:
    """By when to resume at the latest, as `now` in UTC epoch seconds; None when nothing is in flight.

    A result is kept for 30 minutes after its job's end; the oldest job is taken to need as long as the last ones did.
    """
    earliest_ms = figures.oldest_in_flight_ms(store)
    if earliest_ms is None:
        return None
    return min(earliest_ms / 1000, now) + figures.usual_time_ms(store) / 1000 + RETENTION_S


def _workers(counters: Mapping[str, int]) -> list[WorkerGroup]:
    """The workers that have failed jobs by their own fault, those with the most first."""
    failed = {name.removeprefix(FAILED_BY): count for name, count in counters.items() if name.startswith(FAILED_BY)}
    groups = [WorkerGroup(worker, count, counters.get(ENDED_BY + worker, count)) for worker, count in failed.items()]
    return sorted(groups, key=lambda group: -group.failed)


def _percentiles(store: StateReader, column: figures.TimeColumn) -> Percentiles | None:
    values = figures.percentiles(store, column, (0.5, 0.9, 0.99))
    return Percentiles(*values) if values else None
