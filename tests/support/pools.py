"""Several endpoints in virtual time that do the rows of one run as a pool."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from batchrun.config import GuardOptions
from batchrun.errors import CallError, DeniedError
from batchrun.scheduler import commands as cmd
from batchrun.scheduler import events as ev
from batchrun.scheduler.pool import Pool
from batchrun.scheduler.scheduler import Scheduler
from batchrun.scheduler.window import MOST
from tests.support.world import Setting, World

if TYPE_CHECKING:
    from collections.abc import Sequence

TICK_S = 0.25
"""The driver asks its scheduler at least this often."""
SHARED = (
    "pending",
    "ended",
    "held",
    "submissions",
    "accepted",
    "requeued",
    "unconfirmed",
    "recalled",
    "attempts",
    "excused",
)
"""What the store knows of the rows."""


class PooledWorld(World):
    """One endpoint of a pool."""

    def __init__(self, setting: Setting, pools: PoolWorld, index: int) -> None:
        self.pools = pools
        self.index = index
        self.refuses = False
        """Whether an outage is a refusal of the API key."""
        self.kind = "m"
        self.is_done = False
        self.said: list[tuple[float, cmd.Command]] = []
        super().__init__(setting)

    def _scheduler(self, next_job: int) -> Scheduler:
        setting, pools = self.setting, self.pools
        return Scheduler(
            setting.options,
            Random(setting.seed + next_job),
            numbers=itertools.count(next_job + self.index, len(pools.settings)),
            guards=setting.guards,
            life_s=setting.life_s,
            rows_per_job=setting.rows_per_job,
            member=pools.pool.join(f"ep{self.index}", self.index),
        )

    def _no_answer(self) -> CallError:
        return DeniedError("401", http_status=401, from_api=True) if self.refuses else super()._no_answer()

    def tell(self, event: ev.Event) -> None:
        if isinstance(event, ev.Submitted):
            for row in self.open_jobs[event.job][0]:
                self.pools.homes.pop(row, None)
        if isinstance(event, ev.JobEnded):
            event = event._replace(rows=tuple(row._replace(kind=("", self.kind)) for row in event.rows))
        super().tell(event)

    def _ticket(self, row: int) -> ev.Ticket:
        return super()._ticket(row)._replace(home=self.pools.homes.get(row))

    def _do(self, command: cmd.Command) -> None:
        homes = self.pools.homes
        match command:
            case cmd.Submit(_, rows):
                assert all(homes.get(row, self.index) == self.index for row in rows), "an unconfirmed row has moved"
                assert not set(rows) & self.pools.unwritten, "a row was taken before its end was on disk"
            case cmd.Requeue(row=row, status=status):
                if status == "UNCONFIRMED":
                    homes[row] = self.index
                if row not in homes:
                    self.pools.unwritten.add(row)
                self.at(self.now + self.setting.commit_s, lambda: self._written(row))
            case cmd.Leave() | cmd.Return():
                self.said.append((self.now, command))
        super()._do(command)

    def _written(self, row: int) -> None:
        self.pools.unwritten.discard(row)
        self.tell(ev.Requeued((row,)))


class PoolWorld:
    """The endpoints of a pool, one clock and one store."""

    def __init__(
        self, settings: Sequence[Setting], rows: int, *, guards: GuardOptions | None = None, mixed: bool = False
    ) -> None:
        guards = guards or settings[0].guards
        self.settings = [replace(setting, rows=rows, guards=guards) for setting in settings]
        self.pool = Pool(guards, ready=MOST, mixed=mixed, rows_per_job=settings[0].rows_per_job)
        self.homes: dict[int, int] = {}
        """Rows with an unconfirmed submission, and where it was made."""
        self.unwritten: set[int] = set()
        self.worlds = [PooledWorld(setting, self, index) for index, setting in enumerate(self.settings)]
        first, *others = self.worlds
        for name in SHARED:
            for other in others:
                setattr(other, name, getattr(first, name))
        self.rows = rows
        self.now = 0.0

    @property
    def ended(self) -> dict[int, cmd.Finish]:
        return self.worlds[0].ended

    def run(self, *, until: float = 1e6, crash_at: float = math.inf) -> PoolWorld:
        """Run to the end, or up to a crash at that time."""
        while True:
            for world in self.worlds:
                if not world.is_done:
                    for command in world.scheduler.commands(self.now):
                        world._do(command)
                    world._check()
            for world in self.worlds:
                world.is_done = world.is_done or world.scheduler.is_done
            if all(world.is_done for world in self.worlds):
                return self
            self._pass()
            assert self.now < until, f"too long: {[world.scheduler for world in self.worlds]}"
            if self.now >= crash_at:
                return self

    def _pass(self) -> None:
        """Let time pass until something happens, or a scheduler wants to be asked."""
        times = [self.now + TICK_S]
        for world in self.worlds:
            wakeup = None if world.is_done else world.scheduler.next_wakeup(self.now)
            times += [] if wakeup is None else [wakeup]
            times += [world.agenda[0][0]] if world.agenda else []
        self.now = max(self.now, min(times))
        for world in self.worlds:
            world.now = self.now
            world._happen()

    def resume(self) -> PoolWorld:
        """A new session of the same pool after a crash."""
        guards = self.settings[0].guards
        self.pool = Pool(guards, ready=MOST, rows_per_job=self.settings[0].rows_per_job)
        self.unwritten.clear()
        open_rows: dict[int, PooledWorld] = {}
        for world in self.worlds:
            for rows, remote_id in world.open_jobs.values():
                if not remote_id:
                    self.homes.update(dict.fromkeys(rows, world.index))
                open_rows.update(dict.fromkeys(rows, world))
        pending = [row for row in range(self.rows) if row not in self.ended]
        waiting = []
        for world in self.worlds:
            world.is_done = False
            world.resume()
            adopted = {row for rows, remote_id in world.open_jobs.values() if remote_id for row in rows}
            pending = [row for row in pending if row not in adopted]
        first = self.worlds[0]
        for row in pending:
            tried = row in first.attempts
            home = self.homes.get(row)
            waiting.append(first._ticket(row) if tried else ev.Ticket(row, home=home))
        first.pending.clear()
        first.pending.extend(waiting)
        for world in self.worlds:
            world.pending = first.pending
        return self


def assert_every_row_ended_once(pools: PoolWorld) -> None:
    first = pools.worlds[0]
    assert set(pools.ended) | first.held == set(range(pools.rows))
    assert not any(world.open_jobs for world in pools.worlds)
    for row in range(pools.rows):
        allowed = 1 + first.requeued[row] + first.unconfirmed[row] + first.recalled[row] + first.excused[row]
        assert first.submissions[row] <= allowed, f"row {row} was submitted more often than its failures say"
