"""How soon a run finds its pace, how it keeps it beside another one, and how soon it sees its end."""

from __future__ import annotations

import pytest

from batchrun.config import GuardOptions, HaltOptions
from batchrun.scheduler.window import LEAST
from tests.support.world import Setting, World
from tests.support.worlds import ideal_s

UNGUARDED = GuardOptions(halt=HaltOptions(automatic=False))


def watched(world: World, until: float, step_s: float = 0.1) -> list[tuple[float, int, int]]:
    """Run up to a moment; returns when how many jobs had been submitted, and how many of them waited."""
    seen: list[tuple[float, int, int]] = []

    def look() -> None:
        seen.append((world.now, len(world.jobs), len(world.queue)))
        if world.now < until:
            world.at(world.now + step_s, look)

    world.at(0.0, look)
    world.run()
    return seen


@pytest.mark.parametrize("come_at", [0.0, 12.0])
def test_a_few_workers_get_no_more_at_the_start_than_the_first_answers_justify(come_at: float):
    changes = [(come_at, 5)] if come_at else []
    workers = 0 if come_at else 5
    world = World(Setting(rows=200, workers=workers, workers_at=changes, service_s=lambda _: 1.0))
    seen = watched(world, come_at + 20.0)
    assert max(queued for _, _, queued in seen) <= 5 * 10, "no more than ten seconds of work"
    assert max(queued for at, _, queued in seen if at > come_at + 14.0) <= 2 * LEAST
    assert ideal_s(world) / world.now >= 0.97


def test_many_fast_workers_have_four_hundred_jobs_in_flight_within_a_second():
    world = World(Setting(rows=2000, workers=100, service_s=lambda _: 0.2))
    in_flight: list[int] = []
    for tenth in range(11):
        world.at(tenth / 10, lambda: in_flight.append(world.scheduler.in_flight))
    world.run()
    assert max(in_flight) >= 400


def test_submissions_under_way_count_when_the_window_looks_at_the_queue():
    world = World(Setting(rows=2000, workers=50, service_s=lambda _: 1.0, latency_s=lambda _: 0.1))
    seen = watched(world, 39.0)
    assert max(queued for at, _, queued in seen if at > 10.0) <= 2 * 50 * 1.25
    assert ideal_s(world) / world.now >= 0.95


class Tenant(World):
    """A run on the endpoint of another one."""

    def __init__(self, setting: Setting, owner: World) -> None:
        super().__init__(setting)
        self.owner = owner
        self.jobs, self.queue = owner.jobs, owner.queue
        self.own: set[str] = set()

    def _accept(self, rows: tuple[int, ...]) -> str:
        self.owner.now = self.now
        self.accepted.update(rows)
        remote_id = self.owner._accept(rows)
        self.owner.accepted.subtract(rows)
        self.own.add(remote_id)
        return remote_id

    def health(self):
        self.owner.now = self.now
        return self.owner.health()


def run_together(owner: World, tenant: Tenant, begins_at: float, until: float) -> tuple[list[list[int]], list[int]]:
    """Run both; returns what each has queued every half second, and what each has finished in the last 45 s."""
    worlds = [owner, tenant]
    queued: list[list[int]] = [[], []]
    ended: list[int] = []
    now = 0.0
    while now < until:
        times = [until, begins_at] if now < begins_at else [until]
        for world in worlds[: 1 if now < begins_at else 2]:
            for command in world.scheduler.commands(now):
                world._do(command)
            times.append(world.scheduler.next_wakeup(now) or until)
        times += [world.agenda[0][0] for world in worlds if world.agenda]
        if now >= len(queued[0]) / 2:
            tenants = sum(job.remote_id in tenant.own for job in owner.queue)
            queued[0].append(len(owner.queue) - tenants)
            queued[1].append(tenants)
        if not ended and now >= until - 45.0:
            ended = [len(world.ended) for world in worlds]
        now = max(min(times), now)
        for world in worlds:
            world.now = now
            world._happen()
    return queued, [len(world.ended) - before for world, before in zip(worlds, ended, strict=True)]


@pytest.mark.parametrize(
    ("workers", "service_s", "begins_at"),
    [(5, lambda _: 1.0, 0.0), (20, lambda _: 1.0, 30.0), (10, lambda rng: rng.expovariate(1.0), 30.0)],
)
def test_two_equal_runs_on_one_endpoint_get_the_same_pace_and_their_queues_stay_short(workers, service_s, begins_at):
    setting = Setting(rows=4000, workers=workers, service_s=service_s, latency_s=lambda _: 0.025, guards=UNGUARDED)
    owner = World(setting)
    tenant = Tenant(setting, owner)
    queued, ended = run_together(owner, tenant, begins_at, begins_at + 90.0)
    assert min(ended) >= 0.8 * max(ended)
    assert sum(ended) >= 0.9 * 45.0 * workers
    assert max(map(max, queued)) <= 3 * 10.0 * workers / 2


@pytest.mark.parametrize("spread", [0.0, 0.1])
@pytest.mark.parametrize("service_s", [1.0, 5.0, 30.0])
def test_the_end_of_a_short_run_is_seen_soon_after_it(service_s: float, spread: float):
    lates = []
    for seed in range(8):
        setting = Setting(
            rows=30,
            workers=10,
            service_s=lambda rng: rng.uniform(1 - spread, 1 + spread) * service_s,
            latency_s=lambda _: 0.025,
            seed=seed,
        )
        world = World(setting).run()
        lates.append(world.now - ideal_s(world))
        assert world.requests["status"] <= 30 * setting.rows
    assert sorted(lates)[3] <= 0.3 + 0.04 * service_s, "of which 0.2 s are the first submissions"
    assert max(lates) <= 0.4 + 0.1 * service_s


@pytest.mark.parametrize("service_s", [5.0, 120.0])
def test_the_end_of_a_single_job_is_seen_soon_after_it(service_s: float):
    world = World(Setting(rows=1, workers=1, service_s=lambda _: service_s)).run()
    assert world.now - ideal_s(world) <= 0.1 + 0.04 * service_s
    assert world.requests["status"] <= 200


@pytest.mark.parametrize(("rows", "service_s"), [(200, 120.0), (1000, 600.0)])
def test_long_jobs_that_take_about_the_same_are_polled_twice_at_most_and_seen_within_a_twentieth(rows, service_s):
    setting = Setting(
        rows=rows,
        workers=90,
        service_s=lambda rng: rng.uniform(0.9, 1.1) * service_s,
        latency_s=lambda _: 0.05,
        guards=UNGUARDED,
    )
    world = World(setting).run()
    assert world.requests["status"] <= 2.1 * rows
    assert sum(world.lateness_s) / rows <= 0.055 * service_s
    assert ideal_s(world) / world.now >= 0.985


def test_exponential_times_cost_little_more_than_one_and_a_half_polls_when_requests_are_scarce():
    setting = Setting(
        rows=3000, workers=100, service_s=lambda rng: rng.expovariate(1.0), latency_s=lambda _: 0.025, guards=UNGUARDED
    )
    world = World(setting).run()
    assert world.requests["status"] <= 1.75 * setting.rows
    assert ideal_s(world) / world.now >= 0.94
