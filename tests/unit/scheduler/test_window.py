"""How many jobs are in flight when nobody has chosen a number, and how many requests are under way."""

from __future__ import annotations

import math

import pytest

from batchrun.config import GuardOptions, HaltOptions, Limits, OperationLimit, SchedulerOptions
from batchrun.endpoint.protocol import Health
from batchrun.scheduler import connections
from batchrun.scheduler.connections import Connections
from batchrun.scheduler.prediction import Predictor
from batchrun.scheduler.window import FIRST, LEAST, SHARED, Window
from tests.support.world import Setting, World
from tests.support.worlds import ideal_s

UNLIMITED = Limits(run=OperationLimit(0, 0), status=OperationLimit(0, 0))
UNGUARDED = GuardOptions(halt=HaltOptions(automatic=False))


def test_a_hundred_fast_workers_are_kept_busy_at_little_more_than_one_request_a_job():
    options = SchedulerOptions(limits=UNLIMITED)
    setting = Setting(rows=5000, workers=100, service_s=lambda _: 0.2, latency_s=lambda _: 0.001, options=options)
    world = World(setting).run()
    assert ideal_s(world) / world.now >= 0.96
    assert world.requests["status"] <= 1.3 * setting.rows


@pytest.mark.slow
def test_exponential_service_times_cost_no_more_than_their_tail():
    options = SchedulerOptions(limits=UNLIMITED)
    setting = Setting(
        rows=5000, workers=100, service_s=lambda rng: rng.expovariate(5), latency_s=lambda _: 0.001, options=options
    )
    world = World(setting).run()
    assert ideal_s(world) / world.now >= 0.94


@pytest.mark.slow
def test_three_hundred_workers_with_long_tails_are_fed_within_the_documented_limits():
    setting = Setting(
        rows=5000,
        workers=300,
        service_s=lambda rng: rng.lognormvariate(math.log(2), 1),
        latency_s=lambda _: 0.025,
    )
    world = World(setting).run()
    assert ideal_s(world, burst=1000) / world.now >= 0.95
    assert world.throttled == 0


def test_documented_limits_over_fifty_milliseconds_are_used_to_the_full():
    setting = Setting(rows=5000, workers=400, service_s=lambda _: 0.2, latency_s=lambda _: 0.025)
    world = World(setting).run()
    assert ideal_s(world, burst=1000) / world.now >= 0.97
    assert world.requests["status"] <= 1.5 * setting.rows
    assert world.throttled == 0


@pytest.mark.parametrize("offset_s", [0.0, 0.7, 1.4])
def test_a_cold_start_is_followed_and_the_queue_stays_short(offset_s: float):
    changes = [(60.0 + offset_s, 5), (120.0 + offset_s, 50)]
    setting = Setting(rows=2000, workers=0, workers_at=changes, service_s=lambda _: 2.0, latency_s=lambda _: 0.025)
    world = World(setting)
    queued: list[tuple[float, int]] = []

    def look() -> None:
        queued.append((world.now, len(world.queue)))
        if not world.scheduler.is_done:
            world.at(world.now + 0.5, look)

    world.at(0.0, look)
    world.run()
    assert ideal_s(world) / world.now >= 0.95
    assert max(count for at, count in queued if at < changes[1][0]) <= 3 * 5 * 10 / 2.0
    assert max(count for _, count in queued) <= 3 * 50 * 10 / 2.0


@pytest.mark.slow
def test_when_workers_are_lost_the_queue_shrinks_with_them():
    setting = Setting(
        rows=6000,
        workers=50,
        workers_at=[(40.0, 2)],
        service_s=lambda _: 1.0,
        latency_s=lambda _: 0.025,
        guards=UNGUARDED,
    )
    world = World(setting)
    seen: dict[int, int] = {}
    for second in (35, 100):
        world.at(float(second), lambda second=second: seen.update({second: len(world.queue) + world.busy}))
    world.at(101.0, lambda: world._set_workers(50))
    world.run()
    assert seen[35] >= 50
    assert seen[100] <= 2 * 16, "no new job is queued for two workers before the old ones are worked off"


