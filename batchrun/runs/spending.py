"""The cost of a run, from its state file."""

from __future__ import annotations

from batchrun.display.cost import Cost, WorkCost, cost_of
from batchrun.scheduler.budget import WorkerTime
from batchrun.scheduler.states import RowState
from batchrun.state.figures import execution
from batchrun.state.reader import StateReader


def cost_so_far(
    store: StateReader, counts: dict[RowState, int], counters: dict[str, int], price_per_hour: float | None
) -> Cost | None:
    """The cost of a run over all its sessions; None if no price was given.

    Args:
        store: The run's state.
        counts: The number of its rows by state.
        counters: The run's counters.
        price_per_hour: Price of one worker; None: no price was given.
    """
    if price_per_hour is None:
        return None
    time, worked = WorkerTime.from_counters(counters), execution(store)
    work = WorkCost(
        running_s=time.running_s,
        most_s=time.most_s,
        unwatched_s=time.unwatched_s,
        jobs=worked.jobs,
        execution_s=worked.total_ms / 1000,
        failed_s=worked.failed_ms / 1000,
        duplicates=counters.get("unconfirmed", 0),
    )
    done = sum(count for state, count in counts.items() if not state.is_open)
    return cost_of(work, price_per_hour=price_per_hour, done=done, total=sum(counts.values()))
