"""What each endpoint of a run has done, and how its workers were used, from the state file."""

from __future__ import annotations

from collections.abc import Mapping

from batchrun.config import RunOptions
from batchrun.display.summary import EndpointWork, FewJobs
from batchrun.scheduler.budget import WorkerTime
from batchrun.state import figures
from batchrun.state.endpoints import known_endpoints
from batchrun.state.reader import StateReader

_SHORT_LEAST_S = 30.0
_SHORT_SHARE = 0.25
"""A shorter time, or a smaller share of the time with shared jobs, occurs at the beginning or the end of any run."""


def endpoint_work(store: StateReader, options: RunOptions) -> list[EndpointWork]:
    """What each endpoint has done, by number; empty for a run that has only had one, or sweeps over them."""
    known = known_endpoints(store, options)
    if options.sweep.endpoints or len(known) == 1:
        return []
    rows, jobs = figures.rows_by_endpoint(store), figures.jobs_by_endpoint(store)
    found = []
    for number, endpoint in enumerate(known):
        succeeded, failed, in_flight = rows.get(number, (0, 0, 0))
        count, span_ms = jobs.get(number, (0, 0))
        pace = succeeded / (span_ms / 1000) if span_ms > 0 else 0.0
        found.append(EndpointWork(endpoint, count, succeeded, failed, in_flight, pace))
    return found


def few_jobs(store: StateReader, counters: Mapping[str, int], options: RunOptions) -> list[FewJobs]:
    """Where there were too few jobs of several rows for the workers; the endpoints of a sweep count together."""
    known = known_endpoints(store, options)
    found = []
    for number, endpoint in enumerate(known):
        time = WorkerTime.from_counters(counters, number)
        if time.short_s < max(_SHORT_LEAST_S, _SHORT_SHARE * time.packed_s):
            continue
        running, idle = (each / time.short_s for each in (time.short_running_s, time.short_idle_s))
        name = "" if options.sweep.endpoints or len(known) == 1 else endpoint
        found.append(FewJobs(name, time.short_s, time.short_s / time.packed_s, running, idle))
    return found
