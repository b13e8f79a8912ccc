"""Worlds drawn at random, and what holds of a run in any of them."""

from __future__ import annotations

import heapq

from hypothesis import strategies as st

from batchrun.config import GuardOptions, HaltOptions, Limits, OperationLimit, SchedulerOptions
from tests.support.world import Faults, Setting, World

_SPARED = 8
"""How often the failure of a row may be blamed on its worker."""
shares = st.sampled_from([0.0, 0.0, 0.02, 0.2])
faults = st.builds(
    Faults,
    submit_lost_before=shares,
    submit_lost_after=shares,
    submit_rejected=shares,
    submit_unreachable=shares,
    poll_broken=shares,
    poll_missing_once=shares,
    job_lost=shares,
    job_bad=shares,
    job_expired=shares,
    garbled=shares,
    row_bad=shares,
    row_poisoned=shares,
    has_no_route=st.sampled_from([False, False, False, True]),
    throttled=shares,
)
limits = st.builds(
    Limits,
    run=st.builds(OperationLimit, st.sampled_from([0, 7, 40]), st.sampled_from([0, 3])),
    status=st.builds(OperationLimit, st.sampled_from([0, 9, 60]), st.sampled_from([0, 4])),
)
options = st.builds(
    SchedulerOptions,
    concurrency=st.integers(1, 30),
    connections=st.integers(1, 12),
    limits=limits,
    max_retries=st.integers(0, 3),
    unconfirmed=st.sampled_from(["resubmit", "hold"]),
)
services = st.sampled_from(
    [lambda _: 0.0, lambda _: 0.3, lambda rng: rng.expovariate(1.0), lambda rng: rng.lognormvariate(0, 1.5)]
)
latencies = st.sampled_from([lambda _: 0.0, lambda _: 0.02, lambda rng: rng.uniform(0, 0.5)])
worlds = st.builds(
    Setting,
    rows=st.integers(0, 60),
    workers=st.integers(1, 20),
    service_s=services,
    latency_s=latencies,
    options=options,
    faults=faults,
    seed=st.integers(0, 2**32),
    rows_per_job=st.sampled_from([1, 1, 2, 3, 8, 64]),
    guards=st.just(GuardOptions(halt=HaltOptions(automatic=False))),
)


def assert_every_row_ended_once(world: World) -> None:
    setting = world.setting
    assert set(world.ended) | world.held == set(range(setting.rows))
    assert not world.open_jobs
    for row in range(setting.rows):
        allowed = 1 + world.requeued[row] + world.unconfirmed[row] + world.recalled[row] + world.excused[row]
        assert world.submissions[row] <= allowed, f"row {row} was submitted more often than its failures say"
        assert world.accepted[row] <= world.submissions[row]
        assert world.excused[row] <= (1 + world.crashes) * (_SPARED + setting.rows_per_job.bit_length())


def ideal_s(world: World, *, burst: int = 0) -> float:
    """The makespan of the same jobs, first in first out, submitted in bursts every 10 s (0: all at once)."""
    setting = world.setting
    free, total = [0.0] * setting.workers, setting.workers
    for at, count in setting.workers_at:
        free += [at] * max(count - total, 0)
        total = max(total, count)
    heapq.heapify(free)
    last = 0.0
    jobs = sorted(world.jobs.values(), key=lambda job: job.arrived_at)
    for number, job in enumerate(jobs):
        arrives = 10.0 * (number // burst) if burst else 0.0
        end = max(heapq.heappop(free), arrives) + job.service_s
        heapq.heappush(free, end)
        last = max(last, end)
    return last
