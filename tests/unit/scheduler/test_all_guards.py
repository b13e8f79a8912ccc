"""All guards at once, drawn at random, over everything that can go wrong: a run ends, says why, and can go on."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.config import GuardOptions, HaltOptions
from tests.support.world import Setting, World
from tests.support.worlds import assert_every_row_ended_once, worlds

halts = st.builds(
    HaltOptions,
    rows=st.sampled_from([None, None, 1, 5]),
    share=st.sampled_from([None, None, 0.1, 0.5]),
    automatic=st.booleans(),
)
guards = st.builds(
    GuardOptions,
    halt=halts,
    canary=st.sampled_from([0, 0, 1, 7, 100]),
    price_per_hour=st.sampled_from([None, 3600.0]),
    max_cost=st.sampled_from([None, 0.5, 5.0, 50.0]),
    deadline_s=st.sampled_from([None, None, 0.5, 5.0, 60.0]),
    job_timeout_s=st.sampled_from([None, None, 0.5, 5.0, 40.0]),
)
moments = st.one_of(st.just(math.inf), st.just(math.inf), st.floats(0, 20))
outages = st.one_of(st.just((math.inf, math.inf)), st.tuples(st.floats(0, 10), st.floats(10, 400)))


@pytest.mark.slow
@settings(max_examples=75)
@given(worlds, guards, moments, moments, outages, st.booleans(), st.sampled_from([0.0, 0.0, 0.1]))
def test_a_run_under_any_guards_ends_says_why_and_can_continue(
    setting: Setting, guards: GuardOptions, stop_at, cancel_at, outage, answers, stuck
):
    faults = replace(setting.faults, outage=outage, outage_answers=answers, job_stuck=stuck, cancel_broken=stuck)
    setting = replace(setting, guards=guards, stop_at=stop_at, cancel_at=cancel_at, faults=faults, life_s=600.0)
    world = World(setting).run(until=1e5)
    stop, asked = world.scheduler.stop, min(stop_at, cancel_at) <= world.now
    if world.halted is None:
        assert not world.open_jobs
    if stop is None and world.halted is None and not asked:
        assert_every_row_ended_once(world)
    if stop is not None:
        assert world.drained is not None
        assert world.halted or not setting.rows or len(world.ended) + len(world.held) < setting.rows, (
            "something was kept from being done"
        )
    assert sum(world.requests.values()) < 500 * (setting.rows + 20)
    world.setting = replace(
        setting, guards=GuardOptions(halt=HaltOptions(automatic=False)), stop_at=math.inf, cancel_at=math.inf
    )
    assert_every_row_ended_once(world.resume().run(until=1e6))
