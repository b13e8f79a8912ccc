"""Notices that there are too few jobs of several rows for the endpoint's workers.

The autoscaler counts jobs, or how long they wait, and knows nothing about their rows. One worker takes many jobs at
once. So it may hold all rows of a run in a few jobs while other workers are idle, or are not started at all.

Only `/health` and the run's own jobs are used. There are too few jobs while a worker has some, and

- others are idle although jobs wait: the autoscaler does not start them for this few jobs; or
- no job waits, nothing more can be submitted, and either others are idle, or those at work hold more rows than they
  can run at once. Whether the endpoint may have more workers is unknown.

The time between two polls of `/health` counts if there are too few jobs at both.
"""

from __future__ import annotations

from collections.abc import Mapping

from batchrun.config import PROMPTS_AT_ONCE
from batchrun.scheduler import commands as cmd
from batchrun.scheduler.backlog import Backlog
from batchrun.scheduler.budget import WorkerMeter, WorkerTime
from batchrun.scheduler.flight import Flight
from batchrun.scheduler.health import EndpointHealth
from batchrun.scheduler.row_outcomes import RowOutcomes
from batchrun.scheduler.window import Window

_TRUSTED_GAP_S = 60.0
"""If two polls are farther apart, the time between them does not count."""
_TELL_AFTER_S = 60.0


class Shortage:
    """Counts the time with too few jobs of several rows, and reports it once.

    Args:
        flights: The jobs in flight; shared with the scheduler.
        backlog: The rows to submit.
        window: How many jobs may be in flight.
        meter: Counts the time.
        outcomes: Takes the message to the user.
    """

    def __init__(
        self,
        flights: Mapping[int, Flight],
        backlog: Backlog,
        window: Window,
        meter: WorkerMeter,
        outcomes: RowOutcomes,
    ) -> None:
        self._flights = flights
        self._backlog = backlog
        self._window = window
        self._meter = meter
        self._outcomes = outcomes
        self._last: tuple[float, EndpointHealth, bool] | None = None
        """The last poll with jobs of several rows in flight: its time, the answer, and whether there were too few."""
        self._short_since: float | None = None
        self._has_told = False

    def saw_health(self, health: EndpointHealth, now: float, *, arrived: int) -> None:
        """`/health` answered; `arrived` of the jobs in flight were submitted before it was polled."""
        jobs = len(self._flights)
        rows = sum(len(flight.rows) for flight in self._flights.values())
        is_short = rows > jobs and 2 * arrived >= jobs and self._is_short(health, rows)
        last, self._last = self._last, (now, health, is_short) if rows > jobs else None
        if not is_short:
            self._short_since = None
        elif self._short_since is None:
            self._short_since = now
        if last is None or self._last is None or now - last[0] > _TRUSTED_GAP_S:
            return
        gap_s, then = now - last[0], last[1]
        short_s = gap_s * (is_short and last[2])
        self._meter.add(
            WorkerTime(
                packed_s=gap_s,
                short_s=short_s,
                short_running_s=then.running * short_s,
                short_idle_s=then.idle * short_s,
            )
        )
        if self._short_since is not None and now - self._short_since >= _TELL_AFTER_S and not self._has_told:
            self._has_told = True
            self._outcomes.decided.append(cmd.Tell(_message(health, jobs, rows, now - self._short_since)))

    def _is_short(self, health: EndpointHealth, rows: int) -> bool:
        if not health.running:
            return False
        if health.in_queue:
            return health.idle > 0
        is_full = not self._window.follows and len(self._flights) >= self._window.size
        if not is_full and not self._backlog.is_empty:
            return False
        return health.idle > 0 or 0 < PROMPTS_AT_ONCE * health.workers < rows


def _message(health: EndpointHealth, jobs: int, rows: int, lasted_s: float) -> str:
    workers = "1 worker is" if health.running == 1 else f"{health.running:,} workers are"
    idle = f" and {health.idle:,} idle" if health.idle else ""
    return (
        f"--pack: {workers} at work{idle}, for {lasted_s:.0f} s now, with {jobs:,} jobs of {rows:,} rows. An autoscaler"
        " counts jobs, not rows: see `batchrun help packing`"
    )
