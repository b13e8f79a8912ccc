"""The cost of a run, from its state file."""

from __future__ import annotations

from batchrun.config import RunOptions
from batchrun.display.cost import Cost, WorkCost, added, cost_of
from batchrun.results.record import CACHED
from batchrun.scheduler.budget import WorkerTime
from batchrun.scheduler.states import RowState
from batchrun.state.endpoints import known_endpoints
from batchrun.state.figures import execution
from batchrun.state.reader import StateReader


def cost_so_far(
    store: StateReader, counts: dict[RowState, int], counters: dict[str, int], options: RunOptions | None
) -> Cost | None:
    """The cost of a run over all its sessions; None if no price was given.

    Args:
        store: The run's state.
        counts: The number of its rows by state.
        counters: The run's counters.
        options: The run's options; None: it has none yet.
    """
    if options is None or not options.guards.have_price:
        return None
    costs = costs_by_endpoint(store, counts, counters, options)
    done, total = _done(counts, counters)
    return added(costs, done=done, total=total) if len(costs) > 1 else costs[0]


def costs_by_endpoint(
    store: StateReader, counts: dict[RowState, int], counters: dict[str, int], options: RunOptions
) -> list[Cost]:
    """The cost at each endpoint that a run has had, by number; of a sweep, that of all together."""
    known = known_endpoints(store, options)
    if options.sweep.endpoints or len(known) == 1:
        return [_cost(store, counts, counters, options, None)]
    return [_cost(store, counts, counters, options, number) for number in range(len(known))]


def _cost(
    store: StateReader, counts: dict[RowState, int], counters: dict[str, int], options: RunOptions, number: int | None
) -> Cost:
    """The cost at the endpoint of this number; None: at all."""
    time, worked = WorkerTime.from_counters(counters, number or 0), execution(store, number)
    work = WorkCost(
        running_s=time.running_s,
        most_s=time.most_s,
        unwatched_s=time.unwatched_s,
        jobs=worked.jobs,
        execution_s=worked.total_ms / 1000,
        failed_s=worked.failed_ms / 1000,
        duplicates=0 if number else counters.get("unconfirmed", 0),
    )
    done, total = _done(counts, counters)
    price = options.guards.price_of(known_endpoints(store, options)[number or 0])
    return cost_of(work, price_per_hour=price or 0.0, done=done, total=total)


def _done(counts: dict[RowState, int], counters: dict[str, int]) -> tuple[int, int]:
    """The rows that have ended, and all rows, without those answered from the cache, which cost nothing."""
    cached = counters.get(CACHED, 0)
    return sum(count for state, count in counts.items() if not state.is_open) - cached, sum(counts.values()) - cached
