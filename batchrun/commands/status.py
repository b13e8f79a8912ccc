"""How a run stands, read from its state file alone; also while another process writes it."""

from __future__ import annotations

import shlex
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from batchrun.config import RETENTION_S
from batchrun.display.cost import Cost, cost_lines
from batchrun.display.text import fitted
from batchrun.display.units import duration
from batchrun.results.text import MARK_NAMES
from batchrun.runs.spending import cost_so_far
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
    """A job that is submitted and not known to be final."""

    id: str
    """The row's id."""
    job_id: str
    age_s: float
    rescue_in_s: float
    """How long its result can still be fetched: 30 minutes after its end, as expected from the last jobs' times."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a run stands."""

    state: str
    endpoint: str
    pid: int | None
    """The process that runs it now; None when none does."""
    total: int
    succeeded: int
    failed: int
    held: int
    pending: int
    submitting: int
    in_flight: int
    rows_per_s: float
    """Over all sessions."""
    elapsed_s: float
    jobs: list[JobInFlight]
    """The oldest of those in flight."""
    failures: list[tuple[str, int, str, str]]
    """Kind, count, and id and message of the first."""
    counters: dict[str, int]
    cost: Cost | None
    """None when no price was given."""
    place: str = ""
    """Where the process runs; empty: here."""
    log: str | None = None
    """The write-ahead log, which belongs to the state file; None when there is none."""
    shared: int = 0
    """Rows that succeeded by the job of another row that asks for the same."""


def look(state: Path, now: float | None = None) -> Standing:
    """Read how the run of a state file stands.

    Args:
        state: The state file.
        now: UTC epoch seconds; None: the clock's.

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
        return Standing(
            state=str(state),
            endpoint="" if options is None else ", ".join(options.endpoints),
            pid=None if who is None else who.pid,
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
            cost=cost_so_far(store, counts, counters, None if options is None else options.guards.price_per_hour),
            shared=count_shared(store) if options is not None and options.dedupe else 0,
        )


def to_json(standing: Standing) -> bytes:
    """One JSON object and a line end."""
    data: dict[str, Any] = asdict(standing)
    data["failures"] = [dict(zip(("kind", "count", "id", "message"), f, strict=True)) for f in standing.failures]
    return orjson.dumps(data, option=orjson.OPT_APPEND_NEWLINE)


def render(standing: Standing) -> str:
    """For a terminal."""
    s = standing
    going = f"running ({Holder(s.pid, s.place)})" if s.pid is not None else "not running"
    open_rows = s.pending + s.submitting + s.in_flight
    lines = [
        f"{s.state}  endpoint {s.endpoint}  {going}",
        "",
        f"  rows       {s.total:>11,}",
        f"  succeeded  {s.succeeded:>11,}",
        f"  failed     {s.failed:>11,}",
    ]
    if s.held:
        lines.append(f"  held       {s.held:>11,}")
    # Below the rows that succeeded: they are some of those.
    lines[4:4] = [f"    {name:<13}{s.counters[mark]:>7,}" for mark, name in MARK_NAMES.items() if s.counters.get(mark)]
    lines += [
        f"  in flight  {s.in_flight:>11,}",
        f"  not run    {s.pending + s.submitting:>11,}",
        "",
        f"  {s.rows_per_s:,.1f} rows/s over {duration(s.elapsed_s)} of running",
    ]
    if s.cost is not None:
        first, *more = cost_lines(s.cost, is_over=not open_rows)
        lines += [f"  cost  {first}", *(f"        {line}" for line in more)]
    if s.shared:
        lines.append(f"  {s.shared:,} rows have the answer of another that asks for the same")
    if s.counters.get("unconfirmed"):
        lines.append(f"  {s.counters['unconfirmed']:,} submissions unconfirmed: possible duplicates")
    if s.counters.get("mismatched"):
        lines.append(f"  {s.counters['mismatched']:,} answers were those of other jobs, and were not used")
    if s.failures:
        lines += ["", "failures"]
        lines += [f"  {kind:<14} {count:>9,}  {row_id}: {message[:80]}" for kind, count, row_id, message in s.failures]
    if s.jobs:
        lines += ["", f"oldest jobs in flight ({len(s.jobs)} of {s.in_flight:,})"]
        lines += [f"  {fitted(job.id, 26)} age {duration(job.age_s):>12}  {_rescue(job.rescue_in_s)}" for job in s.jobs]
    if s.log is not None:
        lines += ["", f"copy or move it with its -wal: {s.log} belongs to it until the run has ended"]
    if open_rows and s.pid is None:
        lines += ["", f"go on: batchrun resume {shlex.quote(str(s.state))}"]
    return "\n".join(lines) + "\n"


def _rescue(seconds: float) -> str:
    return f"fetch within {duration(seconds)}" if seconds > 0 else "may have expired"
