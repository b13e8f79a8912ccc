"""An estimate holds what the run then takes: against sums of known distributions, and against runs in virtual time."""

from __future__ import annotations

import math
from random import Random
from statistics import fmean
from typing import TYPE_CHECKING

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.config import GuardOptions, HaltOptions, Limits, OperationLimit, SchedulerOptions
from batchrun.display.estimate import (
    Capacity,
    Estimate,
    Pilot,
    PilotJob,
    PilotRow,
    Range,
    can_estimate,
    capacity,
    estimate,
    startup_s,
    totals,
)
from batchrun.display.estimate import Limits as Pace
from batchrun.display.estimate_text import render, to_json
from tests.support.world import Setting, World

if TYPE_CHECKING:
    from collections.abc import Callable

FREE = Pace(jobs_per_s=None, concurrency=None, at_once=30, is_pool=False)
NO_LIMITS = SchedulerOptions(limits=Limits(*[OperationLimit(0, 0)] * 3))
UNGUARDED = GuardOptions(halt=HaltOptions(automatic=False))
DRAWS: dict[str, Callable[[Random], float]] = {
    "exponential": lambda rng: rng.expovariate(1),
    "skewed": lambda rng: rng.lognormvariate(0, 0.7),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("left", [20, 2000])
def test_the_range_of_a_sum_holds_it_nine_times_in_ten_and_is_not_just_wide(name: str, left: int):
    draw, inside, widths = DRAWS[name], 0, []
    for seed in range(60):
        rng = Random(seed)
        units = [(draw(rng), 1) for _ in range(30)]
        true = sum(draw(rng) for _ in range(left))
        found = totals(units, left, rng)
        inside += found.low <= true <= found.high
        widths.append((found.high - found.low) / true)
    assert inside >= 50, "54 less twice what chance makes of 60"
    assert fmean(widths) < (1.0 if left > 1000 else 1.6)


def test_a_range_of_rows_that_are_all_alike_is_one_number():
    assert totals([(2.0, 1)] * 5, 10, Random(1)) == pytest.approx(Range(20.0, 20.0))


def test_rows_that_shared_a_job_are_not_independent_samples():
    alone = totals([(float(n % 2), 1) for n in range(40)], 1000, Random(1))
    shared = totals([(10.0 * (n % 2), 10) for n in range(4)], 1000, Random(1))
    assert shared.high - shared.low > 2 * (alone.high - alone.low)


def jobs_of(world: World) -> list[PilotJob]:
    return [
        PilotJob("w", job.arrived_at, job.started_at, job.ended_at)
        for job in world.jobs.values()
        if job.started_at is not None and job.ended_at is not None
    ]


def pilot_of(world: World, left: int, rows_per_job: int = 1) -> Pilot:
    rows = [
        PilotRow(
            number,
            Range(job.service_s / max(rows_per_job, len(job.rows)), job.service_s / len(job.rows)),
            Range(1 / max(rows_per_job, len(job.rows)), 1 / len(job.rows)),
            None,
            None,
        )
        for number, job in enumerate(world.jobs.values())
        for _ in job.rows
    ]
    return Pilot("e", rows, 0, jobs_of(world), left, 1, None)


SETTINGS: dict[str, tuple[dict, Pace]] = {
    "few workers": ({"workers": 4, "service_s": lambda rng: rng.uniform(0.5, 3.0)}, FREE),
    "skewed jobs": ({"workers": 8, "service_s": lambda rng: rng.lognormvariate(0.5, 0.7)}, FREE),
    "a cold start": (
        {"workers": 0, "workers_at": [(60.0, 6)], "service_s": lambda rng: rng.expovariate(0.5)},
        FREE,
    ),
    "never full": ({"workers": 30, "service_s": lambda rng: rng.uniform(1.0, 5.0)}, FREE),
    "a limit of submissions": (
        {
            "workers": 28,
            "service_s": lambda rng: rng.uniform(0.1, 0.4),
            "options": SchedulerOptions(limits=Limits(run=OperationLimit(100, 10), status=OperationLimit(0, 0))),
        },
        Pace(10.0, None, 30, is_pool=False),
    ),
    "five jobs in flight": (
        {
            "workers": 20,
            "service_s": lambda rng: rng.uniform(1.0, 2.0),
            "options": SchedulerOptions(concurrency=5, limits=NO_LIMITS.limits),
        },
        Pace(None, 5, 30, is_pool=False),
    ),
    "shared jobs": (
        {"workers": 3, "service_s": lambda rng: rng.uniform(1.0, 2.0), "rows_per_job": 4},
        FREE,
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_in_virtual_time_takes_as_long_as_its_pilot_said(name: str):
    fields, pace = SETTINGS[name]
    fields = {"options": NO_LIMITS, **fields}
    left, inside, said = 160, 0, []
    for seed in range(10):
        pilot = World(Setting(rows=30, seed=seed, guards=UNGUARDED, **fields)).run()
        found = estimate([pilot_of(pilot, left, fields.get("rows_per_job", 1))], pace, Random(seed))
        run = World(Setting(rows=left, seed=1000 + seed, guards=UNGUARDED, **fields)).run()
        low, high = found.staffing[-1].time_s
        inside += low <= run.now <= high
        said.append((round(low, 1), round(run.now, 1), round(high, 1)))
    assert inside >= 9, said


def at_work(worker: str, *spans: tuple[float, float], submitted_at: float = 0.0) -> list[PilotJob]:
    return [PilotJob(worker, submitted_at, start, end) for start, end in spans]


def test_a_worker_whose_jobs_waited_for_others_to_end_shows_how_many_it_runs_at_once():
    one_by_one = at_work("a", *((n, n + 1.002) for n in range(10)))
    assert capacity(one_by_one, 30) == pytest.approx(Capacity(1.0, 1.0, is_full=True), abs=0.01)
    in_pairs = at_work("a", *((n // 2, n // 2 + 1) for n in range(10)))
    assert capacity(in_pairs, 30) == Capacity(2.0, 2.0, is_full=True)


def test_a_worker_that_ran_all_jobs_at_once_may_run_more():
    assert capacity(at_work("a", *[(5.0, 6.0 + n) for n in range(10)]), 30) == Capacity(10, 30, is_full=False)
    assert capacity(at_work("a", *[(5.0, 6.0 + n) for n in range(40)]), 30) == Capacity(40, 40, is_full=False)


@given(
    st.lists(
        st.builds(
            lambda worker, at, wait, took: PilotJob(worker, at, at + wait, at + wait + took),
            st.sampled_from(["", "a", "b"]),
            st.sampled_from([0.0, 1.0, 1e9]),
            st.sampled_from([0.0, 0.001, 5.0]),
            st.sampled_from([0.0, 0.001, 5.0, 1e5]),
        ),
        min_size=2,
        max_size=12,
    ),
    st.sampled_from([0.0, 1e-6, 10.0]),
    st.integers(0, 3),
)
@settings(max_examples=60)
def test_whatever_the_times_of_the_jobs_are_the_ranges_are_ranges(jobs: list[PilotJob], took: float, left: int):
    pilot = Pilot("a", rows(len(jobs), took), 0, jobs, left, 0, 1.0)
    for is_pool in (False, True):
        found = estimate([pilot, pilot], Pace(5.0, 3, 30, is_pool=is_pool), Random(1))
        for each in found.staffing:
            assert each.cost is not None
            assert 0 <= each.time_s.low <= each.time_s.high < math.inf
            assert 0 <= each.cost.low <= each.cost.high < math.inf
        assert found.max_cost is not None
        assert render(found)


def test_the_night_between_two_sessions_is_not_idle_time():
    jobs = at_work("a", *((n, n + 1) for n in range(10)))
    later = at_work("a", *((n, n + 1) for n in range(5000, 5010)), submitted_at=5000.0)
    assert capacity([*jobs, *later], 30).low == pytest.approx(1.0)


def test_a_cold_start_is_how_long_the_first_job_of_a_worker_waited():
    jobs = at_work("a", (10.0, 11.0), (11.0, 12.0)) + at_work("b", (20.0, 21.0))
    assert startup_s(jobs) == 15.0


def rows(count: int, execution_s: float = 10.0, tokens: float | None = None) -> list[PilotRow]:
    return [PilotRow(n, Range(execution_s, execution_s), Range(1.0, 1.0), tokens, tokens) for n in range(count)]


def busy(endpoint: str, *, left: int, price: float | None = None, tokens: float | None = None) -> Pilot:
    """An endpoint with one worker that runs one job at once, each for 10 s."""
    jobs = at_work(endpoint, *((10.0 * n, 10.0 * n + 10) for n in range(20)))
    return Pilot(endpoint, rows(20, tokens=tokens), 0, jobs, left, 1, price)


def times(found: Estimate) -> dict[int | None, Range]:
    return {each.workers: each.time_s for each in found.staffing}


def test_three_workers_take_a_third_of_the_time_and_cost_about_the_same():
    found = estimate([busy("a", left=3600, price=2.0)], FREE, Random(1))
    assert times(found)[1] == pytest.approx(Range(36_000, 36_000 + 10 + 1))
    assert times(found)[3] == pytest.approx(Range(12_000, 12_000 + 10 + 1))
    assert times(found)[None] == times(found)[1]
    costs = [each.cost for each in found.staffing]
    assert [cost.low for cost in costs if cost] == pytest.approx([20.0] * 3)
    assert all(cost is not None and 20.0 < cost.high < 20.1 for cost in costs)
    assert found.max_cost == 23.0, "a tenth more, rounded up to two digits"


def test_what_the_run_has_cost_is_part_of_its_budget():
    found = estimate([busy("a", left=3600, price=2.0)], FREE, Random(1), spent=Range(70.0, 80.0))
    assert found.max_cost == 120.0
    assert found.spent == Range(70.0, 80.0)


def test_endpoints_that_are_compared_run_beside_each_other_and_share_a_budget_equally():
    pilots = [busy("a", left=360, price=1.0), busy("b", left=3600, price=2.0)]
    found = estimate(pilots, FREE, Random(1))
    assert found.left == 3960
    assert times(found)[1].low == pytest.approx(36_000)
    assert found.max_cost == pytest.approx(2 * 20.0 * 1.1, rel=0.05)
    assert found.max_cost >= 2 * 20.0


def test_the_endpoints_of_a_pool_do_the_rows_together():
    pool = Pace(None, None, 30, is_pool=True)
    found = estimate([busy("a", left=3600, price=1.0), busy("b", left=3600, price=1.0)], pool, Random(1))
    assert found.left == 3600
    assert times(found)[1].low == pytest.approx(18_000)
    assert found.staffing[0].cost == pytest.approx(Range(10.0, 10.0), rel=0.01)


def test_more_workers_do_not_help_against_the_limit_of_the_api_and_the_estimate_says_so():
    found = estimate([busy("a", left=3600)], Pace(0.2, None, 30, is_pool=False), Random(1))
    assert times(found)[1].low == pytest.approx(36_000)
    assert times(found)[3] == pytest.approx(Range(18_000 - 10, 18_000 + 11))
    assert [each.is_limited for each in found.staffing] == [False, True, False]
    assert "more workers would not" in render(found)


def test_the_estimate_is_the_same_for_the_same_random_numbers_and_needs_two_jobs():
    pilot = busy("a", left=50, price=1.0, tokens=100.0)
    assert estimate([pilot], FREE, Random(3)) == estimate([pilot], FREE, Random(3))
    assert can_estimate(pilot)
    assert not can_estimate(Pilot("a", rows(1), 0, at_work("a", (0, 1)), 10, 1, None))
    assert not can_estimate(Pilot("a", [], 0, [], 10, 1, None))


def test_the_text_fits_a_terminal_and_the_json_has_every_figure():
    found = estimate([busy("a", left=3600, price=2.0, tokens=100.0)], FREE, Random(1), spent=Range(0.1, 0.2))
    said = render(found)
    assert max(map(len, said.splitlines())) <= 78
    for part in ("3,600 rows left", "20 rows drawn", "10 h 00 min", "360,000", "--max-cost 23", "1 (as now)"):
        assert part in said, part
    data = orjson.loads(to_json(found))
    assert data["staffing"][1]["workers"] == 3
    assert math.isclose(data["staffing"][1]["time_s"]["low"], 12_000)
    assert (data["max_cost"], data["left"], data["workers"]) == (23.0, 3600, {"a": 1})
    free = render(estimate([busy("a", left=3600)], FREE, Random(1)))
    assert "not reported by the worker" in free
    assert "$" not in free
    assert "--price-per-hour adds the cost" in free
