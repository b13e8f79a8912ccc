"""What each endpoint of a run has done, from its state file."""

from __future__ import annotations

from batchrun.config import RunOptions
from batchrun.display.summary import EndpointWork
from batchrun.state import figures
from batchrun.state.endpoints import known_endpoints
from batchrun.state.reader import StateReader


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
