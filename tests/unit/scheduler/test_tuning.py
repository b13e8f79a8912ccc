"""A run whose window, budget and deadline change during the run, and that is paused, in virtual time."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.config import GuardOptions, HaltOptions, SchedulerOptions
from batchrun.scheduler import events as ev
from tests.support.pools import PoolWorld
from tests.support.pools import assert_every_row_ended_once as assert_every_row_of_the_pool_ended_once
from tests.support.world import Setting, World
from tests.support.worlds import assert_every_row_ended_once, worlds

UNGUARDED = GuardOptions(halt=HaltOptions(automatic=False))


def tuned(world: World, *changes: tuple[float, ev.Tuned]) -> World:
    for at, change in changes:
        world.at(at, lambda change=change: world.tell(change))
    return world


def running(**given) -> World:
    """A run of 2,000 rows on 40 workers, which a window of 8 leaves idle."""
    options = SchedulerOptions(concurrency=8)
    return World(Setting(**{"rows": 2000, "workers": 40, "options": options, "guards": UNGUARDED} | given))


def test_a_larger_window_is_filled_at_once_and_a_smaller_one_as_jobs_end():
    world = tuned(running(), (20.0, ev.Tuned(concurrency=40)), (40.0, ev.Tuned(concurrency=4)))
    seen = {}
    for at in (19.0, 22.0, 39.0, 44.0):
        world.at(at, lambda at=at: seen.update({at: world.scheduler.in_flight}))
    world.at(45.0, lambda: world.tell(ev.Tuned(concurrency="auto")))
    world.run()
    assert (seen[19.0], seen[22.0], seen[39.0], seen[44.0]) == (8, 40, 40, 4)
    assert_every_row_ended_once(world)
    assert world.now < 45 + 40, "auto has found the 40 workers"


def test_a_pause_submits_nothing_and_collects_and_what_follows_is_whole():
    world = tuned(running(), (20.0, ev.Tuned(is_paused=True)), (3620.0, ev.Tuned(is_paused=False)))
    seen = {}
    world.at(25.0, lambda: seen.update(before=sum(world.submissions.values()), note=world.scheduler.note(25.0)))
    world.at(3619.0, lambda: seen.update(after=sum(world.submissions.values()), in_flight=world.scheduler.in_flight))
    world.run()
    assert seen == {"before": seen["after"], "after": seen["after"], "in_flight": 0, "note": seen["note"]}
    assert "paused" in seen["note"]
    assert_every_row_ended_once(world)


def test_a_budget_is_set_raised_and_removed_during_a_run():
    guards = replace(UNGUARDED, price_per_hour=3600.0)  # a dollar for each second of a worker
    setting = {"workers": 8, "guards": guards}
    world = tuned(running(**setting), (20.0, ev.Tuned(max_cost=500.0))).run()
    assert "the budget is reached" in world.scheduler.stop.message
    assert 400.0 <= world.worker_s <= 510.0
    for further in (5000.0, math.inf):
        changes = (20.0, ev.Tuned(max_cost=500.0)), (30.0, ev.Tuned(max_cost=further))
        assert_every_row_ended_once(tuned(running(**setting), *changes).run())
    world = tuned(running(workers=8), (20.0, ev.Tuned(max_cost=1.0))).run()
    assert_every_row_ended_once(world)  # without a price there is no budget


def test_a_deadline_is_set_moved_and_removed_during_a_run():
    world = tuned(running(), (20.0, ev.Tuned(deadline_s=60.0)), (50.0, ev.Tuned(deadline_s=100.0))).run()
    assert "deadline (100 s after the start)" in world.scheduler.stop.message
    assert 95.0 <= world.now <= 100.1
    assert not world.open_jobs
    guards = replace(UNGUARDED, deadline_s=60.0)
    assert_every_row_ended_once(tuned(running(guards=guards), (20.0, ev.Tuned(deadline_s=math.inf))).run())


def test_a_deadline_that_has_passed_ends_the_run_and_comes_while_it_is_paused_too():
    world = tuned(running(), (30.0, ev.Tuned(deadline_s=10.0))).run()
    assert "deadline" in world.scheduler.stop.message
    assert world.now < 31.0
    guards = replace(UNGUARDED, deadline_s=60.0)
    world = tuned(running(guards=guards), (30.0, ev.Tuned(is_paused=True))).run()
    assert "deadline" in world.scheduler.stop.message
    assert world.now <= 60.1


@settings(max_examples=40)
@given(
    worlds,
    st.lists(
        st.tuples(
            st.floats(0, 60),
            st.builds(
                ev.Tuned,
                concurrency=st.none() | st.just("auto") | st.integers(1, 200),
                max_cost=st.none() | st.just(math.inf),
                is_paused=st.none() | st.booleans(),
            ),
        ),
        max_size=6,
    ),
)
def test_whatever_is_tuned_when_every_row_ends_once(setting: Setting, changes):
    world = World(replace(setting, guards=UNGUARDED))
    tuned(world, *changes, (61.0, ev.Tuned(is_paused=False))).run()
    assert_every_row_ended_once(world)


def test_a_pool_that_is_paused_keeps_its_endpoints_and_gets_the_new_window():
    one = Setting(workers=20, service_s=lambda _: 1.0, options=SchedulerOptions(concurrency=4))
    pools = PoolWorld((one, replace(one)), 2000)
    seen = {}
    for world in pools.worlds:
        tuned(world, (20.0, ev.Tuned(is_paused=True, concurrency=20)), (2000.0, ev.Tuned(is_paused=False)))
    first = pools.worlds[0]
    first.at(1999.0, lambda: seen.update(away=[each.member.is_away for each in schedulers(pools)]))
    first.at(2020.0, lambda: seen.update(in_flight=[each.in_flight for each in schedulers(pools)]))
    pools.run()
    assert seen["away"] == [False, False]
    assert all(10 <= count <= 20 for count in seen["in_flight"])
    assert_every_row_of_the_pool_ended_once(pools)


def schedulers(pools: PoolWorld):
    return [world.scheduler for world in pools.worlds]


def test_a_run_is_under_way_when_the_endpoint_has_answered_and_the_canary_is_back():
    world = running(guards=replace(UNGUARDED, canary=3))
    seen: list[tuple[bool | None, int]] = []
    for at in (0.0, 0.5, 3.0):
        world.at(at, lambda: seen.append((world.scheduler.is_under_way, len(world.ended))))
    tuned(world)
    world.at(10.0, lambda: world.tell(ev.StopRequested()))
    world.run()
    assert seen[0] == (False, 0)
    assert seen[1] == (False, 0), "the canary is out"
    assert seen[2][0] is True
    assert world.scheduler.is_under_way is None, "it stops"
