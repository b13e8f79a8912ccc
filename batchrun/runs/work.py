"""What each endpoint of a run has done, from its state file."""

from __future__ import annotations

from dataclasses import dataclass

from batchrun.config import RunOptions
from batchrun.state import figures
from batchrun.state.endpoints import known_endpoints
from batchrun.state.reader import StateReader


@dataclass(frozen=True, slots=True)
class EndpointWork:
    """What one endpoint of a run has done."""

    endpoint: str
    jobs: int
    """Jobs that were submitted to it."""
    succeeded: int
    """Rows whose last job was there, here and in the next two."""
    failed: int
    in_flight: int
    rows_per_s: float
    """Succeeded rows, from its first submission to its last end; 0 if nothing has ended."""


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
