"""Jobs of many rows in whole runs of virtual time: what fails, what is submitted again, and how often."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import ceil, log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.config import GuardOptions, HaltOptions, SchedulerOptions
from batchrun.errors import StoppedError
from batchrun.scheduler.failures import FailureKind
from tests.support.world import FREE, Faults, Job, Setting, World
from tests.support.worlds import assert_every_row_ended_once

UNGUARDED = GuardOptions(halt=HaltOptions(automatic=False))
SIZES = [2, 3, 5, 8, 16, 33, 64]


def jobs_with(world: World, *rows: int) -> list[Job]:
    """The jobs with any of some rows, in the order of their submission."""
    return [job for job in world.jobs.values() if not set(rows).isdisjoint(job.rows)]


def sizes(jobs: list[Job]) -> list[int]:
    return [len(job.rows) for job in jobs]


def packed(rows_per_job: int, packs: int = 40, **faults: object) -> Setting:
    """A run of so many jobs of so many rows."""
    return Setting(
        rows=rows_per_job * packs,
        rows_per_job=rows_per_job,
        workers=3,
        options=SchedulerOptions(concurrency=8),
        guards=UNGUARDED,
        faults=Faults(**faults),
    )


shares = st.sampled_from([0.0, 0.0, 0.02, 0.2])
packed_worlds = st.builds(
    Setting,
    rows=st.integers(1, 300),
    rows_per_job=st.integers(2, 64),
    workers=st.integers(1, 8),
    service_s=st.sampled_from([lambda _: 0.3, lambda rng: rng.expovariate(1.0)]),
    options=st.builds(SchedulerOptions, concurrency=st.integers(1, 12), max_retries=st.integers(0, 4)),
    faults=st.builds(
        Faults,
        row_poisoned=st.sampled_from([0.0, 0.01, 0.05, 0.2]),
        row_bad=shares,
        garbled=shares,
        has_no_route=st.sampled_from([False, False, False, True]),
        job_lost=shares,
        job_expired=shares,
        submit_lost_after=shares,
        throttled=shares,
    ),
    dead=st.sampled_from([0, 0, 0, 1]),
    prefers_healthy=st.sampled_from([0.5, 1.0]),
    seed=st.integers(0, 2**32),
    guards=st.just(UNGUARDED),
)


@settings(max_examples=60)
@given(packed_worlds, st.lists(st.integers(1, 150), max_size=3))
def test_every_row_of_a_job_ends_exactly_once_whatever_goes_wrong(setting: Setting, crashes: list[int]):
    setting = replace(setting, dead=min(setting.dead, setting.workers - 1))
    world = World(setting)
    for crash_after in crashes:
        if world.run(crash_after=crash_after).crashed:
            world.resume()
        else:
            break
    if world.ended.keys() | world.held != set(range(setting.rows)):
        world.run()
    assert_every_row_ended_once(world)
    for row, finish in world.ended.items():
        if row in world.poisoned and finish.failure is not None:
            assert finish.failure.kind is not FailureKind.BAD_REQUEST or jobs_with(world, row)[-1].rows == (row,)
    most = 1 + setting.options.max_retries
    for row, count in paid_for(world).items():
        said = world.unconfirmed[row] + world.excused[row]
        assert count <= most + said, f"row {row} was paid for without saying so"


def paid_for(world: World) -> Counter[int]:
    """How often each row was run."""
    return Counter(row for job in world.jobs.values() if job.outcome not in FREE for row in job.rows)


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_row_that_its_model_refuses_costs_two_jobs_for_each_halving_and_its_neighbours_nothing(rows: int, place: str):
    row = {"first": 0, "middle": rows // 2, "last": rows - 1}[place]
    world = World(packed(rows, poisoned=frozenset({row}))).run()
    mates = range(rows)
    jobs = jobs_with(world, *mates)
    assert len(jobs) - 1 <= 2 * ceil(log2(rows))
    assert jobs_with(world, row)[-1].rows == (row,)
    assert world.ended[row].failure.kind is FailureKind.BAD_REQUEST
    for mate in set(mates) - {row}:
        assert world.ended[mate].failure is None
        assert world.requeued[mate] == 0, "what its neighbour does is no retry of its own"
    assert set(paid_for(world).values()) == {1}


@pytest.mark.parametrize("rows", SIZES)
def test_a_job_that_was_lost_is_submitted_again_as_it_was_once_and_then_in_halves(rows: int):
    world = World(packed(rows))
    lose(world, 2)
    world.run()
    jobs = jobs_with(world, *range(rows))
    assert sizes(jobs) == [rows, rows, *sorted([(rows + 1) // 2, rows // 2])]
    assert all(finish.failure is None for finish in world.ended.values())
    assert {world.requeued[row] for row in range(rows)} == {2}


def lose(world: World, count: int) -> None:
    """The first jobs with row 0 are lost with their workers."""
    accept, left = world._accept, iter(range(count))

    def accepting(rows: tuple[int, ...]) -> str:
        remote_id = accept(rows)
        if 0 in rows and next(left, None) is not None:
            world.jobs[remote_id].outcome = "lost"
        return remote_id

    world._accept = accepting  # type: ignore[method-assign]


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("max_retries", [1, 3])
def test_a_row_that_kills_its_worker_takes_no_other_row_down_with_it(rows: int, max_retries: int):
    setting = packed(rows)
    world = World(replace(setting, options=replace(setting.options, max_retries=max_retries)))
    lose(world, 10**9)
    world.run()
    assert {row for row, finish in world.ended.items() if finish.failure} == {0}
    assert len(jobs_with(world, 0)) <= 2 + ceil(log2(rows)) + max_retries


def test_an_answer_that_cannot_be_divided_is_asked_for_again_whole_once_and_then_row_by_row():
    world = World(packed(8, garbling=frozenset({20}))).run()
    mates = range(16, 24)
    assert sizes(jobs_with(world, *mates)) == [8, 8] + [1] * 8
    assert all(finish.failure is None for finish in world.ended.values())
    assert not world.told
    assert max(sizes(jobs_with(world, *range(24, 200)))) == 8, "other answers are as they should be"


@pytest.mark.parametrize(
    "faults", [{"has_no_route": True}, {"garbled": 1.0}], ids=["the route is missing", "each answer is garbled"]
)
def test_an_endpoint_that_answers_no_shared_job_gets_one_row_a_job_from_then_on_and_it_is_said_once(faults):
    setting = packed(16, **faults)
    world = World(setting).run()
    assert all(finish.failure is None for finish in world.ended.values())
    shared = sum(size > 1 for size in sizes(list(world.jobs.values())))
    assert shared <= 3 * setting.options.concurrency
    assert len(world.told) == 1
    assert "each row has a job of its own" in world.told[0]
    if faults.get("has_no_route"):
        assert set(paid_for(world).values()) == {1}
        assert not any(world.requeued.values())


@pytest.mark.parametrize("fault", ["job_lost", "garbled", "job_expired"])
def test_without_retries_nothing_is_paid_for_twice(fault: str):
    setting = packed(8, row_poisoned=0.05, **{fault: 0.3})
    world = World(replace(setting, options=replace(setting.options, max_retries=0))).run()
    assert_every_row_ended_once(world)
    assert set(paid_for(world).values()) == {1}
    failed = {finish.failure.kind for finish in world.ended.values() if finish.failure}
    assert FailureKind.BAD_REQUEST in failed
    assert len(failed) == 2
    assert 0 < sum(finish.failure is None for finish in world.ended.values()) < setting.rows


def test_jobs_that_somebody_else_cancels_are_not_submitted_again():
    world = World(packed(8))
    for at in (1.5, 2.5):

        def purge() -> None:
            for job in world.queue:
                job.ended_at, job.outcome, job.service_s, job.started_at = world.now, "cancelled", 0.0, world.now
            world.queue.clear()

        world.at(at, purge)
    world.run()
    cancelled = [job for job in world.jobs.values() if job.outcome == "cancelled"]
    assert cancelled
    for job in cancelled:
        assert {world.ended[row].failure.kind for row in job.rows} == {FailureKind.CANCELLED}
        assert jobs_with(world, *job.rows) == [job]


def test_a_deployment_that_refuses_everything_stops_a_run_before_it_has_sent_every_half():
    setting = packed(64, packs=400, row_poisoned=1.0)
    options = SchedulerOptions(concurrency=100)
    world = World(replace(setting, options=options, guards=GuardOptions())).run()
    assert isinstance(world.drained.error if world.drained else None, StoppedError)
    assert len(world.jobs) < 12 * options.concurrency, "all halves of the first jobs would be 127 each"


def test_a_worker_that_fails_every_job_is_not_blamed_on_the_rows():
    setting = replace(packed(8, packs=60), workers=6, dead=1, prefers_healthy=0.8)
    world = World(setting).run()
    assert_every_row_ended_once(world)
    assert all(finish.failure is None for finish in world.ended.values())
    assert max(sizes(list(world.jobs.values()))) == 8


def test_near_the_end_jobs_get_smaller_so_that_all_workers_finish_together():
    setting = replace(packed(16, packs=30), workers=4)
    world = World(setting).run()
    made = sizes(list(world.jobs.values()))
    assert made[0] == 16
    assert made[-1] == 1
    last = sorted(job.ended_at for job in world.jobs.values())[-4:]
    assert last[-1] - last[0] <= 1.5


def test_a_submission_without_an_answer_holds_all_rows_of_the_job():
    setting = packed(8, submit_lost_after=0.2)
    held = World(replace(setting, options=replace(setting.options, unconfirmed="hold"))).run()
    assert held.held
    assert all(held.held.issuperset(job.rows) or held.held.isdisjoint(job.rows) for job in held.jobs.values())
    assert len(held.held) + len(held.ended) == setting.rows
    again = World(setting).run()
    assert sum(again.unconfirmed.values()) >= len(held.held) // 2
    assert_every_row_ended_once(again)
