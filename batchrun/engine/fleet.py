"""The engines of a run, one for each endpoint, with common signals, one progress display and one outcome.

Each engine has its own limits, window and preflight, and a failing endpoint stops only its own rows. All of them write
in one thread, so that the state file has one writer.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from batchrun.config import InterruptPolicy
from batchrun.display.summary import Observer, Snapshot, merged
from batchrun.engine.driver import Engine, Outcome
from batchrun.engine.notices import EngineObserver, Stop, joint_message
from batchrun.engine.orders import Orders, as_options
from batchrun.engine.published_status import PublishedStatus
from batchrun.engine.signals import Leaving, Wish, interruptible
from batchrun.errors import RefusedError, StoppedError
from batchrun.scheduler.events import Tuned

_LOOK_S = 0.25
"""How often a session checks whether another process wants it to end."""
_LOOKS_A_CHANGE = 3
"""Changes are checked less often, by this factor."""


class Fleet:
    """Drives the engines of a run.

    Args:
        observer: Shows the progress of the whole run.
        published: What other processes read about the run; it is updated.
        on_interrupt: What the first Ctrl-C or SIGTERM does.
        leaving: How other threads ask the session to leave; None if none do.
        orders: The requests of other processes; None if there cannot be any.
    """

    def __init__(
        self,
        observer: Observer,
        published: PublishedStatus,
        on_interrupt: InterruptPolicy,
        *,
        leaving: Leaving | None = None,
        orders: Orders | None = None,
    ) -> None:
        self._orders = orders
        self._leaving = leaving or Leaving()
        self._observer = observer
        self._published = published
        published.look = self._look
        self._on_interrupt = on_interrupt
        self._engines: dict[str, Engine] = {}
        self._parts: dict[str, Snapshot] = {}
        self._stops: dict[str, Stop] = {}
        """The stops that have not been reported yet."""
        self._running: dict[str, asyncio.Task[Outcome]] = {}

    def observer_of(self, endpoint: str, *, alone: bool) -> EngineObserver:
        """The observer for the engine of an endpoint; unless it is alone, its messages begin with the endpoint's ID."""
        return _PartObserver(self, "" if alone else endpoint, endpoint)

    def add(self, endpoint: str, engine: Engine) -> None:
        """Add the engine of an endpoint."""
        self._engines[endpoint] = engine

    async def run(self, *, cancel: bool = False) -> Outcome:
        """Run until each engine has ended; see `Engine.run`.

        Raises:
            BatchrunError: a bug.
        """
        for engine in self._engines.values():
            engine.adopt()
        self._refresh()
        with interruptible(self._leaving, self._on_interrupt), self._leaving.heard_by(self._on_wish):
            self._observer.begin(merged(self._parts))
            try:
                outcomes = await self._gather(cancel=cancel)
            finally:
                self._tell_stops()
                self._refresh()
                self._observer.end(merged(self._parts))
        return _combined(outcomes)

    async def _gather(self, *, cancel: bool) -> dict[str, Outcome]:
        for endpoint, engine in self._engines.items():
            self._running[endpoint] = asyncio.create_task(engine.run(cancel=cancel))
        tasks = self._running.values()
        obeying = None if self._orders is None else asyncio.create_task(self._obey(self._orders))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            ending = [*tasks, *([] if obeying is None else [obeying])]
            for task in ending:
                task.cancel()
            await asyncio.wait(ending)
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        return {endpoint: task.result() for endpoint, task in self._running.items()}

    async def _obey(self, orders: Orders) -> None:
        """Follow the requests of other processes until this is cancelled."""
        while True:
            for _ in range(_LOOKS_A_CHANGE):
                if (wish := orders.wish()) is not None:
                    self._on_wish(wish)
                await asyncio.sleep(_LOOK_S)
            is_ending = all(engine.scheduler.is_under_way is None for engine in self._engines.values())
            while (change := await orders.change(is_ending=is_ending)) is not None:
                self._observer.message(f"tuned: {as_options(change)}")
                for engine in self._engines.values():
                    engine.tune(self._share_of(change))

    def _share_of(self, change: Tuned) -> Tuned:
        """The change for each engine: those of a sweep get equal parts of the budget; a pool has one engine."""
        parts = sum(engine.scheduler.member is None for engine in self._engines.values()) or 1
        return change if change.max_cost is None else replace(change, max_cost=change.max_cost / parts)

    def _refresh(self) -> None:
        self._parts = self._look()

    def _look(self) -> dict[str, Snapshot]:
        return {endpoint: engine.snapshot() for endpoint, engine in self._engines.items()}

    def _on_wish(self, wish: Wish) -> None:
        for endpoint, task in self._running.items():
            if not task.done():
                self._engines[endpoint].leave(wish)

    def stopping(self, endpoint: str, stop: Stop) -> None:
        """An engine submits nothing more. Several that stop at about the same time are reported together."""
        self._stops[endpoint] = stop
        if len(self._engines) == 1:
            self._tell_stops()
        elif len(self._stops) == 1:
            asyncio.get_running_loop().call_later(_LOOK_S, self._tell_stops)

    def _tell_stops(self) -> None:
        alike: dict[tuple[str, bool], list[str]] = {}
        stops, self._stops = self._stops, {}
        for endpoint, stop in stops.items():
            alike.setdefault((stop.why, stop.is_cancel), []).append(endpoint)
        for endpoints in alike.values():
            text = joint_message([stops[endpoint] for endpoint in endpoints])
            are_all = len(endpoints) == len(self._engines) and not stops[endpoints[0]].why
            name = f"endpoint{'s' * (len(endpoints) > 1)} {' and '.join(endpoints)}: "
            self.tell(text if are_all or len(self._engines) == 1 else name + text)

    def tell(self, text: str) -> None:
        """Show the user a message."""
        self._observer.message(text)

    def update(self, endpoint: str, part: Snapshot) -> None:
        """Update an endpoint's part of the run."""
        self._parts[endpoint] = part
        self._observer.update(self._published.update(self._parts))