def test_slow_jobs_keep_a_short_queue_and_no_worker_waits():
    setting = Setting(
        rows=300, workers=20, service_s=lambda rng: rng.uniform(300, 900), latency_s=lambda _: 0.05, guards=UNGUARDED
    )
    world = World(setting).run()
    assert ideal_s(world) / world.now >= 0.98
    assert world.requests["status"] <= 15 * setting.rows


def health(*, in_queue=0, in_progress=0, idle=0, running=0) -> Health:
    return Health(in_queue, in_progress, 0, 0, idle, 0, idle + running, running, 0, 0)


def test_it_starts_with_what_health_says_of_the_workers():
    window = Window(None, Predictor(), OperationLimit(1000, 200))
    assert window.size == FIRST
    window.saw_health(health(idle=300), in_flight=0, next_sequence=0, now=0.0, arrived=0)
    window.update(0.0, 0, 0)
    assert window.size == 600


def test_it_starts_with_no_more_than_others_have_where_others_are():
    window = Window(None, Predictor(), OperationLimit(1000, 200))
    window.saw_health(health(in_queue=5, in_progress=20, running=20), in_flight=0, next_sequence=0, now=0.0, arrived=0)
    window.update(0.0, 0, 0)
    assert window.size == 25


def test_submissions_that_had_not_arrived_when_health_was_asked_do_not_show_an_empty_queue():
    window = Window(None, Predictor(), OperationLimit(1000, 200))
    empty = health(in_progress=5, running=5)
    window.saw_health(empty, in_flight=FIRST, next_sequence=FIRST, now=0.0, arrived=0)
    window.update(0.0, FIRST, FIRST)
    assert window.size == FIRST
    window.saw_health(empty, in_flight=FIRST, next_sequence=FIRST, now=2.0, arrived=FIRST)
    window.update(2.0, FIRST, FIRST)
    assert window.size == 2 * FIRST


def test_a_number_that_was_chosen_stays():
    window = Window(7, Predictor(), OperationLimit(1000, 200))
    window.saw_health(health(idle=300), in_flight=7, next_sequence=7, now=0.0, arrived=7)
    window.saw_start(7, 0.0, 7, 8, 1.0)
    window.refused(7, 1.0)
    window.update(1.0, 7, 8)
    assert window.size == 7


def test_it_doubles_only_when_it_is_in_use_and_once_a_round():
    window = Window(None, Predictor(), OperationLimit(0, 0))
    window.saw_start(0, 0.0, in_flight=10, next_sequence=10, now=1.0)
    window.update(1.0, 10, 10)
    assert window.size == FIRST
    for place in range(10, FIRST):
        window.saw_start(place, 0.0, in_flight=FIRST, next_sequence=FIRST, now=2.0)
    window.update(2.0, FIRST, FIRST)
    assert window.size == 2 * FIRST


def test_a_refusal_holds_its_growth():
    window = Window(None, Predictor(), OperationLimit(0, 0))
    window.refused(in_flight=40, now=0.0)
    window.saw_start(0, 0.0, in_flight=40, next_sequence=40, now=10.0)
    window.update(10.0, 40, 40)
    assert window.size == 40
    window.saw_start(40, 0.0, in_flight=40, next_sequence=80, now=31.0)
    window.update(31.0, 40, 80)
    assert window.size == 80


def test_beside_other_peoples_jobs_a_long_queue_is_no_reason_to_shrink():
    predictor = Predictor()
    window = Window(None, predictor, OperationLimit(0, 0))
    for place in range(64):
        predictor.learn(place, 0.0, delay_s=100.0 + place, execution_s=1.0, age_s=101.0)
    window.update(100.0, 100, 164)
    assert window.size == LEAST
    busy = health(in_queue=5000, in_progress=50, running=50)
    window.saw_health(busy, in_flight=100, next_sequence=164, now=100.0, arrived=100)
    window.update(100.0, 100, 164)
    assert window.size == SHARED


def test_connections_follow_the_shortest_round_trip():
    road = Connections(None)
    assert road.count == connections.LEAST
    road.answered(0.0, 0.05)
    assert road.count == 250
    road.answered(1.0, 1.001)
    assert road.count == connections.LEAST
    for second in range(2, 40):
        road.answered(float(second), second + 0.5)
    assert road.count == connections.MOST
    fixed = Connections(9)
    fixed.answered(0.0, 5.0)
    assert fixed.count == 9
