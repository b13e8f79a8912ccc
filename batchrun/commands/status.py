"""`batchrun status`: the status of a run, from its state file alone, even while another process writes it."""

from __future__ import annotations

import shlex
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from batchrun.commands.brief_status import brief_status_of, live_record, pace_of
from batchrun.config import RETENTION_S
from batchrun.display.cost import Cost, cost_lines
from batchrun.display.pace import Pace
from batchrun.display.screen import one_line, rate, remaining
from batchrun.display.summary import EndpointWork, FewJobs
from batchrun.display.text import clipped, fitted
from batchrun.display.units import duration
from batchrun.results.record import CACHED
from batchrun.results.text import MARK_NAMES
from batchrun.runs.spending import cost_so_far
from batchrun.runs.work import endpoint_work, few_jobs
from batchrun.scheduler.states import RowState
from batchrun.state import figures
from batchrun.state.dedupe import count_shared
from batchrun.state.lock import Holder, holder
from batchrun.state.opening import has_log, log_of
from batchrun.state.reader import StateReader
from batchrun.state.stored_options import find_options

_JOBS_SHOWN = 10


@dataclass(frozen=True, slots=True)
class JobInFlight:
    """A job that was submitted and is not known to have ended."""

    id: str
    """The row's id."""
    job_id: str
    age_s: float
    rescue_in_s: float
    """Seconds left to fetch its result, 30 minutes from its estimated end; <= 0 if it may have expired."""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """The status of a run."""

    state: str
    endpoint: str
    pid: int | None
    """The process that is driving the run; None if none is."""
    total: int
    succeeded: int
    failed: int
    held: int
    pending: int
    submitting: int
    in_flight: int
    rows_per_s: float
    """Mean rate over all sessions."""
    elapsed_s: float
    """Running time of all sessions."""
    jobs: list[JobInFlight]
    """The oldest jobs in flight."""
    failures: list[tuple[str, int, str, str]]
    """For each kind of failure: the kind, its count, and the id and the message of the first row."""
    counters: dict[str, int]
    cost: Cost | None
    """None if no price was given."""
    is_paused: bool = False
    """Whether that process was told to submit nothing more for now."""
    place: str = ""
    """Where the process runs, if it is not on this host; else empty."""
    log: str | None = None
    """Path of the write-ahead log, which belongs to the state file; None if there is none."""
    endpoints: list[EndpointWork] = field(default_factory=list)
    """What each endpoint has done, for a run that has had several of its own."""
    shared: int = 0
    """Rows that succeeded with the answer to the equal request of another row."""
    cached: int = 0
    """Other rows that succeeded with an answer from the cache."""
    pace: Pace | None = None
    """The pace of the last minutes, and how long the open rows take at it; None if unknown, or if no process drives it.
    """
    obstacles: list[str] = field(default_factory=list)
    """What the process that drives it waits for, or why it stops, such as an outage."""
    ending: str = ""
    """The outcome of the last session in a few words; if it is running, the process that drives it."""
    few_jobs: list[FewJobs] = field(default_factory=list)
    """Where there were too few shared jobs for the workers."""


def read_status(state: Path, now: float | None = None) -> RunStatus:
    """Read the status of a run.

    Args:
        state: The state file.
        now: UTC epoch seconds; None: the current time.

    Raises:
        StateError: there is no such state file, or it cannot be read.
    """
    now = time.time() if now is None else now
    who = holder(state)
    with StateReader(state) as store:
        counts, counters = store.counts(), store.counters()
        options = find_options(store)
        elapsed_s = figures.sessions_ms(store) / 1000
        kept_s = RETENTION_S + figures.usual_time_ms(store) / 1000
        ended = counts[RowState.SUCCEEDED] + counts[RowState.FAILED] + counts[RowState.HELD]
        live = live_record(store, who)
        brief = replace(
            brief_status_of(store, state, who),
            total=sum(counts.values()),
            failed=counts[RowState.FAILED],
            held=counts[RowState.HELD],
        )
        return RunStatus(
            state=str(state),
            endpoint="" if options is None else ", ".join(options.endpoints),
            pid=None if who is None else who.pid,
            is_paused=brief.is_paused,
            log=str(log_of(state)) if has_log(state) else None,
            place="" if who is None else who.place,
            total=sum(counts.values()),
            succeeded=counts[RowState.SUCCEEDED],
            failed=counts[RowState.FAILED],
            held=counts[RowState.HELD],
            pending=counts[RowState.PENDING],
            submitting=counts[RowState.SUBMITTING],
            in_flight=counts[RowState.SUBMITTED],
            rows_per_s=ended / elapsed_s if elapsed_s else 0.0,
            elapsed_s=elapsed_s,
            jobs=[
                JobInFlight(job.row_id, job.job_id, age_s, kept_s - age_s)
                for job in figures.jobs_in_flight(store, _JOBS_SHOWN)
                for age_s in [max(now - job.submitted_ms / 1000, 0.0)]
            ],
            failures=figures.failure_groups(store),
            counters=counters,
            cost=cost_so_far(store, counts, counters, options),
            endpoints=[] if options is None else endpoint_work(store, options),
            few_jobs=[] if options is None else few_jobs(store, counters, options),
            shared=count_shared(store) if options is not None and options.dedupe else 0,
            cached=counters.get(CACHED, 0),
            pace=None if live is None else pace_of(live, sum(counts.values()) - ended, is_paused=brief.is_paused),
            ending=brief.ending,
            obstacles=[] if live is None else live.obstacles,
        )