class _PartObserver:
    """Passes what one engine reports to the fleet, with the endpoint's ID if there are several."""

    def __init__(self, fleet: Fleet, name: str, endpoint: str) -> None:
        self._fleet = fleet
        self._name = name
        self._endpoint = endpoint

    def begin(self, snapshot: Snapshot) -> None:
        """An engine begins; the run as a whole has begun before."""
        self._fleet.update(self._endpoint, snapshot)

    def update(self, snapshot: Snapshot) -> None:
        """Pass it on."""
        self._fleet.update(self._endpoint, snapshot)

    def message(self, text: str) -> None:
        """Pass it on."""
        self._fleet.tell(f"endpoint {self._name}: {text}" if self._name else text)

    def stopping(self, stop: Stop) -> None:
        """Pass it on."""
        self._fleet.stopping(self._endpoint, stop)

    def end(self, snapshot: Snapshot) -> None:
        """An engine has ended; others may still be running."""
        self._fleet.update(self._endpoint, snapshot)


def _combined(outcomes: dict[str, Outcome]) -> Outcome:
    """The run's outcome: stopped if any endpoint was, with the reason of each."""
    stopped = {endpoint: outcome.error for endpoint, outcome in outcomes.items() if outcome.error is not None}
    if stopped:
        first = next(iter(stopped.values()))
        if len(outcomes) == 1:
            return Outcome("stopped", first)
        if len({error.message for error in stopped.values()}) == 1 and len(stopped) == len(outcomes):
            return Outcome("stopped", first)
        listed = "; ".join(f"endpoint {endpoint}: {error.message}" for endpoint, error in stopped.items())
        all_refused = len(stopped) == len(outcomes) and all(isinstance(e, RefusedError) for e in stopped.values())
        return Outcome("stopped", (RefusedError if all_refused else StoppedError)(listed, first.hint))
    kinds = {outcome.kind for outcome in outcomes.values()}
    return Outcome("interrupted") if "interrupted" in kinds else next(iter(outcomes.values()))
