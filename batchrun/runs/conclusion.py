"""The end of a session, whatever ended it: error files, the summary, the manifest.

All of it is read from the state file, so that it is the same after a crash as it would have been before.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import closing
from itertools import chain
from pathlib import Path

from batchrun.config import RETENTION_S, VERSION, RunOptions
from batchrun.display.summary import FailureGroup, Percentiles, Summary, WorkerGroup
from batchrun.display.timeline import Timeline
from batchrun.engine.driver import Outcome
from batchrun.errors import OutputError, StoppedError
from batchrun.prompts.lines import LineReader
from batchrun.prompts.sweep import Sweep
from batchrun.results.text import CONTEXT_FULL, MARKS
from batchrun.results.writer import errors_path, is_private, write_errors
from batchrun.runs.checks import OwnFiles
from batchrun.runs.conversion import error_lines
from batchrun.runs.manifest import FileDigest, SessionTimes, digest_file, manifest_path, write_manifest
from batchrun.runs.ordering import order_results
from batchrun.runs.spending import cost_so_far
from batchrun.scheduler.blame import ENDED_BY, FAILED_BY
from batchrun.scheduler.states import RowState
from batchrun.state.leaders import count_shared
from batchrun.state.records import OutputRecord, SourceRecord
from batchrun.state.store import Store


class Conclusion:
    """Concludes a session.

    Args:
        options: The run's options.
        store: Its state, with the session still open.
        session: The session's number.
        session_s: How long it has been going on.
        sources: The inputs by number.
        reader: Leads from a row back to its line.
    """

    def __init__(
        self,
        options: RunOptions,
        store: Store,
        session: int,
        session_s: float,
        *,
        sources: Mapping[int, SourceRecord],
        reader: LineReader,
    ) -> None:
        self._options = options
        self._store = store
        self._session = session
        self._session_s = session_s
        self._sources = sources
        self._reader = reader
        self._sweep = Sweep(options.sweep, reader.reading)

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
        own.adopt([errors_path(results_path(self._store, output)) for output in self._store.outputs()])
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
        lines = error_lines(
            self._store,
            self._options.format,
            sources=self._sources,
            reader=self._reader,
            sweep=self._sweep,
            endpoint=self._options.endpoint,
            output=output,
        )
        return (line for _, line in lines)

    def _summary(self, outcome: Outcome, error: StoppedError | None, errors: list[Path], now: float) -> Summary:
        counts, counters = self._store.counts(), self._store.counters()
        wall_s = self._store.sessions_ms() / 1000
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
            failures=[FailureGroup(*group) for group in self._store.failure_groups()],
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
            batchrun_version=VERSION,
            written_at=now,
            options=self._options,
            summary=summary,
            inputs=[FileDigest(*entry) for entry in inputs] if isinstance(inputs, list) else [],
            results=[digest_file(path) for path in summary.results if path.exists()],
            sessions=[SessionTimes(*times) for times in self._store.sessions()],
            token=self._store.token,
        )
        return path


def results_path(store: Store, output: OutputRecord) -> Path:
    """Where an output's results file stands, as people are told: absolute."""
    return Path(os.path.abspath(store.results_path(output)))  # noqa: PTH100 - pathlib would keep a `..`


def rescue_by(store: Store, now: float) -> float | None:
    """By when to resume at the latest, as `now` in UTC epoch seconds; None when nothing is in flight.

    A result is kept for 30 minutes after its job's end; the oldest job is taken to need as long as the last ones did.
    """
    earliest = store.query("SELECT min(j.submitted_ms) FROM rows r JOIN jobs j ON j.job = r.job WHERE r.state = 2")
    if earliest[0][0] is None:
        return None
    return min(float(earliest[0][0]) / 1000, now) + store.usual_time_ms() / 1000 + RETENTION_S


def _workers(counters: Mapping[str, int]) -> list[WorkerGroup]:
    """The workers that have failed jobs by their own fault, those with the most first."""
    failed = {name.removeprefix(FAILED_BY): count for name, count in counters.items() if name.startswith(FAILED_BY)}
    groups = [WorkerGroup(worker, count, counters.get(ENDED_BY + worker, count)) for worker, count in failed.items()]
    return sorted(groups, key=lambda group: -group.failed)


def _percentiles(store: Store, column: str) -> Percentiles | None:
    values = store.percentiles(column, (0.5, 0.9, 0.99))
    return Percentiles(*values) if values else None