def to_json(status: RunStatus) -> bytes:
    """One JSON object and a newline."""
    data: dict[str, Any] = asdict(status)
    data["few_jobs"] = [each._asdict() for each in status.few_jobs]
    data["failures"] = [dict(zip(("kind", "count", "id", "message"), f, strict=True)) for f in status.failures]
    return orjson.dumps(data, option=orjson.OPT_APPEND_NEWLINE)


def render(status: RunStatus) -> str:
    """The status for a terminal."""
    s = status
    open_rows = s.pending + s.submitting + s.in_flight
    lines = [
        f"{s.state}  endpoint {s.endpoint}  {_going(s)}",
        "",
        f"  rows       {s.total:>11,}",
        f"  succeeded  {s.succeeded:>11,}",
        f"  failed     {s.failed:>11,}",
    ]
    if s.held:
        lines.append(f"  held       {s.held:>11,}")
    # Indented below the succeeded rows, of which they are a part.
    lines[4:4] = [f"    {name:<13}{s.counters[mark]:>7,}" for mark, name in MARK_NAMES.items() if s.counters.get(mark)]
    lines += [
        f"  in flight  {s.in_flight:>11,}",
        f"  not run    {s.pending + s.submitting:>11,}",
        "",
        f"  {s.rows_per_s:,.1f} rows/s over a running time of {duration(s.elapsed_s)}"
        if s.pace is None
        else f"  {rate(s.pace.rows_per_s)} over the last {duration(s.pace.span_s)}",
    ]
    if s.pace is not None and open_rows and (left := remaining(s.pace)):
        lines.append(f"  {left} left")
    lines += [f"  obstacle: {one_line(each)}" for each in s.obstacles]
    lines += [f"  {each}" for each in s.endpoints]
    if s.cost is not None:
        first, *more = cost_lines(s.cost, is_over=not open_rows)
        lines += [f"  cost  {first}", *(f"        {line}" for line in more)]
    unpaid = {
        "rows that share the answer to an equal request": s.shared,
        "rows with an answer from the cache": s.cached,
    }
    lines += [f"  {what}: {count:,}" for what, count in unpaid.items() if count]
    if packed := s.counters.get("packed_jobs"):
        lines.append(f"  rows that shared jobs: {s.counters.get('packed_rows', 0):,} in {packed:,} jobs")
        lines += [f"  too few jobs for the workers: {each}" for each in s.few_jobs]
    if s.counters.get("reasks"):
        lines.append(f"  asked again because an answer was not valid: {s.counters['reasks']:,}")
    if s.counters.get("unconfirmed"):
        lines.append(f"  unconfirmed submissions (possible duplicates): {s.counters['unconfirmed']:,}")
    if s.counters.get("mismatched"):
        lines.append(f"  dropped answers that belonged to other jobs: {s.counters['mismatched']:,}")
    if s.failures:
        lines += ["", "failures"]
        lines += [
            f"  {kind:<14} {count:>9,}  {row_id}: {clipped(message, 80)}" for kind, count, row_id, message in s.failures
        ]
    if s.jobs:
        lines += ["", f"oldest jobs in flight ({len(s.jobs)} of {s.in_flight:,})"]
        lines += [
            f"  {fitted(job.id, 26)} age {duration(job.age_s):>12}  {_time_to_fetch(job.rescue_in_s)}" for job in s.jobs
        ]
    if s.log is not None:
        lines += ["", f"copy or move it together with {s.log}, which belongs to it until the run has finished"]
    if open_rows and s.pid is None:
        lines += ["", f"resume: batchrun resume {shlex.quote(str(s.state))}"]
    return "\n".join(lines) + "\n"


def _going(s: RunStatus) -> str:
    if s.pid is None:
        return f"not running: {one_line(s.ending)}"
    return f"{'paused' if s.is_paused else 'running'} ({Holder(s.pid, s.place)})"


def _time_to_fetch(seconds: float) -> str:
    return f"fetch within {duration(seconds)}" if seconds > 0 else "may have expired"
